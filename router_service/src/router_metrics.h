// The router's figures at /metrics (docs/metrics.md).
#pragma once

#include <array>

#include "conclave/observability/metrics.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

class RouterMetrics {
 public:
  // Null: nothing is counted.
  explicit RouterMetrics(observability::Metrics* metrics);

  // One thread at a time. A new core counts from zero.
  void BeginCore() { last_ = {}; }
  void SetLeading(bool is_leading) { is_leading_.Set(is_leading ? 1 : 0); }
  void Update(const RouterStatus& status, const RouterCounters& counters);

 private:
  struct Counted {
    observability::Counter counter;
    uint64_t RouterCounters::*value;
  };
  observability::Gauge term_;
  observability::Gauge epoch_;
  observability::Gauge is_blocked_;
  observability::Gauge is_leading_;
  observability::Gauge replication_wanted_;
  observability::Gauge replication_lowest_;
  observability::Gauge placement_age_;
  observability::Gauge imbalance_planned_;
  observability::Gauge imbalance_seen_;
  observability::Gauge frontends_;
  std::array<observability::Gauge, 4> workers_;  // live, suspect, draining, distrusted
  std::vector<Counted> counters_;
  RouterCounters last_;
};

}  // namespace conclave::router_service
