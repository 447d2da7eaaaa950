#include "dispatch_metrics.h"

#include <algorithm>
#include <array>
#include <map>
#include <tuple>
#include <utility>

#include "conclave/service/address.h"

namespace conclave::cli {
namespace {

using frontend::BucketCounts;
using frontend::DispatchStage;
using frontend::FailoverReason;
using frontend::WorkerDispatch;
using observability::Metrics;
using Kind = observability::Metrics::Kind;
using Sample = observability::Metrics::Sample;
using HistogramSample = observability::Metrics::HistogramSample;

std::vector<double> BoundsInSeconds() {
  std::vector<double> bounds;
  bounds.reserve(frontend::kDispatchBounds.size());
  for (const std::chrono::microseconds bound : frontend::kDispatchBounds) {
    // A quotient of whole numbers: 5e-06 as it is written, which a product would miss.
    bounds.push_back(static_cast<double>(bound.count()) / 1e6);
  }
  return bounds;
}

void Add(BucketCounts& to, const BucketCounts& from) {
  std::transform(to.counts.begin(), to.counts.end(), from.counts.begin(), to.counts.begin(),
                 std::plus<>());
  to.sum += from.sum;
}

HistogramSample Histogram(observability::Labels labels, const BucketCounts& buckets) {
  return {std::move(labels), {buckets.counts.begin(), buckets.counts.end()}, buckets.sum};
}

// Whose label a worker's time has: its own id for the first kDispatchWorkersMax that were met.
class TimeLabels {
 public:
  const std::string& Of(WorkerId worker) {
    const auto [it, is_new] = labels_.try_emplace(worker);
    if (is_new) {
      it->second = labels_.size() <= kDispatchWorkersMax ? std::to_string(worker.value()) : "other";
    }
    return it->second;
  }

 private:
  std::map<WorkerId, std::string> labels_;
};

std::vector<HistogramSample> StageTimes(const std::vector<WorkerDispatch>& workers) {
  TimeLabels labels;
  std::map<std::string, std::array<BucketCounts, frontend::kDispatchStages>> sums;
  for (const WorkerDispatch& worker : workers) {
    auto& sum = sums[labels.Of(worker.worker)];
    for (size_t stage = 0; stage < sum.size(); ++stage) {
      Add(sum[stage], worker.stages[stage]);
    }
  }
  std::vector<HistogramSample> samples;
  for (const auto& [worker, stages] : sums) {
    for (size_t stage = 0; stage < stages.size(); ++stage) {
      samples.push_back(Histogram(
          {{"worker", worker}, {"stage", std::string(NameOf(static_cast<DispatchStage>(stage)))}},
          stages[stage]));
    }
  }
  return samples;
}

std::vector<HistogramSample> RoundTrips(const std::vector<WorkerDispatch>& workers) {
  TimeLabels labels;
  std::map<std::string, BucketCounts> sums;
  for (const WorkerDispatch& worker : workers) {
    Add(sums[labels.Of(worker.worker)], worker.round_trip);
  }
  std::vector<HistogramSample> samples;
  samples.reserve(sums.size());
  for (const auto& [worker, buckets] : sums) {
    samples.push_back(Histogram({{"worker", worker}}, buckets));
  }
  return samples;
}

// Sums over the carriers of each worker.
std::vector<Sample> PerWorker(const std::vector<WorkerDispatch>& workers,
                              uint64_t WorkerDispatch::*value) {
  std::map<WorkerId, uint64_t> sums;
  for (const WorkerDispatch& worker : workers) {
    sums[worker.worker] += worker.*value;
  }
  std::vector<Sample> samples;
  samples.reserve(sums.size());
  for (const auto& [worker, sum] : sums) {
    samples.push_back({{{"worker", std::to_string(worker.value())}}, static_cast<double>(sum)});
  }
  return samples;
}

std::vector<Sample> Failovers(const std::vector<WorkerDispatch>& workers) {
  std::map<WorkerId, std::array<uint64_t, frontend::kFailoverReasons>> sums;
  for (const WorkerDispatch& worker : workers) {
    auto& sum = sums[worker.worker];
    std::transform(sum.begin(), sum.end(), worker.failovers.begin(), sum.begin(), std::plus<>());
  }
  std::vector<Sample> samples;
  for (const auto& [worker, sum] : sums) {
    for (size_t reason = 0; reason < sum.size(); ++reason) {
      samples.push_back({{{"worker", std::to_string(worker.value())},
                          {"reason", std::string(NameOf(static_cast<FailoverReason>(reason)))}},
                         static_cast<double>(sum[reason])});
    }
  }
  return samples;
}

std::vector<Sample> Bytes(const std::vector<WorkerDispatch>& workers, const std::string& frontend) {
  std::vector<Sample> samples;
  for (const WorkerDispatch& worker : workers) {
    const std::string id = std::to_string(worker.worker.value());
    samples.push_back({{{"src", frontend},
                        {"dst", id},
                        {"direction", "dispatch"},
                        {"transport", worker.transport}},
                       static_cast<double>(worker.bytes_dispatched)});
    samples.push_back({{{"src", id},
                        {"dst", frontend},
                        {"direction", "combine"},
                        {"transport", worker.transport}},
                       static_cast<double>(worker.bytes_combined)});
  }
  return samples;
}

std::vector<Sample> LeastBytes(const std::vector<WorkerDispatch>& workers) {
  std::vector<Sample> samples;
  samples.reserve(workers.size());
  for (const WorkerDispatch& worker : workers) {
    samples.push_back(
        {{{"worker", std::to_string(worker.worker.value())}, {"transport", worker.transport}},
         static_cast<double>(worker.bytes_least)});
  }
  return samples;
}

std::vector<Sample> Calls(const frontend::DispatchStats& now) {
  const std::pair<const char*, uint64_t> values[] = {
      {"first", now.calls},          {"retry", now.retries},    {"hedge", now.hedges},
      {"hedge_won", now.hedges_won}, {"timeout", now.timeouts}, {"link_lost", now.link_losses},
      {"refused", now.refusals},     {"waited", now.waits},     {"rescued", now.rescues}};
  std::vector<Sample> samples;
  samples.reserve(std::size(values));
  for (const auto& [what, value] : values) {
    samples.push_back({{{"event", what}}, static_cast<double>(value)});
  }
  return samples;
}

// Empty within a process.
std::string HostOf(const std::string& data_address) {
  const absl::StatusOr<service::Address> address = service::ParseAddress(data_address);
  return address.ok() ? address->host : "";
}

}  // namespace

void AddDispatchMetrics(Metrics& metrics, const std::string& frontend,
                        const std::function<DispatchReading()>& read) {
  const auto per_worker = [&](const char* name, const char* help, auto samples) {
    metrics.AddCollector(name, help, Kind::kCounter,
                         [read, samples] { return samples(read().workers); });
  };
  const std::vector<double> bounds = BoundsInSeconds();
  metrics.AddCollector("moe_dispatch_calls_total",
                       "Calls to expert workers, by what became of them.", Kind::kCounter,
                       [read] { return Calls(read().stats); });
  metrics.AddHistogramCollector("moe_dispatch_seconds",
                                "Where the time of an answered call went, by stage.", bounds,
                                [read] { return StageTimes(read().workers); });
  metrics.AddHistogramCollector("moe_dispatch_round_trip_seconds",
                                "From sending a call to seeing its answer.", bounds,
                                [read] { return RoundTrips(read().workers); });
  per_worker("moe_dispatch_bytes_total", "Bytes of calls to workers and of their answers.",
             [frontend](const auto& workers) { return Bytes(workers, frontend); });
  per_worker("moe_dispatch_least_bytes_total",
             "Bytes that the rows of these calls and answers need at least.", LeastBytes);
  per_worker("moe_dispatch_tokens_total", "Rows of calls that were sent.",
             [](const auto& workers) { return PerWorker(workers, &WorkerDispatch::rows); });
  per_worker("moe_redispatched_tokens_total",
             "Rows that had to be sent again because this worker did not answer.",
             [](const auto& workers) { return PerWorker(workers, &WorkerDispatch::rows_resent); });
  per_worker("moe_failover_total",
             "Calls that had to be sent again because this worker did not answer, by reason.",
             Failovers);
  metrics.AddHistogramCollector(
      "moe_failover_recovery_seconds", "From the first sending of such a call to its answer.",
      bounds, [read] { return std::vector<HistogramSample>{Histogram({}, read().recovery)}; });
  metrics.AddCollector(
      "moe_degraded_tokens_total",
      "Rows that the frontend computed itself, as no worker served their expert.", Kind::kCounter,
      [read] {
        return std::vector<Sample>{{{}, static_cast<double>(read().stats.degraded_rows)}};
      });
}

void AddWorkerInfo(Metrics& metrics,
                   const std::function<std::vector<frontend::MemberLink>()>& links) {
  metrics.AddCollector(
      "moe_worker_info", "1; the labels name a worker and how it is reached.", Kind::kGauge,
      [links] {
        std::vector<Sample> samples;
        for (const frontend::MemberLink& link : links()) {
          samples.push_back({{{"worker", std::to_string(link.worker.value())},
                              {"name", link.name},
                              {"host", HostOf(link.data_address)},
                              {"channel", link.carrier == nullptr ? "none" : link.carrier}},
                             1});
        }
        return samples;
      });
}

}  // namespace conclave::cli
