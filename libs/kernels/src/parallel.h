// How work is cut into tasks for a ThreadPool. Cuts never change a result; they only keep the cost
// of handing out a task (about a microsecond, more when a thread sleeps) small beside the task.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conclave/base/thread_pool.h"

namespace conclave::kernels {

// Multiply-adds of a task that is worth handing to another thread: some microseconds.
inline constexpr int64_t kTaskWork = int64_t{1} << 16;

// Runs fn(first, count) over [0, num_items) in runs of items with at least kTaskWork of work each.
// `item_work` is in multiply-adds. With no item, fn is not called.
template <typename Fn>
void ParallelRuns(ThreadPool& pool, int64_t num_items, int64_t item_work, const Fn& fn) {
  const int64_t run = std::clamp<int64_t>(kTaskWork / std::max<int64_t>(item_work, 1), 1,
                                          std::max<int64_t>(num_items, 1));
  pool.ParallelFor((num_items + run - 1) / run, [&](int64_t task) {
    const int64_t first = task * run;
    fn(first, std::min(run, num_items - first));
  });
}

}  // namespace conclave::kernels
