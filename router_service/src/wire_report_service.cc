// Frontends' reports for the live picture, checked.
#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "cluster.pb.h"
#include "conclave/base/status.h"
#include "live_picture.h"

namespace conclave::router_service {
namespace {

constexpr int kLayersMax = 4096;
constexpr int32_t kExpertsMax = 65'536;
constexpr size_t kUnitsMax = size_t{1} << 17;
constexpr int kBucketsMax = 64;
constexpr int kWorkersMax = 4096;
constexpr size_t kNameMax = 256;

absl::Status Bad(const std::string& field, const std::string& expected) {
  const std::string name = "report." + field;
  return WithParam(InvalidArgument("message_field", name + ": expected " + expected), name);
}

absl::Status ReadModel(const v1::LiveModel& in, live::ModelCard& out) {
  if (in.name().size() > kNameMax || in.dtype().size() > kNameMax) {
    return Bad("model.name", "at most 256 bytes");
  }
  out.name = in.name();
  out.dtype = in.dtype();
  if (in.top_k() < 0 || in.top_k() > 64) {
    return Bad("model.top_k", "0 to 64");
  }
  out.top_k = in.top_k();
  if (in.layers_size() > kLayersMax) {
    return Bad("model.layers", "at most " + std::to_string(kLayersMax));
  }
  for (const v1::MoeLayer& layer : in.layers()) {
    if (layer.layer() < 0 || layer.num_experts() < 1 || layer.num_experts() > kExpertsMax ||
        (!out.layers.empty() && layer.layer() <= out.layers.back().layer)) {
      return Bad("model.layers", "ascending layers with 1 to 65536 experts");
    }
    out.layers.push_back({layer.layer(), layer.num_experts()});
  }
  if (live::NumExperts(out.layers) > kUnitsMax) {
    return Bad("model.layers", "at most " + std::to_string(kUnitsMax) + " experts in all");
  }
  constexpr int32_t kSideMax = 1024;
  if (in.image_rows() < 0 || in.image_rows() > kSideMax || in.image_columns() < 0 ||
      in.image_columns() > kSideMax) {
    return Bad("model.image_rows", "0 to 1024");
  }
  out.image_rows = in.image_rows();
  out.image_columns = in.image_columns();
  return absl::OkStatus();
}

template <typename Cells, typename Values, typename T>
absl::Status Patch(const std::string& field, const Cells& cells, const Values& values,
                   std::vector<T>& out) {
  if (cells.size() != values.size()) {
    return Bad(field, "one value for each cell");
  }
  for (int i = 0; i < cells.size(); ++i) {
    if (cells.Get(i) >= out.size()) {
      return Bad(field, "cells below " + std::to_string(out.size()));
    }
    if constexpr (std::is_floating_point_v<T>) {
      if (!std::isfinite(values.Get(i)) || values.Get(i) < 0) {
        return Bad(field, "sums that are finite and not negative");
      }
    }
    out[cells.Get(i)] = values.Get(i);
  }
  return absl::OkStatus();
}

template <typename Counts>
absl::StatusOr<live::Buckets> ReadBuckets(const std::string& field, const Counts& in) {
  if (in.size() > kBucketsMax) {
    return Bad(field, "at most " + std::to_string(kBucketsMax) + " counts");
  }
  return live::Buckets(in.begin(), in.end());
}

absl::Status ReadServing(const v1::ServingCounts& in, live::Serving& out) {
  out.prompt_text = in.prompt_text();
  out.prompt_image = in.prompt_image();
  out.cached = in.cached();
  out.generated = in.generated();
  if (in.finished_size() != 0 && in.finished_size() != static_cast<int>(out.finished.size())) {
    return Bad("serving.finished", "four counts");
  }
  std::copy(in.finished().begin(), in.finished().end(), out.finished.begin());
  out.images = in.images();
  out.image_hits = in.image_hits();
  out.preemptions = in.preemptions();
  out.requests_touched = in.requests_touched();
  out.rescued = in.rescued();
  CONCLAVE_ASSIGN_OR_RETURN(out.ttft, ReadBuckets("serving.ttft", in.ttft()));
  CONCLAVE_ASSIGN_OR_RETURN(out.itl, ReadBuckets("serving.itl", in.itl()));
  CONCLAVE_ASSIGN_OR_RETURN(out.recovery, ReadBuckets("serving.recovery", in.recovery()));
  return absl::OkStatus();
}

absl::Status ReadWorkers(const v1::FrontendReport& report, std::vector<live::WorkerCalls>& out) {
  if (report.workers_size() > kWorkersMax) {
    return Bad("workers", "at most " + std::to_string(kWorkersMax));
  }
  out.clear();
  for (const v1::WorkerCallCounts& in : report.workers()) {
    if (in.worker() < 0 || (!out.empty() && in.worker() <= out.back().worker)) {
      return Bad("workers", "ascending ids of workers");
    }
    live::WorkerCalls& calls = out.emplace_back();
    calls.worker = in.worker();
    calls.calls = in.calls();
    calls.rows = in.rows();
    calls.calls_resent = in.calls_resent();
    calls.rows_resent = in.rows_resent();
    calls.hedges = in.hedges();
    calls.timeouts = in.timeouts();
    calls.links_lost = in.links_lost();
    calls.bytes_out = in.bytes_out();
    calls.bytes_in = in.bytes_in();
    calls.bytes_least = in.bytes_least();
    CONCLAVE_ASSIGN_OR_RETURN(calls.seconds, ReadBuckets("workers.seconds", in.seconds()));
  }
  return absl::OkStatus();
}

absl::Status ReadPaths(const v1::PathCounts& in, size_t num_layers, live::PathCounts& out) {
  out.rows = in.rows();
  out.distinct = in.distinct();
  out.other = in.other();
  if (in.top_size() > static_cast<int>(live::kTopPaths)) {
    return Bad("pathways.top", "at most " + std::to_string(live::kTopPaths));
  }
  out.top.clear();
  for (const v1::PathCount& path : in.top()) {
    const bool is_known = std::all_of(path.experts().begin(), path.experts().end(),
                                      [](int32_t e) { return e >= 0 && e < kExpertsMax; });
    if (path.experts_size() != static_cast<int>(num_layers) || !is_known) {
      return Bad("pathways.top", "one expert of each layer");
    }
    out.top.push_back({{path.experts().begin(), path.experts().end()}, path.rows()});
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ApplyReport(const v1::FrontendReport& report, live::FrontendFigures& figures) {
  live::FrontendFigures next = figures;
  if (report.is_whole()) {
    next = {};
    CONCLAVE_RETURN_IF_ERROR(ReadModel(report.model(), next.model));
    const size_t num_experts = live::NumExperts(next.model.layers);
    next.rows.resize(num_experts * live::kCellsPerExpert);
    next.weights.resize(num_experts * live::kModalities);
    next.probabilities.resize(num_experts);
  }
  CONCLAVE_RETURN_IF_ERROR(Patch("rows", report.row_cells(), report.rows(), next.rows));
  CONCLAVE_RETURN_IF_ERROR(Patch("weights", report.weight_cells(), report.weights(), next.weights));
  CONCLAVE_RETURN_IF_ERROR(Patch("probabilities", report.probability_cells(),
                                 report.probabilities(), next.probabilities));
  constexpr uint32_t kRequestsMax = 1u << 30;
  if (report.running() > kRequestsMax || report.waiting() > kRequestsMax) {
    return Bad("running", "at most 2^30");
  }
  if (!(report.kv() >= 0 && report.kv() <= 1)) {
    return Bad("kv", "0 to 1");
  }
  next.running = static_cast<int32_t>(report.running());
  next.waiting = static_cast<int32_t>(report.waiting());
  next.kv = report.kv();
  CONCLAVE_RETURN_IF_ERROR(ReadServing(report.serving(), next.serving));
  CONCLAVE_RETURN_IF_ERROR(ReadWorkers(report, next.workers));
  if (report.pathways_size() != 0 &&
      report.pathways_size() != static_cast<int>(live::kModalities)) {
    return Bad("pathways", "none or two");
  }
  for (int i = 0; i < report.pathways_size(); ++i) {
    CONCLAVE_RETURN_IF_ERROR(ReadPaths(report.pathways(i), next.model.layers.size(),
                                       next.pathways[static_cast<size_t>(i)]));
  }
  figures = std::move(next);
  return absl::OkStatus();
}

}  // namespace conclave::router_service
