// The limit on the time of one decode. Work is reported as it is done; the clock is looked at only
// once per stretch of it, since asking costs as much as a few hundred pixels.
#pragma once

#include <chrono>
#include <cstdint>

namespace conclave::image {

// Of the thread that made it; used by that thread only.
class TimeLimit {
 public:
  // The time runs from here. 0: there is no limit.
  explicit TimeLimit(std::chrono::nanoseconds cpu_time_max);

  // Whether the time is over, with `num_pixels` more done than at the last call. Once true, always
  // true. Nothing is thrown and nothing held: it may be called from a library's hook.
  bool IsOverAfter(int64_t num_pixels) {
    unseen_pixels_ += num_pixels;
    return unseen_pixels_ >= kPixelsPerLook ? IsOver() : is_over_;
  }
  // Looks at the clock in any case.
  bool IsOver();

 private:
  // A tenth of a millisecond to a few, by format.
  static constexpr int64_t kPixelsPerLook = 16 << 10;

  const std::chrono::nanoseconds cpu_time_max_;
  const std::chrono::nanoseconds begin_;
  int64_t unseen_pixels_ = 0;
  bool is_over_ = false;
};

}  // namespace conclave::image
