// The router's figures at /metrics (docs/metrics.md).
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/observability/metrics.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

// Most series that the placement, and the numbers of replicas, may take: the first layers of a
// larger model are shown, whole ones only, and always the same.
inline constexpr size_t kPlacementSeriesMax = 2048;

class RouterMetrics {
 public:
  // Null: nothing is counted. `refresh` lets Update be called with what is true now and returns
  // when it has been; it is called at every scrape, until Stop.
  RouterMetrics(observability::Metrics* metrics, std::function<void()> refresh);
  // What is shown stays; `refresh` is not called any more.
  void Stop();

  // One thread at a time. A new core counts from zero.
  void BeginCore() { last_ = {}; }
  // A router that stands by knows of nobody.
  void SetLeading(bool is_leading);
  void Update(const RouterStatus& status, const RouterCounters& counters);

  // Numeric mode of the workers, "bf16" say; empty before one was seen. Any thread.
  std::string dtype() const;

 private:
  // What collectors read; they may outlive this.
  struct Latest {
    mutable Mutex mu;
    RouterStatus status ABSL_GUARDED_BY(mu);
    std::array<PlanTimes, kPlanReasons> plan_times ABSL_GUARDED_BY(mu){};  // of all cores
    double last_done_at ABSL_GUARDED_BY(mu) = 0;  // seconds since 1970; 0: never
    std::string dtype ABSL_GUARDED_BY(mu);
    Mutex refresh_mu;
    std::function<void()> refresh ABSL_GUARDED_BY(refresh_mu);
  };
  struct Counted {
    observability::Counter counter;
    uint64_t RouterCounters::*value;
  };
  void AddPlans(observability::Metrics& metrics);
  void AddWorkers(observability::Metrics& metrics);
  void AddPlacement(observability::Metrics& metrics);
  void CountPlans(const RouterCounters& counters);

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
  observability::Gauge plan_age_;
  observability::Counter uneven_rebalances_, operator_rebalances_;
  std::array<std::array<observability::Counter, kPlanResults>, kPlanReasons> plans_;
  std::vector<Counted> counters_;
  RouterCounters last_;
  const std::shared_ptr<Latest> latest_ = std::make_shared<Latest>();
};

}  // namespace conclave::router_service
