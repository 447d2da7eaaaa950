#include "time_limit.h"

#include "conclave/base/cpu_time.h"

namespace conclave::image {

TimeLimit::TimeLimit(std::chrono::nanoseconds cpu_time_max)
    : cpu_time_max_(cpu_time_max),
      begin_(cpu_time_max.count() > 0 ? ThreadCpuTime() : std::chrono::nanoseconds(0)) {}

bool TimeLimit::IsOver() {
  unseen_pixels_ = 0;
  is_over_ = is_over_ || (cpu_time_max_.count() > 0 && ThreadCpuTime() - begin_ > cpu_time_max_);
  return is_over_;
}

}  // namespace conclave::image
