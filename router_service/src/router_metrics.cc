#include "router_metrics.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <string>
#include <utility>

#include "conclave/service/address.h"

namespace conclave::router_service {
namespace {

using observability::Labels;
using observability::Metrics;
using Sample = observability::Metrics::Sample;

// As the picture of the cluster names them.
constexpr const char* kWorkerStates[] = {"joining", "live", "suspect", "draining", "drained"};

const char* StateOf(const WorkerStatus& worker) {
  switch (worker.member.state) {
    case MemberState::kSuspect:
      return "suspect";
    case MemberState::kDraining:
      return worker.is_drained ? "drained" : "draining";
    case MemberState::kLive:
      break;
  }
  return worker.num_experts == 0 ? "joining" : "live";
}

std::string IdOf(const WorkerStatus& worker) { return std::to_string(worker.member.id.value()); }

Labels NamesOf(const WorkerStatus& worker) {
  const absl::StatusOr<service::Address> address =
      service::ParseAddress(worker.member.data_address);
  return {{"worker", IdOf(worker)},
          {"name", worker.member.name},
          {"host", address.ok() ? address->host : ""}};
}

Labels UnitLabels(ExpertUnit unit) {
  return {{"layer", std::to_string(unit.layer.value())},
          {"expert", std::to_string(unit.expert.value())}};
}

// The first experts, in whole layers, whose `series` together are at most kPlacementSeriesMax.
template <typename Fn>
std::span<const ExpertStatus> FirstLayers(const std::vector<ExpertStatus>& experts,
                                          const Fn& series) {
  size_t end = 0;
  size_t sum = 0;
  for (size_t i = 0; i < experts.size(); ++i) {
    if (i > 0 && experts[i].unit.layer != experts[i - 1].unit.layer) {
      end = i;
    }
    sum += series(experts[i]);
    if (sum > kPlacementSeriesMax) {
      return {experts.data(), end};
    }
  }
  return experts;
}

}  // namespace

RouterMetrics::RouterMetrics(Metrics* metrics, std::function<void()> refresh) {
  if (metrics == nullptr) {
    return;
  }
  {
    MutexLock lock(latest_->refresh_mu);
    latest_->refresh = std::move(refresh);
  }
  metrics->AddRefresh([latest = latest_] {
    // Held meanwhile: Stop waits for a scrape that is under way.
    MutexLock lock(latest->refresh_mu);
    if (latest->refresh) {
      latest->refresh();
    }
  });
  AddPlans(*metrics);
  AddWorkers(*metrics);
  AddPlacement(*metrics);
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
  count("moe_rebalance_moved_bytes_total", "Bytes of the weights that workers loaded for plans.",
        &RouterCounters::bytes_loaded);
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

void RouterMetrics::AddPlans(Metrics& metrics) {
  const auto rebalances = [&](const char* reason) {
    return metrics.AddCounter("moe_rebalances_total", "Plans for balance that were made.",
                              {{"reason", reason}});
  };
  uneven_rebalances_ = rebalances("uneven");
  operator_rebalances_ = rebalances("operator");
  for (size_t reason = 0; reason < kPlanReasons; ++reason) {
    for (size_t result = 0; result < kPlanResults; ++result) {
      plans_[reason][result] =
          metrics.AddCounter("moe_plans_total", "Plans that ended.",
                             {{"reason", std::string(NameOf(static_cast<PlanReason>(reason)))},
                              {"result", std::string(NameOf(static_cast<PlanResult>(result)))}});
    }
  }
  plan_age_ = metrics.AddGauge("moe_plan_age_seconds",
                               "Since the plan under way was made; 0: there is none.");
  metrics.AddHistogramCollector(
      "moe_rebalance_seconds", "From a plan to the publication of its goal.", kPlanTimeBounds,
      [latest = latest_] {
        MutexLock lock(latest->mu);
        std::vector<Metrics::HistogramSample> samples;
        for (size_t reason = 0; reason < kPlanReasons; ++reason) {
          const PlanTimes& times = latest->plan_times[reason];
          samples.push_back({{{"reason", std::string(NameOf(static_cast<PlanReason>(reason)))}},
                             {times.counts.begin(), times.counts.end()},
                             times.sum});
        }
        return samples;
      });
  metrics.AddCollector("moe_rebalance_last_success_timestamp_seconds",
                       "When the last plan was done, since 1970.", Metrics::Kind::kGauge,
                       [latest = latest_] {
                         MutexLock lock(latest->mu);
                         std::vector<Sample> samples;
                         if (latest->last_done_at > 0) {
                           samples.push_back({{}, latest->last_done_at});
                         }
                         return samples;
                       });
}

void RouterMetrics::AddWorkers(Metrics& metrics) {
  // `add(worker, samples)` for every worker that is a member now.
  const auto family = [&](const char* name, const char* help, auto add) {
    metrics.AddCollector(name, help, Metrics::Kind::kGauge, [latest = latest_, add] {
      MutexLock lock(latest->mu);
      std::vector<Sample> samples;
      for (const WorkerStatus& worker : latest->status.workers) {
        add(worker, samples);
      }
      return samples;
    });
  };
  family("moe_worker_info", "1; the labels name a worker.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           samples.push_back({NamesOf(worker), 1});
         });
  family("moe_worker_up", "1: the worker is heard in time; 0: its heartbeats are missing.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           samples.push_back(
               {NamesOf(worker), worker.member.state == MemberState::kSuspect ? 0.0 : 1.0});
         });
  family("moe_worker_state", "1 for the state that the worker is in.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           const std::string is = StateOf(worker);
           for (const char* state : kWorkerStates) {
             samples.push_back(
                 {{{"worker", IdOf(worker)}, {"state", state}}, is == state ? 1.0 : 0.0});
           }
         });
  family("moe_worker_queue_depth", "Rows that wait at the worker, by its last heartbeat.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           samples.push_back({{{"worker", IdOf(worker)}}, static_cast<double>(worker.queued_rows)});
         });
  family("moe_worker_busy_ratio", "Share of time that the worker computes, by its last heartbeat.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           samples.push_back({{{"worker", IdOf(worker)}}, worker.busy_ratio});
         });
  family("moe_worker_heartbeat_age_seconds", "Since the worker was last heard.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           samples.push_back(
               {{{"worker", IdOf(worker)}}, static_cast<double>(worker.last_heartbeat_ms) / 1000});
         });
  family("moe_worker_memory_bytes", "Memory of experts.",
         [](const WorkerStatus& worker, std::vector<Sample>& samples) {
           samples.push_back({{{"worker", IdOf(worker)}, {"kind", "budget"}},
                              static_cast<double>(worker.memory_bytes)});
           samples.push_back({{{"worker", IdOf(worker)}, {"kind", "used"}},
                              static_cast<double>(worker.memory_used_bytes)});
         });
}

void RouterMetrics::AddPlacement(Metrics& metrics) {
  metrics.AddCollector(
      "moe_expert_placement", "1 for every replica that is routed to.", Metrics::Kind::kGauge,
      [latest = latest_] {
        MutexLock lock(latest->mu);
        std::vector<Sample> samples;
        for (const ExpertStatus& expert : FirstLayers(
                 latest->status.experts, [](const ExpertStatus& e) { return e.workers.size(); })) {
          for (const WorkerId worker : expert.workers) {
            Labels labels = UnitLabels(expert.unit);
            labels["worker"] = std::to_string(worker.value());
            samples.push_back({std::move(labels), 1});
          }
        }
        return samples;
      });
  metrics.AddCollector(
      "moe_expert_replicas", "Replicas that are routed to; 0: nobody serves the expert.",
      Metrics::Kind::kGauge, [latest = latest_] {
        MutexLock lock(latest->mu);
        std::vector<Sample> samples;
        for (const ExpertStatus& expert :
             FirstLayers(latest->status.experts, [](const ExpertStatus&) { return size_t{1}; })) {
          samples.push_back({UnitLabels(expert.unit), static_cast<double>(expert.workers.size())});
        }
        return samples;
      });
}

void RouterMetrics::Stop() {
  MutexLock lock(latest_->refresh_mu);
  latest_->refresh = nullptr;
}

void RouterMetrics::SetLeading(bool is_leading) {
  is_leading_.Set(is_leading ? 1 : 0);
  if (is_leading) {
    return;
  }
  for (const observability::Gauge& workers : workers_) {
    workers.Set(0);
  }
  frontends_.Set(0);
  MutexLock lock(latest_->mu);
  latest_->status = {};
}

std::string RouterMetrics::dtype() const {
  MutexLock lock(latest_->mu);
  return latest_->dtype;
}

void RouterMetrics::CountPlans(const RouterCounters& counters) {
  const auto grown = [](uint64_t now, uint64_t before) {
    return static_cast<double>(now - before);
  };
  operator_rebalances_.Add(grown(counters.operator_rebalances, last_.operator_rebalances));
  uneven_rebalances_.Add(grown(counters.rebalances - counters.operator_rebalances,
                               last_.rebalances - last_.operator_rebalances));
  bool is_one_done = false;
  MutexLock lock(latest_->mu);
  for (size_t reason = 0; reason < kPlanReasons; ++reason) {
    for (size_t result = 0; result < kPlanResults; ++result) {
      plans_[reason][result].Add(
          grown(counters.plans[reason][result], last_.plans[reason][result]));
    }
    const auto done = static_cast<size_t>(PlanResult::kDone);
    is_one_done = is_one_done || counters.plans[reason][done] > last_.plans[reason][done];
    const PlanTimes& now = counters.plan_times[reason];
    const PlanTimes& before = last_.plan_times[reason];
    PlanTimes& sum = latest_->plan_times[reason];
    for (size_t i = 0; i < now.counts.size(); ++i) {
      sum.counts[i] += now.counts[i] - before.counts[i];
    }
    sum.sum += now.sum - before.sum;
  }
  if (is_one_done) {
    latest_->last_done_at =
        std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
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
  plan_age_.Set(static_cast<double>(status.plan_age_ms) / 1000);
  CountPlans(counters);
  last_ = counters;
  MutexLock lock(latest_->mu);
  latest_->status = status;
  if (!status.workers.empty()) {
    latest_->dtype = status.workers.front().member.numeric.dtype;
  }
}

}  // namespace conclave::router_service
