// A problem of placement with indices instead of ids: units by layer, and how many replicas of each
// layer a worker takes.
#pragma once

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "conclave/placement/planner.h"
#include "layer_balance.h"

namespace conclave::placement {

class PlanLayout {
 public:
  // Both outlive the layout.
  PlanLayout(const PlanProblem& problem, const PlanOptions& options)
      : problem_(problem), options_(options) {}

  // Checks the problem; the errors of PlanFull. Everything else comes after it.
  absl::Status Prepare();

  size_t num_layers() const { return layer_units_.size(); }
  size_t num_workers() const { return problem_.workers.size(); }
  const PlanWorker& worker(int32_t index) const {
    return problem_.workers[static_cast<size_t>(index)];
  }
  const PlanUnit& unit(size_t layer, int32_t expert) const {
    return units_[layer_units_[layer].units[static_cast<size_t>(expert)]];
  }
  // > 0: what nobody asked for yet counts a little.
  double load(size_t layer, int32_t expert) const {
    return loads_[layer_units_[layer].units[static_cast<size_t>(expert)]];
  }
  // Replicas of `layer` that a worker's share of memory takes, and of all layers that its memory
  // takes.
  int32_t slots(size_t layer, size_t worker) const { return slots_[layer][worker]; }
  int64_t memory(size_t worker) const { return memory_[worker]; }
  int64_t unit_bytes() const { return unit_bytes_; }
  // (expert, worker) of a layer.
  const std::vector<std::pair<int32_t, int32_t>>& pins(size_t layer) const { return pins_[layer]; }

  std::optional<std::pair<size_t, int32_t>> Find(ExpertUnit unit) const;  // layer, expert
  int32_t WorkerIndex(WorkerId id) const;                                 // -1: unknown
  LayerBalance EmptyLayer(size_t layer) const;
  // Replicas that every expert of a layer gets: the option, as far as workers and memory allow.
  int32_t Replication(size_t layer) const { return totals_[layer].replication; }
  // Replicas that a layer is given in all.
  int32_t WantedReplicas(size_t layer) const { return totals_[layer].wanted; }
  // Workers with room for the layer.
  int32_t NumTaking(size_t layer) const { return totals_[layer].taking; }
  // Rows that `expert` shares with the experts on each worker; empty when it shares none.
  std::vector<double> Affinity(const LayerBalance& balance, size_t layer, int32_t expert) const;

 private:
  struct LayerUnits {
    LayerId layer;
    std::vector<size_t> units;  // into units_, ascending
  };

  // Over the workers; asked for often.
  struct Totals {
    int32_t replication = 0;
    int32_t wanted = 0;
    int32_t taking = 0;
  };

  absl::Status CheckWorkers() const;
  absl::Status SortUnits();
  absl::Status PlacePins();
  void ShareSlots();
  absl::Status SumUp();
  std::vector<Bin> BinsOf(size_t layer) const;

  const PlanProblem& problem_;
  const PlanOptions& options_;
  std::vector<PlanUnit> units_;
  std::vector<double> loads_;  // of units_, floored
  std::vector<LayerUnits> layer_units_;
  std::vector<std::vector<int32_t>> slots_;                     // [layers][workers]
  std::vector<std::vector<std::pair<int32_t, int32_t>>> pins_;  // [layers]: expert, worker
  std::vector<Totals> totals_;                                  // [layers]
  std::vector<int64_t> memory_;                                 // per worker, in replicas
  int64_t unit_bytes_ = 1;
};

}  // namespace conclave::placement
