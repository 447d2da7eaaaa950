#include "plan_layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "conclave/base/status.h"
#include "parts.h"

namespace conclave::placement {
namespace {

// Loads below this part of the layer's mean count as this part: an expert that nobody asked for yet
// still has a place.
constexpr double kLoadFloor = 1e-3;

}  // namespace

absl::Status PlanLayout::CheckWorkers() const {
  for (size_t w = 0; w < problem_.workers.size(); ++w) {
    const PlanWorker& worker = problem_.workers[w];
    const bool is_twin =
        std::any_of(problem_.workers.begin(), problem_.workers.begin() + static_cast<ptrdiff_t>(w),
                    [&](const PlanWorker& other) { return other.id == worker.id; });
    if (is_twin || worker.id.value() < 0 || worker.memory_bytes < 0 ||
        !(worker.speed > 0 && std::isfinite(worker.speed))) {
      return InvalidArgument("placement_worker",
                             "worker " + std::to_string(worker.id.value()) +
                                 ": expected distinct ids of at least 0, a speed above 0 and no "
                                 "negative memory");
    }
  }
  const bool has_worker =
      std::any_of(problem_.workers.begin(), problem_.workers.end(),
                  [](const PlanWorker& worker) { return worker.takes_experts; });
  if (!has_worker && !problem_.units.empty()) {
    return InvalidArgument("placement_worker", "expected a worker that takes experts, found none");
  }
  return absl::OkStatus();
}

absl::Status PlanLayout::SortUnits() {
  units_ = problem_.units;
  std::sort(units_.begin(), units_.end(),
            [](const PlanUnit& a, const PlanUnit& b) { return a.unit < b.unit; });
  for (size_t u = 0; u < units_.size(); ++u) {
    if (u > 0 && units_[u].unit == units_[u - 1].unit) {
      return InvalidArgument(
          "placement_duplicate",
          Describe(units_[u].unit) + " is listed twice; expected each unit once");
    }
    if (units_[u].bytes <= 0 || !(units_[u].load >= 0 && std::isfinite(units_[u].load))) {
      return InvalidArgument("placement_unknown_unit",
                             Describe(units_[u].unit) +
                                 ": expected bytes above 0 and a load that is finite and not "
                                 "negative");
    }
    if (layer_units_.empty() || layer_units_.back().layer != units_[u].unit.layer) {
      layer_units_.push_back({units_[u].unit.layer, {}});
    }
    layer_units_.back().units.push_back(u);
  }
  loads_.resize(units_.size());
  for (const LayerUnits& layer : layer_units_) {
    double sum = 0;
    for (const size_t u : layer.units) {
      sum += units_[u].load;
    }
    // Without any load all experts count alike.
    const double mean = sum > 0 ? sum / static_cast<double>(layer.units.size()) : 1.0;
    for (const size_t u : layer.units) {
      loads_[u] = std::max(units_[u].load, mean * (sum > 0 ? kLoadFloor : 1.0));
    }
  }
  return absl::OkStatus();
}

std::optional<std::pair<size_t, int32_t>> PlanLayout::Find(ExpertUnit unit) const {
  const auto it = std::lower_bound(
      units_.begin(), units_.end(), unit,
      [](const PlanUnit& candidate, ExpertUnit wanted) { return candidate.unit < wanted; });
  if (it == units_.end() || it->unit != unit) {
    return std::nullopt;
  }
  const auto layer = std::lower_bound(
      layer_units_.begin(), layer_units_.end(), unit.layer,
      [](const LayerUnits& candidate, LayerId wanted) { return candidate.layer < wanted; });
  const auto expert =
      static_cast<int32_t>(static_cast<size_t>(it - units_.begin()) - layer->units[0]);
  return std::pair{static_cast<size_t>(layer - layer_units_.begin()), expert};
}

int32_t PlanLayout::WorkerIndex(WorkerId id) const {
  for (size_t w = 0; w < problem_.workers.size(); ++w) {
    if (problem_.workers[w].id == id) {
      return static_cast<int32_t>(w);
    }
  }
  return -1;
}

absl::Status PlanLayout::PlacePins() {
  pins_.resize(layer_units_.size());
  for (const PlanPin& pin : problem_.pins) {
    const auto at = Find(pin.unit);
    if (!at.has_value()) {
      return InvalidArgument("placement_unknown_unit",
                             "a pin of " + Describe(pin.unit) + "; expected a unit to place");
    }
    const int32_t worker = WorkerIndex(pin.worker);
    // A pin to a worker that is gone or leaving waits for its return.
    if (worker >= 0 && problem_.workers[Index(worker)].takes_experts) {
      pins_[at->first].emplace_back(at->second, worker);
    }
  }
  return absl::OkStatus();
}

// Divides every worker's memory over the layers in proportion to their experts, so that the layers'
// totals are level too.
void PlanLayout::ShareSlots() {
  for (const PlanUnit& unit : units_) {
    unit_bytes_ = std::max(unit_bytes_, unit.bytes);
  }
  const size_t num_workers = problem_.workers.size();
  std::vector<int64_t> left(num_workers, 0);
  std::vector<double> due(num_workers, 0);
  for (size_t w = 0; w < num_workers; ++w) {
    const PlanWorker& worker = problem_.workers[w];
    left[w] = worker.takes_experts ? worker.memory_bytes / unit_bytes_ : 0;
  }
  memory_ = left;
  const std::vector<int64_t>& all = memory_;
  const auto total = static_cast<double>(std::accumulate(all.begin(), all.end(), int64_t{0}));
  const auto num_units = static_cast<double>(units_.size());
  slots_.assign(layer_units_.size(), std::vector<int32_t>(num_workers, 0));
  double reached = 0;
  int64_t given = 0;
  for (size_t l = 0; l < layer_units_.size(); ++l) {
    const auto num_experts = static_cast<double>(layer_units_[l].units.size());
    reached += num_experts;
    auto open = static_cast<int64_t>(std::floor(total * reached / num_units)) - given;
    for (size_t w = 0; w < num_workers; ++w) {
      due[w] += static_cast<double>(all[w]) * num_experts / num_units;
      const auto whole =
          std::clamp<int64_t>(static_cast<int64_t>(std::floor(due[w])), 0, std::min(open, left[w]));
      slots_[l][w] = static_cast<int32_t>(whole);
      due[w] -= static_cast<double>(whole);
      left[w] -= whole;
      open -= whole;
      given += whole;
    }
    while (open > 0) {
      size_t best = num_workers;
      for (size_t w = 0; w < num_workers; ++w) {
        if (left[w] > 0 && (best == num_workers || due[w] > due[best])) {
          best = w;
        }
      }
      if (best == num_workers) {
        break;
      }
      ++slots_[l][best];
      due[best] -= 1;
      --left[best];
      --open;
      ++given;
    }
  }
}

absl::Status PlanLayout::Prepare() {
  if (options_.replication < 1) {
    return InvalidArgument("replication_unsatisfiable", "replication: expected at least 1, found " +
                                                            std::to_string(options_.replication));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckWorkers());
  CONCLAVE_RETURN_IF_ERROR(SortUnits());
  CONCLAVE_RETURN_IF_ERROR(PlacePins());
  ShareSlots();
  return SumUp();
}

absl::Status PlanLayout::SumUp() {
  for (size_t l = 0; l < layer_units_.size(); ++l) {
    const auto slots = std::accumulate(slots_[l].begin(), slots_[l].end(), int64_t{0});
    const auto experts = static_cast<int64_t>(layer_units_[l].units.size());
    if (slots < experts) {
      return absl::Status(Error(absl::StatusCode::kResourceExhausted, "placement_over_capacity",
                                "layer " + std::to_string(layer_units_[l].layer.value()) +
                                    ": the workers' memory takes " + std::to_string(slots) +
                                    " replicas; expected room for its " + std::to_string(experts) +
                                    " experts"));
    }
    Totals totals;
    totals.taking = static_cast<int32_t>(
        std::count_if(slots_[l].begin(), slots_[l].end(), [](int32_t count) { return count > 0; }));
    totals.replication = static_cast<int32_t>(
        std::min({int64_t{options_.replication}, slots / experts, int64_t{totals.taking}}));
    const double wanted = std::floor(static_cast<double>(experts) * options_.replication *
                                     (1 + options_.extra_share));
    totals.wanted = static_cast<int32_t>(std::min<int64_t>(slots, static_cast<int64_t>(wanted)));
    totals_.push_back(totals);
  }
  return absl::OkStatus();
}

std::vector<Bin> PlanLayout::BinsOf(size_t layer) const {
  std::vector<Bin> bins;
  for (size_t w = 0; w < problem_.workers.size(); ++w) {
    const PlanWorker& worker = problem_.workers[w];
    Bin bin;
    bin.speed = worker.speed;
    bin.host = worker.host;
    bin.capacity = slots_[layer][w];
    bin.takes_experts = worker.takes_experts;
    bins.push_back(std::move(bin));
  }
  return bins;
}

LayerBalance PlanLayout::EmptyLayer(size_t layer) const {
  const std::vector<size_t>& units = layer_units_[layer].units;
  return {{loads_.begin() + static_cast<ptrdiff_t>(units.front()),
           loads_.begin() + static_cast<ptrdiff_t>(units.back()) + 1},
          BinsOf(layer)};
}

std::vector<double> PlanLayout::Affinity(const LayerBalance& balance, size_t layer,
                                         int32_t expert) const {
  std::vector<double> affinity;
  for (const PlanPair& pair : problem_.pairs) {
    if (pair.layer != layer_units_[layer].layer) {
      continue;
    }
    const auto a = Find({pair.layer, pair.a});
    const auto b = Find({pair.layer, pair.b});
    if (!a.has_value() || !b.has_value() || (a->second != expert && b->second != expert)) {
      continue;
    }
    affinity.resize(problem_.workers.size(), 0);
    for (const int32_t bin : balance.BinsOf(a->second == expert ? b->second : a->second)) {
      affinity[Index(bin)] += pair.rows;
    }
  }
  return affinity;
}

}  // namespace conclave::placement
