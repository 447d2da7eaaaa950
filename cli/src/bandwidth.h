// How fast this process can read memory: the bound of every decode step.
#pragma once

#include <chrono>
#include <cstdint>

#include "conclave/base/thread_pool.h"

namespace conclave::cli {

// Bytes per second that the pool's threads together read from `num_bytes` of memory, the best of
// the passes that fit in `duration` (at least one). Take a buffer far larger than the last-level
// cache; 0 bytes give 0.
double MeasureReadBandwidth(ThreadPool& pool, int64_t num_bytes,
                            std::chrono::milliseconds duration);

}  // namespace conclave::cli
