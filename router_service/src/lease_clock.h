// The router's own time without its pauses: what leases are judged by. A process that was stopped,
// swapped out or starved for seconds has not listened, so nobody's silence counts for that time.
#pragma once

#include <algorithm>
#include <chrono>

#include "conclave/base/clock.h"
#include "conclave/base/planted_bug.h"

namespace conclave::router_service {

class LeaseClock {
 public:
  // A gap between ticks counts as at most `credit`; one above `pause` restarts all leases.
  LeaseClock(std::chrono::milliseconds credit, std::chrono::milliseconds pause)
      : credit_(credit), pause_(pause) {}

  void Start(MonotonicTime now) { last_tick_ = now; }

  // True after a pause: the caller gives everybody a new lease and ends none at this tick.
  bool Tick(MonotonicTime now) {
    const std::chrono::nanoseconds gap = now - last_tick_;
    last_tick_ = now;
    passed_ += gap < credit_ || CONCLAVE_PLANTED_BUG("pause_counts_for_leases")
                   ? gap
                   : std::chrono::nanoseconds(credit_);
    return gap > pause_;
  }

  // At `now`, between two ticks: what was heard then was not heard at the tick before.
  std::chrono::nanoseconds At(MonotonicTime now) const {
    return passed_ + std::min<std::chrono::nanoseconds>(now - last_tick_, credit_);
  }

 private:
  std::chrono::milliseconds credit_;
  std::chrono::milliseconds pause_;
  MonotonicTime last_tick_;
  std::chrono::nanoseconds passed_{0};
};

}  // namespace conclave::router_service
