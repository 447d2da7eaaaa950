// A fixed set of compute threads for data-parallel loops.
//
// A loop is cut into tasks that are handed out dynamically, so *which* thread runs a task is not
// fixed; kernels are written so that no result depends on it. Workers spin for some microseconds
// between loops and then sleep: a decode step runs hundreds of short loops, and a wake-up from the
// kernel costs more than most of them. The caller waits for the last tasks in the same way.
//
// Shared cores (docs/decisions/0037): a loop waits for tasks that were begun and for nothing else,
// so a worker that the operating system does not let run takes no task and costs no time. Who
// waits in vain spins shorter the next time, down to about a microsecond, and longer again as soon
// as that would have paid. What remains is a thread that is stopped inside a task: callers cut
// loops into more tasks than threads, so that the others have the rest.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace conclave {

class ThreadPool {
 public:
  // Logical CPUs of each physical core (service::PinnedCores).
  using Cores = std::vector<std::vector<int>>;

  // `num_threads` >= 1 counts the calling thread: a pool of 1 starts no thread. Every compute
  // thread, and the caller for the time of a loop, runs with FTZ and DAZ set, as the kernels' bit
  // contract asks (docs/decisions/0003).
  //
  // `cores` is empty, and the system places the threads, or has one entry for each thread: then
  // each worker is bound to the CPUs of one core. The calling thread is the caller's and is never
  // bound: it stays where the system put it, and the worker of that core moves to the free one.
  // Only for a pool with as many threads as there are cores: several smaller ones that all bind to
  // the first cores would leave the others idle. Where the system refuses (a CPU that went offline,
  // a narrower mask), the worker stays unbound.
  explicit ThreadPool(int num_threads, const Cores& cores = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  // Runs fn(task) for every task in [0, num_tasks) and returns when all are done; what they wrote
  // is visible then. Any thread may call; loops of different callers take turns, and who waits for
  // its turn sleeps. `fn` must not call the same pool again: that would wait for itself, and
  // aborts. No allocation.
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
