// Recorded routing: how many rows every expert got, second by second, and who held it. A router
// writes it while it runs (`conclave cluster record`), `conclave plan` replays it. Pure: bytes in
// memory, no clock, thread or file.
//
//   file    = "CNCLVRT1" frame*                  little-endian
//   frame   = length u32, type u8, body of `length` bytes, CRC-32C u32 of type and body
//
//   type 1, head, first and once
//     version, started (us since 1970), window (us), manifest hash (text), row width, top_k,
//     replication, number of layers, per layer its index and its number of experts;
//     number of overrides, each: u, replicas; number of pins, each: u, worker's name (text)
//   type 2, window
//     its length in us; then until the end of the body, of the experts that had any rows:
//     (u - last u - 1) * 16 + kinds, and the rows of each kind whose bit is set: bit 0 decode text,
//     1 decode image, 2 prefill text, 3 prefill image. The last u of an empty window is -1.
//   type 3, workers: all of them, whenever one comes, goes or changes; ids ascending
//     number, each: id, name (text), host (text), speed f64, memory bytes, bytes of an expert,
//     1 when it takes experts and 0 when it drains
//   type 4, placement: experts whose workers changed, u ascending; the first one names all
//     number, each: u - last u - 1, number of workers, their ids in the order of preference
//   type 5, end, last and at most once
//     0 stopped, 1 the recorder's memory was full, 2 read while the recording went on
//
// Numbers without a type are LEB128 of at most 10 bytes; text is its length and its bytes. `u`
// counts experts from 0, layer after layer as in the head. Workers and placement of the start stand
// before the first window; later ones took effect within the window before them.
//
// At most 4,096 layers, 2^20 experts, 1,024 workers at a time, 31 days.
//
// A file that ends within a frame, as after a crash, is read up to the last whole one. A demo
// cluster needs about 60 bytes a second, 60 layers of 256 experts under load some 50 KB.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

inline constexpr uint32_t kTraceVersion = 1;
// Experts of a model that can be recorded.
inline constexpr int64_t kTraceUnitsMax = int64_t{1} << 20;

struct TraceHead {
  int64_t started_unix_us = 0;
  std::chrono::microseconds window{1'000'000};  // as aimed at; each says how long it was
  ModelIdentity model;
  int32_t replication = 2;
  std::vector<MoeLayer> layers;  // ascending
  // What operators had asked for when the recording began.
  std::map<ExpertUnit, int32_t> replicas;
  std::vector<std::pair<ExpertUnit, std::string>> pins;
};

struct TraceWorker {
  WorkerId id;
  std::string name;
  std::string host;
  double speed = 1;
  int64_t memory_bytes = 0;
  int64_t expert_bytes = 0;
  bool takes_experts = true;
  friend bool operator==(const TraceWorker&, const TraceWorker&) = default;
};

struct TraceWindow {
  std::chrono::microseconds length{0};
  std::vector<ExpertRows> rows;  // of experts that had any, ascending
};
struct TraceWorkers {
  std::vector<TraceWorker> workers;  // all, by id
};
struct TracePlacement {
  std::vector<std::pair<ExpertUnit, std::vector<WorkerId>>> changed;  // ascending
};

enum class TraceEnd : uint8_t { kStopped, kFull, kGoesOn, kCut };

struct RoutingTrace {
  TraceHead head;
  std::vector<std::variant<TraceWindow, TraceWorkers, TracePlacement>> records;  // in order
  TraceEnd end = TraceEnd::kCut;  // kCut: the file breaks off
};

// The parts of a file. What is written must be what ReadTrace accepts: the recorder's part.
std::string TraceStart(const TraceHead& head);
class TraceEncoder {
 public:
  explicit TraceEncoder(const std::vector<MoeLayer>& layers);
  // Rows of experts that the layers do not have are left out; twins are added up.
  std::string Window(std::chrono::microseconds length, const std::vector<ExpertRows>& rows) const;
  std::string Workers(const std::vector<TraceWorker>& workers) const;
  std::string Placement(const TracePlacement& placement) const;
  std::string End(TraceEnd end) const;

 private:
  // -1: no expert of the layers.
  int64_t IndexOf(ExpertUnit unit) const;
  std::map<LayerId, std::pair<int64_t, int32_t>> layers_;  // first index, number
};

// Everything in the bytes is checked. kInvalidArgument ("trace_corrupt") with the byte at which a
// file stops to make sense, kFailedPrecondition ("trace_version_unsupported").
absl::StatusOr<RoutingTrace> ReadTrace(std::string_view bytes);

}  // namespace conclave::router_service
