// What a router would have done with recorded traffic: the recording is replayed through a real
// RouterCore on a virtual clock, with virtual workers that load at 1 GB/s, so that planner,
// averages, pauses, budgets of moves and repairs are the router's own. Pure and deterministic: the
// same recording and wishes give the same report, on any machine.
//
// Imbalance is max / mean of the rows per speed of the workers, per layer, where the replicas of an
// expert share its rows evenly. It is averaged over the recording with the layer's rows as weights:
// by so much the slowest worker is behind the mean one. All three placements are measured with the
// same rows, averaged over 10 seconds as the router does.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/router_service/routing_trace.h"

namespace conclave::router_service {

struct WhatIfOptions {
  // Names of recorded workers that are gone from the start.
  std::vector<std::string> without;
  // Further workers from the start, empty, each on a host of its own and otherwise like the first.
  int32_t num_added = 0;
  // So many workers from the start to the end, whatever came and went in the recording; those with
  // the highest ids are left out. Neither `without` nor `num_added` beside it.
  std::optional<int32_t> num_workers;
  std::optional<int32_t> replication;
  std::optional<int64_t> memory_bytes;  // for experts, of every worker
  std::chrono::milliseconds rebalance_interval{30'000};
  // A plan from nothing once, as of `conclave cluster rebalance --full`, when there are loads of 10
  // seconds, or of half the recording.
  bool is_full = false;
};

// How one way of placing the experts did.
struct WhatIfCourse {
  double imbalance = 0;        // mean over the layers that had rows
  double unserved = 0;         // part of all rows whose expert nobody served
  int64_t num_loads = 0;       // replicas that workers had to load
  int64_t num_rebalances = 0;  // of the recorded course: placements that came after the first
};

struct WhatIfLayer {
  LayerId layer;
  // As recorded, with the first placement kept, planned anew. 0: no rows.
  double recorded = 0;
  double kept = 0;
  double planned = 0;
};

struct WhatIfExpert {
  ExpertUnit unit;
  uint64_t text = 0;  // rows
  uint64_t image = 0;
  // Its part of the rows of its layer, over an even part: 1 is fair, 0 is none.
  double share = 0;
  double text_share = 0;
  double image_share = 0;
  int32_t num_replicas = 0;  // at the end of the planned course
};

// A worker at the end.
struct WhatIfWorker {
  std::string name;
  // Experts it holds, and those that nobody else has: lost with it. -1: not there in that course.
  int32_t recorded = -1;
  int32_t recorded_alone = -1;
  int32_t planned = -1;
  int32_t planned_alone = -1;
};

// A further replica that would lower the imbalance of its layer by at least a twentieth.
struct WhatIfAdvice {
  ExpertUnit unit;
  int32_t num_replicas = 0;  // then
  double before = 0;         // of its layer, by the rows of the whole recording
  double after = 0;
};

struct WhatIfReport {
  double seconds = 0;
  int64_t num_windows = 0;
  std::array<uint64_t, kNumRowKinds> rows{};
  TraceEnd end = TraceEnd::kStopped;
  int32_t num_experts = 0;
  int32_t num_workers = 0;  // of the planned course at its start
  int32_t replication = 0;
  int64_t expert_bytes = 0;
  WhatIfCourse recorded;
  WhatIfCourse kept;
  WhatIfCourse planned;
  int64_t bytes_loaded = 0;           // by the planned course
  std::vector<double> rebalanced_at;  // seconds from the start
  std::vector<WhatIfLayer> layers;
  std::vector<WhatIfExpert> hottest;  // at most 8, by share
  std::vector<WhatIfWorker> workers;  // by name
  std::vector<WhatIfAdvice> advice;   // at most 8, what helps most first
};

// kInvalidArgument ("trace_empty") for a recording without workers or without rows; kNotFound
// ("worker_unknown") for a name in `without`; kInvalidArgument ("placement_worker") when no worker
// is left; kResourceExhausted ("placement_over_capacity") when the workers of the start have no
// room for one replica of every expert.
absl::StatusOr<WhatIfReport> ReplayWhatIf(const RoutingTrace& trace, const WhatIfOptions& options);

}  // namespace conclave::router_service
