#include "router_metrics.h"

#include <string>

namespace conclave::router_service {

RouterMetrics::RouterMetrics(observability::Metrics* metrics) {
  if (metrics == nullptr) {
    return;
  }
  term_ = metrics->AddGauge("conclave_router_term", "Term of this router.");
  epoch_ = metrics->AddGauge("conclave_placement_epoch", "Number of the epoch within its term.");
  is_leading_ =
      metrics->AddGauge("conclave_router_leading", "1: this router commands; 0: it stands by.");
  is_blocked_ = metrics->AddGauge("conclave_router_blocked",
                                  "1: the router cannot change anything now; its log says why.");
  replication_wanted_ =
      metrics->AddGauge("moe_replication_wanted", "Replicas of every expert that are wanted.");
  replication_lowest_ =
      metrics->AddGauge("moe_replication_lowest", "Fewest replicas that any expert has.");
  placement_age_ = metrics->AddGauge("moe_placement_age_seconds", "Since the last epoch.");
  imbalance_planned_ = metrics->AddGauge("moe_placement_imbalance_planned",
                                         "Mean over layers of max / mean load, as planned.");
  imbalance_seen_ = metrics->AddGauge("moe_placement_imbalance_seen", "The same as measured.");
  frontends_ = metrics->AddGauge("conclave_router_frontends", "Frontends that are connected.");
  const char* const states[] = {"live", "suspect", "draining", "distrusted"};
  for (size_t i = 0; i < workers_.size(); ++i) {
    workers_[i] =
        metrics->AddGauge("conclave_router_workers", "Workers by state.", {{"state", states[i]}});
  }
  const auto count = [&](const char* name, const char* help, uint64_t RouterCounters::*value) {
    counters_.push_back({metrics->AddCounter(name, help), value});
  };
  count("conclave_router_epochs_total", "Placements that were published.", &RouterCounters::epochs);
  count("moe_rebalances_total", "Plans for balance.", &RouterCounters::rebalances);
  count("moe_replicas_loaded_total", "Replicas that workers loaded.",
        &RouterCounters::replicas_loaded);
  count("moe_replicas_retired_total", "Replicas that workers dropped.",
        &RouterCounters::replicas_retired);
  count("moe_replicas_refused_total", "Replicas that were not what the others are.",
        &RouterCounters::replicas_refused);
  count("moe_plans_cancelled_total", "Plans given up for want of room.",
        &RouterCounters::plans_cancelled);
  count("conclave_router_workers_lost_total", "Workers that died or went silent.",
        &RouterCounters::workers_lost);
  count("conclave_router_reports_ignored_total", "Messages out of order or out of date.",
        &RouterCounters::reports_ignored);
}

void RouterMetrics::Update(const RouterStatus& status, const RouterCounters& counters) {
  term_.Set(status.router.term);
  epoch_.Set(static_cast<double>(status.epoch.value() & UINT32_MAX));
  is_blocked_.Set(status.blocked.empty() ? 0 : 1);
  replication_wanted_.Set(status.replication_wanted);
  replication_lowest_.Set(status.replication_lowest);
  placement_age_.Set(static_cast<double>(status.placement_age_ms) / 1000);
  imbalance_planned_.Set(status.imbalance_planned);
  imbalance_seen_.Set(status.imbalance_seen);
  frontends_.Set(static_cast<double>(status.frontends.size()));
  std::array<int, 4> num_workers{};
  for (const WorkerStatus& worker : status.workers) {
    ++num_workers[static_cast<size_t>(worker.member.state)];
    num_workers[3] += worker.is_distrusted ? 1 : 0;
  }
  for (size_t i = 0; i < workers_.size(); ++i) {
    workers_[i].Set(num_workers[i]);
  }
  for (const Counted& counted : counters_) {
    counted.counter.Add(static_cast<double>(counters.*counted.value - last_.*counted.value));
  }
  last_ = counters;
}

}  // namespace conclave::router_service
