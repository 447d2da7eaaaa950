// How evenly placements spread rows over workers, summed over time. The measure is that of
// placement::ImbalanceOf (max / mean of load per speed, even shares), with what that does not have:
// single layers, experts that nobody serves, and sums.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "conclave/router_service/routing_trace.h"
#include "planning.h"

namespace conclave::router_service {

// One thread.
class PlacementGauge {
 public:
  explicit PlacementGauge(std::vector<MoeLayer> layers);

  // Replicas on others count as not there.
  void SetWorkers(const std::vector<TraceWorker>& workers);
  void SetPlacement(const ReplicaMap& placement);

  // `seconds` with these rows per second, one per expert in the order of the layers.
  void Add(std::span<const double> loads, double seconds);

  // Of layer number `layer`, by rows; 0 when none of its rows was served.
  double ImbalanceOf(size_t layer) const;
  // Mean over the layers that had rows.
  double Imbalance() const;
  // Part of all rows.
  double Unserved() const;

 private:
  struct Layer {
    int32_t num_experts = 0;
    double ratios = 0;  // sum of ratio * rows
    double served = 0;  // rows
  };
  void Refresh();

  const std::vector<MoeLayer> moe_layers_;
  std::vector<TraceWorker> workers_;
  ReplicaMap placement_;
  bool is_stale_ = true;                      // holders_ is not of workers_ and placement_
  std::vector<std::vector<size_t>> holders_;  // per expert, indices of workers
  std::vector<Layer> layers_;
  double rows_ = 0;
  double unserved_ = 0;
};

}  // namespace conclave::router_service
