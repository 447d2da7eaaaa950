#include "conclave/base/thread_pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/mutex.h"

namespace conclave {
namespace {

using std::chrono::steady_clock;

// FTZ (bit 15) and DAZ (bit 6) of MXCSR.
constexpr unsigned kDenormalsOffBits = 0x8040;

// The longest spin before a sleep. Longer than the gaps inside a decode step (microseconds), short
// enough that a foreign process on the same core hardly notices.
constexpr std::chrono::nanoseconds kSpinMax = std::chrono::microseconds(40);
// The shortest: one round of SpinUntil.
constexpr std::chrono::nanoseconds kSpinMin = std::chrono::microseconds(1);
// A wait up to this long, the kernel's wake-up included, is one that a full spin would have met.
constexpr std::chrono::nanoseconds kShortWait = 2 * kSpinMax;

// A cache line, and the one that the prefetcher brings along.
constexpr size_t kApart = 128;

// std::atomic::wait of libstdc++ spins and yields by its own rules before it sleeps, so the system
// call is made here. Returns at once when `word` is not `expected`, and may return without reason.
void FutexWait(std::atomic<uint32_t>& word, uint32_t expected) {
  static_assert(sizeof(word) == sizeof(uint32_t));
  ::syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, expected, nullptr, nullptr, 0);
}
void FutexWake(std::atomic<uint32_t>& word, int count) {
  ::syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

// How long one waiting thread spins. It learns from its waits: a short one doubles the spin, a long
// one halves it. Cores that are shared make long ones, and the spin that another process would pay
// for shrinks to nothing; after a pause of the engine it is back within a few loops.
class Patience {
 public:
  // Spins until `is_over` or its end; false: the caller should sleep.
  template <typename IsOver>
  bool SpinUntil(const IsOver& is_over) {
    start_ = steady_clock::now();
    do {
      for (int i = 0; i < 16; ++i) {
        if (is_over()) {
          return true;
        }
        _mm_pause();
      }
    } while (steady_clock::now() - start_ < spin_);
    return is_over();
  }

  // After the wait that began with SpinUntil.
  void Learn() {
    spin_ = steady_clock::now() - start_ <= kShortWait ? std::min(2 * spin_, kSpinMax)
                                                       : std::max(spin_ / 2, kSpinMin);
  }

 private:
  std::chrono::nanoseconds spin_ = kSpinMax;
  steady_clock::time_point start_;
};

cpu_set_t SetOf(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) {
    CPU_SET(cpu, &set);
  }
  return set;
}

// The pool whose task this thread runs, to find calls of a pool from its own tasks.
thread_local const void* running_pool = nullptr;

class RunningPool {
 public:
  explicit RunningPool(const void* pool) : outer_(std::exchange(running_pool, pool)) {
    CONCLAVE_CHECK(outer_ != pool);  // A task must not call its own pool.
  }
  ~RunningPool() { running_pool = outer_; }
  RunningPool(const RunningPool&) = delete;
  RunningPool& operator=(const RunningPool&) = delete;

 private:
  const void* outer_;
};

}  // namespace

DenormalsOff::DenormalsOff() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kDenormalsOffBits); }
DenormalsOff::~DenormalsOff() { _mm_setcsr(saved_); }

// How a loop is handed out. `left` counts down to 0 and below: whoever takes a number n > 0 from it
// has task num_tasks - n of the loop that is current *then*, and reads which loop that is only
// afterwards. Until this task is reported done the loop cannot end, so what was read stays true; a
// worker that comes late finds 0 or less, or a task of the next loop, which it may run as well as
// any. So nobody enters or leaves a loop, and the caller waits for `pending` tasks, not for
// threads.
struct ThreadPool::State {
  // Serializes callers: one loop at a time.
  Mutex loop_mu;
  Patience caller_patience;  // of who holds loop_mu

  // The current loop. Written by the caller before it raises `left`.
  alignas(kApart) TaskFn call = nullptr;
  const void* fn = nullptr;
  int64_t num_tasks = 0;

  alignas(kApart) std::atomic<int64_t> left{0};
  // Tasks not yet reported done; each thread reports once, when it finds no more.
  alignas(kApart) std::atomic<int64_t> pending{0};
  // 1: the caller sleeps on it, or is about to.
  std::atomic<uint32_t> caller_sleeps{0};
  // Workers that sleep on `wakes` or are about to; `wakes` counts the calls.
  alignas(kApart) std::atomic<int> sleepers{0};
  std::atomic<uint32_t> wakes{0};
  std::atomic<bool> stop{false};

  // Empty unless workers are bound. Each core has one tenant: an index of `threads`, or -1 for the
  // caller's. Guarded by loop_mu once the pool is made.
  std::vector<cpu_set_t> cores;
  std::vector<int> core_of;  // [logical CPU]: index of `cores`, or -1
  std::vector<int> tenant;   // [core]
  int callers_core = 0;

  // Last: threads end before what they touch.
  std::vector<std::thread> threads;

  // Returns the number of tasks run.
  int64_t RunTasks() {
    int64_t done = 0;
    for (int64_t n = left.fetch_sub(1); n > 0; n = left.fetch_sub(1)) {
      call(fn, num_tasks - n);
      ++done;
    }
    return done;
  }

  void Worker() {
    const DenormalsOff denormals_off;
    const RunningPool running(this);
    Patience patience;
    const auto has_work = [this] { return left.load() > 0 || stop.load(); };
    while (true) {
      if (!patience.SpinUntil(has_work)) {
        SleepUntil(has_work);
      }
      patience.Learn();
      if (stop.load()) {
        return;
      }
      const int64_t done = RunTasks();
      if (done > 0 && pending.fetch_sub(done) == done && caller_sleeps.load() == 1) {
        caller_sleeps.store(0);
        FutexWake(caller_sleeps, 1);
      }
    }
  }

  // `sleepers` is raised before the last look at `left`, and the caller looks at it after raising
  // `left`: one of the two sees the other.
  template <typename HasWork>
  void SleepUntil(const HasWork& has_work) {
    sleepers.fetch_add(1);
    for (uint32_t before = wakes.load(); !has_work(); before = wakes.load()) {
      FutexWait(wakes, before);
    }
    sleepers.fetch_sub(1);
  }

  void Wake(int64_t count) {
    if (sleepers.load() > 0) {
      wakes.fetch_add(1);
      FutexWake(wakes, static_cast<int>(std::min<int64_t>(count, INT_MAX)));
    }
  }

  void WaitForPending() {
    const auto is_done = [this] { return pending.load() == 0; };
    if (is_done()) {
      return;
    }
    if (!caller_patience.SpinUntil(is_done)) {
      // Armed again each time round: a worker that was late in the loop before may disarm it.
      for (caller_sleeps.store(1); !is_done(); caller_sleeps.store(1)) {
        FutexWait(caller_sleeps, 1);
      }
      caller_sleeps.store(0);
    }
    caller_patience.Learn();
  }

  void Bind(int thread, int core) {
    tenant[static_cast<size_t>(core)] = thread;
    // Refused where the mask has changed since: then the worker stays as it is.
    static_cast<void>(::pthread_setaffinity_np(threads[static_cast<size_t>(thread)].native_handle(),
                                               sizeof(cpu_set_t),
                                               &cores[static_cast<size_t>(core)]));
  }

  void BindAll(const Cores& cpus_of) {
    const auto fits = [](int cpu) { return cpu >= 0 && cpu < CPU_SETSIZE; };
    for (const std::vector<int>& cpus : cpus_of) {
      if (!std::all_of(cpus.begin(), cpus.end(), fits)) {
        return;  // A machine beyond what the fixed set holds.
      }
    }
    for (size_t core = 0; core < cpus_of.size(); ++core) {
      cores.push_back(SetOf(cpus_of[core]));
      for (const int cpu : cpus_of[core]) {
        core_of.resize(std::max(core_of.size(), static_cast<size_t>(cpu) + 1), -1);
        core_of[static_cast<size_t>(cpu)] = static_cast<int>(core);
      }
    }
    tenant.assign(cores.size(), -1);
    for (size_t core = 1; core < cores.size(); ++core) {
      Bind(static_cast<int>(core) - 1, static_cast<int>(core));
    }
  }

  // A worker bound to the core on which the caller runs would wait for it while another core idles.
  // A look at the CPU's number costs nanoseconds, and callers seldom move.
  void MakeRoomForCaller() {
    const int cpu = ::sched_getcpu();
    const int core = cpu >= 0 && static_cast<size_t>(cpu) < core_of.size()
                         ? core_of[static_cast<size_t>(cpu)]
                         : -1;
    if (core < 0 || core == callers_core) {
      return;
    }
    Bind(tenant[static_cast<size_t>(core)], callers_core);
    tenant[static_cast<size_t>(core)] = -1;
    callers_core = core;
  }
};

ThreadPool::ThreadPool(int num_threads, const Cores& cores)
    : num_threads_(num_threads), state_(new State) {
  CONCLAVE_CHECK(num_threads >= 1);
  CONCLAVE_CHECK(cores.empty() || cores.size() == static_cast<size_t>(num_threads));
  for (int i = 1; i < num_threads; ++i) {
    state_->threads.emplace_back([this] { state_->Worker(); });
    pthread_setname_np(state_->threads.back().native_handle(),
                       ("compute-" + std::to_string(i)).c_str());
  }
  if (num_threads > 1) {
    state_->BindAll(cores);
  }
}

ThreadPool::~ThreadPool() {
  state_->stop.store(true);
  state_->Wake(INT_MAX);
  for (std::thread& thread : state_->threads) {
    thread.join();
  }
}

void ThreadPool::Run(int64_t num_tasks, TaskFn call, const void* fn) {
  const DenormalsOff denormals_off;
  State& s = *state_;
  const RunningPool running(&s);
  if (num_threads_ == 1 || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) {
      call(fn, task);
    }
    return;
  }
  MutexLock loop(s.loop_mu);
  if (!s.core_of.empty()) {
    s.MakeRoomForCaller();
  }
  s.call = call;
  s.fn = fn;
  s.num_tasks = num_tasks;
  s.pending.store(num_tasks);
  s.left.store(num_tasks);
  s.Wake(num_tasks - 1);
  // Nobody else waits for the caller, so its own tasks need no wake-up.
  s.pending.fetch_sub(s.RunTasks());
  s.WaitForPending();
}

}  // namespace conclave
