// The planner: which worker holds which expert. Pure and deterministic: the same problem gives the
// same plan, on any machine, so a plan can be replayed, tried out (dry run) and tested.
//
// Every MoE layer is balanced by itself, because a row waits for the slowest worker of its layer. A
// replica of an expert is assumed to take an even share of the expert's load; frontends that choose
// by load do better, never worse (SplitShares says how much). Sources: the replication and packing
// of DeepSeek's EPLB; data-plane.md section 12 for the rest.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/base/ids.h"
#include "conclave/placement/placement.h"

namespace conclave::placement {

struct PlanWorker {
  WorkerId id;
  // Failure domain: two replicas of an expert stand on different hosts where that is possible.
  int32_t host = 0;
  double speed = 1.0;         // relative to the others, > 0
  int64_t memory_bytes = 0;   // for experts
  bool takes_experts = true;  // false: draining, what it holds has to go elsewhere
};

struct PlanUnit {
  ExpertUnit unit;
  double load = 0;    // rows per second or any other measure of work, >= 0
  int64_t bytes = 0;  // in a worker's memory, > 0
};

// A replica of `unit` stays on `worker`, or is brought there.
struct PlanPin {
  ExpertUnit unit;
  WorkerId worker;
};

// Rows that go to both experts of a layer: where loads are about equal, such experts are put on one
// worker, which then answers a row alone.
struct PlanPair {
  LayerId layer;
  ExpertId a, b;
  double rows = 0;
};

struct PlanProblem {
  std::vector<PlanWorker> workers;  // those that live; ids distinct
  std::vector<PlanUnit> units;      // distinct
  std::vector<PlanPin> pins;
  std::vector<PlanPair> pairs;
};

struct PlanOptions {
  int32_t replication = 2;     // replicas of every expert, as far as workers and memory allow
  double extra_share = 0.125;  // further replicas of hot experts, as a share of all others
  // Of PlanIncremental.
  double move_share = 0.10;  // at most this part of all replicas moves, at least one replica
  int64_t move_bytes = int64_t{1} << 30;  // and at most so many bytes, but for one replica
  // A further replica of an expert is worth its move only if the layer's highest load falls by this
  // part.
  double hysteresis = 0.05;
  // A full plan replaces the incremental one, budget or not, when that stays above it by this
  // factor.
  double full_factor = 1.10;
};

struct Plan {
  std::vector<Replica> replicas;  // by unit; primary order of Placement::WorkersOf
  // Mean over layers of max / mean of load per speed over workers that take experts: 1 is perfect.
  // Before: of what is left of the current placement, 0 when some expert has no replica.
  double ratio_before = 0;
  double ratio_after = 0;
  int32_t num_replicas_moved = 0;  // loaded for balance
  int32_t num_replicas_needed =
      0;  // loaded because they were missing, or their worker drains or is pinned
  int64_t bytes_loaded = 0;  // of both
  bool is_full = false;      // planned from nothing
};

// From nothing. kInvalidArgument "placement_worker" (no worker, a twin, a speed or memory out of
// range), "placement_duplicate", "placement_unknown_unit" or "placement_bad_worker" (a pin),
// "replication_unsatisfiable" (replication < 1); kResourceExhausted "placement_over_capacity" when
// memory does not hold every expert once.
absl::StatusOr<Plan> PlanFull(const PlanProblem& problem, const PlanOptions& options);

// From `current`, whose replicas on unknown workers are gone and on draining ones are to go: first
// what is missing, then balance, as far as the budget of moves reaches. Errors as PlanFull.
absl::StatusOr<Plan> PlanIncremental(const PlanProblem& problem, std::span<const Replica> current,
                                     const PlanOptions& options);

// Shares of every replica of its unit's load that level the workers of each layer: what a frontend
// that chooses by load converges to. Of one unit they sum to 1. `replicas` as in Plan.
std::vector<double> SplitShares(const PlanProblem& problem, std::span<const Replica> replicas);

// Plan::ratio_after of any replicas; with `shares` (one per replica) instead of even ones when not
// empty.
double ImbalanceOf(const PlanProblem& problem, std::span<const Replica> replicas,
                   std::span<const double> shares);

}  // namespace conclave::placement
