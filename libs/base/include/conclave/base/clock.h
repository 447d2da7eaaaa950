// Time as a dependency: cores take a Clock&, so that tests and the simulator own time.
#pragma once

#include <chrono>

namespace conclave {

using MonotonicTime = std::chrono::steady_clock::time_point;

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonotonicTime Now() const = 0;

  // The machine's steady clock; lives for the whole process.
  static const Clock& Real();
};

}  // namespace conclave
