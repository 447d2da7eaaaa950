#include "conclave/base/thread_pool.h"

#include <immintrin.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/mutex.h"

namespace conclave {
namespace {

// FTZ (bit 15) and DAZ (bit 6) of MXCSR.
constexpr unsigned kDenormalsOffBits = 0x8040;

// How long an idle worker spins before it sleeps. Longer than the gaps inside a decode step
// (microseconds), short enough that a foreign process on the same core hardly notices.
constexpr auto kSpin = std::chrono::microseconds(30);

}  // namespace

DenormalsOff::DenormalsOff() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kDenormalsOffBits); }
DenormalsOff::~DenormalsOff() { _mm_setcsr(saved_); }

struct ThreadPool::State {
  // Serializes callers: one loop at a time.
  Mutex loop_mu;

  // The current loop. Written by the caller before `generation` is raised, read by workers after
  // they see it.
  TaskFn call = nullptr;
  const void* fn = nullptr;
  int64_t num_tasks = 0;
  // Taken from by everybody. A worker joins a loop only between `open` being true and its own entry
  // in `active`.
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<uint64_t> generation{0};
  // Workers inside the current loop; the caller leaves when it is 0 and the tasks are handed out.
  alignas(64) std::atomic<int> active{0};

  Mutex sleep_mu;
  CondVar wake;
  std::atomic<int> sleepers{0};
  std::atomic<bool> stop{false};

  // Last: threads end before what they touch.
  std::vector<std::thread> threads;

  void RunTasks() {
    for (int64_t task = next.fetch_add(1); task < num_tasks; task = next.fetch_add(1)) {
      call(fn, task);
    }
  }

  void WaitForWork(uint64_t seen) {
    const auto spin_until = std::chrono::steady_clock::now() + kSpin;
    while (generation.load() == seen && !stop.load()) {
      for (int i = 0; i < 32; ++i) {
        _mm_pause();
        if (generation.load() != seen) {
          return;
        }
      }
      if (std::chrono::steady_clock::now() > spin_until) {
        sleepers.fetch_add(1);
        {
          MutexLock lock(sleep_mu);
          while (generation.load() == seen && !stop.load()) {
            wake.Wait(sleep_mu);
          }
        }
        sleepers.fetch_sub(1);
        return;
      }
    }
  }

  void Worker() {
    const DenormalsOff denormals_off;
    uint64_t seen = 0;
    while (true) {
      WaitForWork(seen);
      if (stop.load()) {
        return;
      }
      // Enter first, then look: an odd generation is an open loop. The caller closes it (even)
      // before it waits for `active` to fall to 0, so a worker that enters late finds it closed and
      // touches nothing of the loop.
      active.fetch_add(1);
      const uint64_t now = generation.load();
      if (now % 2 == 1) {
        RunTasks();
      }
      active.fetch_sub(1);
      seen = now;
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads), state_(new State) {
  CONCLAVE_CHECK(num_threads >= 1);
  for (int i = 1; i < num_threads; ++i) {
    state_->threads.emplace_back([this] { state_->Worker(); });
    pthread_setname_np(state_->threads.back().native_handle(),
                       ("compute-" + std::to_string(i)).c_str());
  }
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(state_->sleep_mu);
    state_->stop.store(true);
  }
  state_->wake.NotifyAll();
  for (std::thread& thread : state_->threads) {
    thread.join();
  }
}

void ThreadPool::Run(int64_t num_tasks, TaskFn call, const void* fn) {
  const DenormalsOff denormals_off;
  if (num_threads_ == 1 || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) {
      call(fn, task);
    }
    return;
  }
  State& s = *state_;
  MutexLock loop(s.loop_mu);
  s.call = call;
  s.fn = fn;
  s.num_tasks = num_tasks;
  s.next.store(0);
  s.generation.fetch_add(1);  // Odd: open.
  if (s.sleepers.load() > 0) {
    // The lock closes the gap between a sleeper's last look at `generation` and its wait.
    { MutexLock lock(s.sleep_mu); }
    s.wake.NotifyAll();
  }
  s.RunTasks();
  s.generation.fetch_add(1);  // Even: closed.
  while (s.active.load() != 0) {
    _mm_pause();
  }
}

}  // namespace conclave
