#include "load_table.h"

#include <numeric>

namespace conclave::router_service {
namespace {

constexpr double kBriefSeconds = 10;
constexpr double kLastingSeconds = 600;

double Sum(const RowKinds& rows) { return std::accumulate(rows.begin(), rows.end(), 0.0); }

// dt / (horizon + dt) instead of 1 - exp(-dt / horizon): the same for short steps, and the same
// bits with every math library.
void Approach(double& average, double rate, double seconds, double horizon) {
  average += (rate - average) * (seconds / (horizon + seconds));
}

}  // namespace

void LoadTable::Add(WorkerId worker, std::span<const ExpertRows> experts) {
  WorkerRate& total = workers_[worker];
  for (const ExpertRows& expert : experts) {
    Rates& rates = units_[expert.unit];
    for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
      rates.open[kind] += static_cast<double>(expert.rows[kind]);
      total.open += static_cast<double>(expert.rows[kind]);
    }
  }
}

void LoadTable::Fold(double seconds) {
  if (seconds <= 0) {
    return;
  }
  for (auto& [unit, rates] : units_) {
    for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
      const double rate = rates.open[kind] / seconds;
      Approach(rates.brief[kind], rate, seconds, kBriefSeconds);
      Approach(rates.lasting[kind], rate, seconds, kLastingSeconds);
    }
    rates.open = {};
  }
  for (auto& [worker, rate] : workers_) {
    Approach(rate.brief, rate.open / seconds, seconds, kBriefSeconds);
    rate.open = 0;
  }
}

RowKinds LoadTable::RatesOf(ExpertUnit unit) const {
  const auto it = units_.find(unit);
  return it == units_.end() ? RowKinds{} : it->second.brief;
}

double LoadTable::RateOf(WorkerId worker) const {
  const auto it = workers_.find(worker);
  return it == workers_.end() ? 0 : it->second.brief;
}

double LoadTable::PlanLoadOf(ExpertUnit unit) const {
  const auto it = units_.find(unit);
  return it == units_.end() ? 0 : (Sum(it->second.brief) + Sum(it->second.lasting)) / 2;
}

double LoadTable::TotalRate() const {
  double sum = 0;
  for (const auto& [unit, rates] : units_) {
    sum += Sum(rates.brief);
  }
  return sum;
}

}  // namespace conclave::router_service
