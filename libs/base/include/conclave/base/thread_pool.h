// A fixed set of compute threads for data-parallel loops.
//
// A loop is cut into tasks that are handed out dynamically, so *which* thread runs a task is not
// fixed; kernels are written so that no result depends on it. Workers spin for some microseconds
// between loops and then sleep: a decode step runs hundreds of short loops, and a wake-up from the
// kernel costs more than most of them.
#pragma once

#include <cstdint>
#include <memory>

namespace conclave {

class ThreadPool {
 public:
  // `num_threads` >= 1 counts the calling thread: a pool of 1 starts no thread. Every compute
  // thread, and the caller for the time of a loop, runs with FTZ and DAZ set, as the kernels' bit
  // contract asks (docs/decisions/0003).
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs fn(task) for every task in [0, num_tasks) and returns when all are done. Any thread may
  // call; loops of different callers take turns. `fn` must not call the pool again. No allocation.
  template <typename Fn>
  void ParallelFor(int64_t num_tasks, const Fn& fn) {
    Run(
        num_tasks, [](const void* f, int64_t task) { (*static_cast<const Fn*>(f))(task); }, &fn);
  }

 private:
  struct State;
  using TaskFn = void (*)(const void* fn, int64_t task);
  void Run(int64_t num_tasks, TaskFn call, const void* fn);

  const int num_threads_;
  std::unique_ptr<State> state_;
};

// Sets flush-to-zero and denormals-are-zero for the current scope on this thread. Code that calls
// kernels outside a ThreadPool loop wraps itself in one.
class DenormalsOff {
 public:
  DenormalsOff();
  ~DenormalsOff();
  DenormalsOff(const DenormalsOff&) = delete;
  DenormalsOff& operator=(const DenormalsOff&) = delete;

 private:
  unsigned saved_;
};

}  // namespace conclave
