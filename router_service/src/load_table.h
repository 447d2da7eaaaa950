// How many rows experts and workers compute: exponential averages over 10 seconds and 10 minutes,
// per layer, expert, modality and phase.
#pragma once

#include <cstdint>
#include <map>
#include <span>

#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

class LoadTable {
 public:
  void Add(WorkerId worker, std::span<const ExpertRows> experts);

  // Takes what was added since the last call as the rows of `seconds`.
  void Fold(double seconds);

  // Rows per second over 10 seconds.
  RowKinds RatesOf(ExpertUnit unit) const;
  double RateOf(WorkerId worker) const;

  // What a plan reckons with: the mean of the rates of both horizons, so that a burst does not move
  // experts and a change that lasts does.
  double PlanLoadOf(ExpertUnit unit) const;
  // Of all experts over 10 seconds.
  double TotalRate() const;

  void Forget(WorkerId worker) { workers_.erase(worker); }

 private:
  struct Rates {
    RowKinds open{};  // rows since the last Fold
    RowKinds brief{};
    RowKinds lasting{};
  };
  struct WorkerRate {
    double open = 0;
    double brief = 0;
  };
  std::map<ExpertUnit, Rates> units_;
  std::map<WorkerId, WorkerRate> workers_;
};

}  // namespace conclave::router_service
