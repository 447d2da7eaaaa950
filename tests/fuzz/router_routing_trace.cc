// Recordings of routing, and their replay.
//
// Promises: a refusal is "trace_corrupt" or "trace_version_unsupported" and one line; a file that
// is read to its end is, written again, the same bytes; one that is cut gives a prefix of them; a
// small one is replayed, or refused with a reason. The first byte of the input says whether the
// checksums of the parts are put right: no mutation would ever find them.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "conclave/base/check.h"
#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "conclave/router_service/routing_trace.h"
#include "conclave/router_service/what_if.h"

namespace conclave::router_service {
namespace {

constexpr size_t kUnitsReplayed = 64;
constexpr size_t kWorkersReplayed = 8;
constexpr std::chrono::microseconds kTimeReplayed{60'000'000};

void PutChecksumsRight(std::string& file) {
  size_t at = 8;
  while (file.size() >= at + 9) {
    size_t length = 0;
    for (size_t i = 0; i < 4; ++i) {
      length |= size_t{static_cast<uint8_t>(file[at + i])} << (8 * i);
    }
    if (length > file.size() - at - 9) {
      return;
    }
    const uint32_t crc = Crc32c(std::as_bytes(std::span(file.data() + at + 4, length + 1)));
    for (size_t i = 0; i < 4; ++i) {
      file[at + 5 + length + i] = static_cast<char>(crc >> (8 * i) & 0xff);
    }
    at += 9 + length;
  }
}

std::string WrittenAgain(const RoutingTrace& trace) {
  const TraceEncoder encoder(trace.head.layers);
  std::string file = TraceStart(trace.head);
  for (const auto& record : trace.records) {
    if (const auto* window = std::get_if<TraceWindow>(&record); window != nullptr) {
      file += encoder.Window(window->length, window->rows);
    } else if (const auto* workers = std::get_if<TraceWorkers>(&record); workers != nullptr) {
      file += encoder.Workers(workers->workers);
    } else {
      file += encoder.Placement(std::get<TracePlacement>(record));
    }
  }
  return trace.end == TraceEnd::kCut ? file : file + encoder.End(trace.end);
}

bool IsSmall(const RoutingTrace& trace) {
  size_t units = 0;
  for (const MoeLayer& layer : trace.head.layers) {
    units += static_cast<size_t>(layer.num_experts);
  }
  std::chrono::microseconds time{0};
  size_t workers = 0;
  for (const auto& record : trace.records) {
    if (const auto* window = std::get_if<TraceWindow>(&record); window != nullptr) {
      time += window->length;
    } else if (const auto* all = std::get_if<TraceWorkers>(&record); all != nullptr) {
      workers = std::max(workers, all->workers.size());
    }
  }
  return units <= kUnitsReplayed && workers <= kWorkersReplayed && time <= kTimeReplayed &&
         trace.records.size() <= 64;
}

void Check(bool is_put_right, std::string file) {
  if (is_put_right) {
    PutChecksumsRight(file);
  }
  const absl::StatusOr<RoutingTrace> trace = ReadTrace(file);
  if (!trace.ok()) {
    const std::string reason = ReasonOf(trace.status());
    CONCLAVE_CHECK(reason == "trace_corrupt" || reason == "trace_version_unsupported");
    CONCLAVE_CHECK(MessageOf(trace.status()).find('\n') == std::string::npos);
    return;
  }
  const std::string again = WrittenAgain(*trace);
  CONCLAVE_CHECK(trace->end == TraceEnd::kCut ? file.starts_with(again) : file == again);
  if (!IsSmall(*trace)) {
    return;
  }
  WhatIfOptions options;
  options.rebalance_interval = std::chrono::milliseconds(1000);
  options.num_added = 1;
  options.is_full = true;
  const absl::StatusOr<WhatIfReport> report = ReplayWhatIf(*trace, options);
  CONCLAVE_CHECK(report.ok() || ReasonOf(report.status()) == "trace_empty" ||
                 ReasonOf(report.status()) == "placement_over_capacity");
}

}  // namespace
}  // namespace conclave::router_service

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  if (size > 0) {
    conclave::router_service::Check((bytes[0] & 1) != 0,
                                    {reinterpret_cast<const char*>(bytes) + 1, size - 1});
  }
  return 0;
}
