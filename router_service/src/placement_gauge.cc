#include "placement_gauge.h"

#include <algorithm>
#include <utility>

namespace conclave::router_service {

PlacementGauge::PlacementGauge(std::vector<MoeLayer> layers) : moe_layers_(std::move(layers)) {
  for (const MoeLayer& layer : moe_layers_) {
    layers_.push_back({layer.num_experts, 0, 0});
  }
}

void PlacementGauge::SetWorkers(const std::vector<TraceWorker>& workers) {
  if (workers != workers_) {
    workers_ = workers;
    is_stale_ = true;
  }
}

void PlacementGauge::SetPlacement(const ReplicaMap& placement) {
  placement_ = placement;
  is_stale_ = true;
}

void PlacementGauge::Refresh() {
  is_stale_ = false;
  std::map<WorkerId, size_t> index;
  for (const TraceWorker& worker : workers_) {
    index.emplace(worker.id, index.size());
  }
  holders_.clear();
  for (const MoeLayer& layer : moe_layers_) {
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      std::vector<size_t>& holders = holders_.emplace_back();
      if (const auto it = placement_.find({layer.layer, ExpertId(e)}); it != placement_.end()) {
        for (const WorkerId id : it->second) {
          if (const auto found = index.find(id); found != index.end()) {
            holders.push_back(found->second);
          }
        }
      }
    }
  }
}

void PlacementGauge::Add(std::span<const double> loads, double seconds) {
  if (is_stale_) {
    Refresh();
  }
  const bool all_drain = std::none_of(workers_.begin(), workers_.end(),
                                      [](const TraceWorker& w) { return w.takes_experts; });
  double speed = 0;
  for (const TraceWorker& worker : workers_) {
    speed += worker.takes_experts || all_drain ? worker.speed : 0;
  }
  size_t u = 0;
  for (Layer& layer : layers_) {
    std::vector<double> levels(workers_.size(), 0);
    double served = 0;
    for (int32_t e = 0; e < layer.num_experts; ++e, ++u) {
      const std::vector<size_t>& holders = holders_[u];
      rows_ += loads[u] * seconds;
      if (holders.empty()) {
        unserved_ += loads[u] * seconds;
        continue;
      }
      served += loads[u];
      for (const size_t worker : holders) {
        levels[worker] += loads[u] / static_cast<double>(holders.size()) / workers_[worker].speed;
      }
    }
    if (served > 0) {
      const double peak = *std::max_element(levels.begin(), levels.end());
      // Ratio * rows, where ratio is peak * speed / served.
      layer.ratios += peak * speed * seconds;
      layer.served += served * seconds;
    }
  }
}

double PlacementGauge::ImbalanceOf(size_t layer) const {
  const Layer& what = layers_[layer];
  return what.served > 0 ? what.ratios / what.served : 0;
}

double PlacementGauge::Imbalance() const {
  double sum = 0;
  int32_t num = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    if (layers_[l].served > 0) {
      sum += ImbalanceOf(l);
      ++num;
    }
  }
  return num > 0 ? sum / num : 0;
}

double PlacementGauge::Unserved() const { return rows_ > 0 ? unserved_ / rows_ : 0; }

}  // namespace conclave::router_service
