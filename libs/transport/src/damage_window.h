// When a link damages so much of what it carries that it is given up (failure-model.md, F27).
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

#include "conclave/base/clock.h"

namespace conclave::transport {

// Frames that arrived changed. One alone is dropped and counted, and its call is made again at its
// deadline; the third within 10 s ends the link, as its calls are better made elsewhere. No lock.
class DamageWindow {
 public:
  static constexpr size_t kLimit = 3;
  static constexpr std::chrono::seconds kSpan{10};

  // Whether the link is to be ended. Moments do not go back.
  bool Add(MonotonicTime now) {
    last_[count_++ % kLimit] = now;
    return count_ >= kLimit && now - last_[count_ % kLimit] <= kSpan;
  }

 private:
  std::array<MonotonicTime, kLimit> last_;  // the latest ones, in turn
  size_t count_ = 0;
};

}  // namespace conclave::transport
