// Time that stands still until a test moves it.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

#include "conclave/base/clock.h"

namespace conclave::testing {

// Starts at 1 s, so that subtracting a short while does not wrap. Thread-safe.
class FakeClock final : public Clock {
 public:
  MonotonicTime Now() const override {
    return MonotonicTime(std::chrono::nanoseconds(now_ns_.load()));
  }

  // `by` is not negative: the clock is monotonic.
  void Advance(std::chrono::nanoseconds by) { now_ns_.fetch_add(by.count()); }

 private:
  std::atomic<int64_t> now_ns_{1'000'000'000};
};

}  // namespace conclave::testing
