// Where each expert lives. A Placement is immutable: a change is a new one with a larger epoch,
// shared between threads as std::shared_ptr<const Placement>.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/base/ids.h"

namespace conclave::placement {

// One (layer, expert) unit to place.
struct ExpertUnit {
  LayerId layer;
  ExpertId expert;
  friend auto operator<=>(const ExpertUnit&, const ExpertUnit&) = default;
};

struct Replica {
  ExpertUnit unit;
  WorkerId worker;
};

class Placement {
 public:
  // Fails with kInvalidArgument ("placement_uncovered", "placement_duplicate",
  // "placement_unknown_unit", "placement_bad_worker" for a negative id) unless every unit is listed
  // once and has at least one replica, and none has two on one worker. No units at all (a dense
  // model) is a placement too.
  static absl::StatusOr<Placement> Create(Epoch epoch, std::vector<ExpertUnit> units,
                                          const std::vector<Replica>& replicas);

  // As Create, but units may lack replicas: what a cluster has while workers are missing.
  static absl::StatusOr<Placement> CreatePartial(Epoch epoch, std::vector<ExpertUnit> units,
                                                 const std::vector<Replica>& replicas);

  Epoch epoch() const { return epoch_; }
  std::span<const ExpertUnit> units() const { return units_; }

  // Workers to which rows for `unit` may be dispatched, in planner order; empty for an unknown unit
  // and, in a partial placement, for one that nobody serves.
  std::span<const WorkerId> WorkersOf(ExpertUnit unit) const;

  // Units of one worker, ascending.
  std::vector<ExpertUnit> UnitsOf(WorkerId worker) const;

  // Whether every unit has a replica.
  bool is_complete() const;

 private:
  Placement() = default;
  Epoch epoch_;
  std::vector<ExpertUnit> units_;  // ascending
  std::vector<uint32_t> offsets_;  // [units + 1] into workers_
  std::vector<WorkerId> workers_;
};

// Splits the units evenly over workers 0..num_workers-1, one replica each: per layer, expert e goes
// to worker (e + i) mod num_workers where i counts MoE layers, so that no worker gets the surplus
// of every layer. Units are distinct, expert ids not negative, num_workers >= 1.
Placement SpreadEvenly(Epoch epoch, std::vector<ExpertUnit> units, int32_t num_workers);

}  // namespace conclave::placement
