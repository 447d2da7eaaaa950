// Goal: a pool on shared cores finishes its loops, whoever is stopped, and wastes no time of
// others. Method: far more threads than cores; workers stopped by a signal handler, which is what a
// core taken away looks like; CPU time of the process instead of the wall clock.
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/thread_pool.h"

namespace conclave {
namespace {

// Kernel ids of this process's threads whose name starts with `prefix`.
std::vector<pid_t> ThreadsNamed(const std::string& prefix) {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/task")) {
    std::ifstream file(entry.path() / "comm");
    std::string name;
    std::getline(file, name);
    if (name.starts_with(prefix)) {
      found.push_back(std::stoi(entry.path().filename().string()));
    }
  }
  return found;
}

// Time in which nothing happens: what is measured is what the pool uses of it.
void LetPass(int milliseconds) { ::poll(nullptr, 0, milliseconds); }

double ProcessCpuMs() {
  timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e3 + static_cast<double>(time.tv_nsec) / 1e6;
}

TEST(SharedPoolTest, TinyLoopsOfSeveralCallersOnMoreThreadsThanCores) {
  ThreadPool pool(16);
  constexpr int kCallers = 3;
  constexpr int kLoops = 150;
  std::vector<std::vector<int>> values(kCallers, std::vector<int>(40, 0));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int loop = 0; loop < kLoops; ++loop) {
        const int64_t num_tasks = 2 + (loop * 7 + caller) % 39;
        pool.ParallelFor(num_tasks, [&](int64_t task) {
          ++values[static_cast<size_t>(caller)][static_cast<size_t>(task)];
        });
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  for (int caller = 0; caller < kCallers; ++caller) {
    for (int task = 0; task < 40; ++task) {
      int wanted = 0;
      for (int loop = 0; loop < kLoops; ++loop) {
        wanted += task < 2 + (loop * 7 + caller) % 39 ? 1 : 0;
      }
      EXPECT_EQ(values[static_cast<size_t>(caller)][static_cast<size_t>(task)], wanted)
          << "caller " << caller << ", task " << task;
    }
  }
}

// The handler runs on the stopped worker, and may use what is safe in a handler.
sem_t entered;
sem_t released;
void Stop(int /*signal*/) {
  ::sem_post(&entered);
  while (::sem_wait(&released) != 0) {
  }
}

TEST(SharedPoolTest, WorkersThatDoNotRunHoldNothingUp) {
  ASSERT_EQ(::sem_init(&entered, 0, 0), 0);
  ASSERT_EQ(::sem_init(&released, 0, 0), 0);
  struct sigaction action {};
  struct sigaction before {};
  action.sa_handler = Stop;
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  {
    ThreadPool pool(3);
    pool.ParallelFor(8, [](int64_t) {});
    const std::vector<pid_t> workers = ThreadsNamed("compute-");
    ASSERT_EQ(workers.size(), 2U);
    for (const pid_t worker : workers) {
      ASSERT_EQ(::syscall(SYS_tgkill, ::getpid(), worker, SIGUSR1), 0);
    }
    for (size_t i = 0; i < workers.size(); ++i) {
      ASSERT_EQ(::sem_wait(&entered), 0);
    }
    // A loop that waited for them would hang here.
    std::vector<int> runs(100, 0);
    const auto count = [&](int64_t task) { ++runs[static_cast<size_t>(task)]; };
    for (int loop = 0; loop < 50; ++loop) {
      pool.ParallelFor(100, count);
    }
    for (size_t i = 0; i < workers.size(); ++i) {
      ::sem_post(&released);
    }
    // They come back in the middle of other loops, and do no harm.
    for (int loop = 0; loop < 50; ++loop) {
      pool.ParallelFor(100, count);
    }
    EXPECT_EQ(runs, std::vector<int>(100, 100));
  }
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST(SharedPoolTest, OneSlowTaskLeavesTheOthersToTheRest) {
  ThreadPool pool(3);
  std::atomic<int> others{0};
  // Task 0 ends when all others have: if its thread had a share of its own, this would hang.
  pool.ParallelFor(64, [&](int64_t task) {
    if (task > 0) {
      others.fetch_add(1);
    }
    while (task == 0 && others.load() < 63) {
      ::sched_yield();
    }
  });
  EXPECT_EQ(others.load(), 63);
}

TEST(SharedPoolTest, IdleWorkersUseNoCpuTime) {
  ThreadPool pool(8);
  for (int loop = 0; loop < 20; ++loop) {
    pool.ParallelFor(64, [](int64_t) {});
  }
  // The spin of 7 workers is over after 7 × 40 µs of CPU time, whatever else runs on the cores.
  constexpr double kSpinsMs = 5.0;
  const double start = ProcessCpuMs();
  LetPass(150);
  EXPECT_LT(ProcessCpuMs() - start, kSpinsMs);
}

TEST(SharedPoolTest, CallerThatWaitsForATaskSleeps) {
  ThreadPool pool(2);
  const std::thread::id self = std::this_thread::get_id();
  std::atomic<bool> is_taken{false};
  const double start = ProcessCpuMs();
  pool.ParallelFor(2, [&](int64_t) {
    if (std::this_thread::get_id() == self) {
      is_taken.wait(false);  // leaves one task to the worker
    } else {
      is_taken.store(true);
      is_taken.notify_one();
      LetPass(100);
    }
  });
  EXPECT_LT(ProcessCpuMs() - start, 50.0);
}

// The CPUs that this process may use, each as a core of its own.
ThreadPool::Cores UsableCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(::sched_getaffinity(0, sizeof(set), &set), 0);
  ThreadPool::Cores cores;
  for (int cpu = 0; cpu < CPU_SETSIZE && cores.size() < 4; ++cpu) {
    if (CPU_ISSET(cpu, &set)) {
      cores.push_back({cpu});
    }
  }
  return cores;
}

TEST(BoundPoolTest, WorkersHaveCoresOfTheirOwnAndTheCallerTheOneItRunsOn) {
  const ThreadPool::Cores cores = UsableCpus();
  if (cores.size() < 2) {
    GTEST_SKIP() << "one CPU: nothing to bind";
  }
  cpu_set_t callers_own;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(callers_own), &callers_own), 0);
  ThreadPool pool(static_cast<int>(cores.size()), cores);
  for (const std::vector<int>& home : cores) {
    std::thread caller([&] {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(home.front(), &one);
      ASSERT_EQ(::sched_setaffinity(0, sizeof(one), &one), 0);
      pool.ParallelFor(8, [](int64_t) {});
      cpu_set_t taken;
      CPU_ZERO(&taken);
      for (const pid_t worker : ThreadsNamed("compute-")) {
        cpu_set_t set;
        CPU_ZERO(&set);
        ASSERT_EQ(::sched_getaffinity(worker, sizeof(set), &set), 0);
        EXPECT_EQ(CPU_COUNT(&set), 1);
        CPU_OR(&taken, &taken, &set);
      }
      EXPECT_EQ(CPU_COUNT(&taken), static_cast<int>(cores.size()) - 1);
      EXPECT_FALSE(CPU_ISSET(home.front(), &taken));
    });
    caller.join();
  }
  cpu_set_t after;
  ASSERT_EQ(::sched_getaffinity(0, sizeof(after), &after), 0);
  EXPECT_TRUE(CPU_EQUAL(&after, &callers_own));
}

TEST(BoundPoolTest, LoopsAreWholeWhileCallersMove) {
  const ThreadPool::Cores cores = UsableCpus();
  if (cores.size() < 2) {
    GTEST_SKIP() << "one CPU: nothing to bind";
  }
  ThreadPool pool(static_cast<int>(cores.size()), cores);
  std::vector<int> runs(16, 0);
  for (int loop = 0; loop < 200; ++loop) {
    std::thread caller([&] {
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(cores[static_cast<size_t>(loop) % cores.size()].front(), &one);
      ::sched_setaffinity(0, sizeof(one), &one);
      pool.ParallelFor(16, [&](int64_t task) { ++runs[static_cast<size_t>(task)]; });
    });
    caller.join();
  }
  EXPECT_EQ(runs, std::vector<int>(16, 200));
}

TEST(BoundPoolDeathTest, CoresMustBeAsManyAsThreads) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(ThreadPool(3, {{0}, {1}}), "broken invariant");
}

TEST(NestedPoolDeathTest, ATaskThatCallsItsPoolAborts) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  for (const int num_threads : {1, 3}) {
    for (const int64_t num_tasks : {1, 8}) {
      EXPECT_DEATH(
          {
            ThreadPool pool(num_threads);
            pool.ParallelFor(num_tasks, [&](int64_t) { pool.ParallelFor(2, [](int64_t) {}); });
          },
          "broken invariant");
    }
  }
}

TEST(NestedPoolTest, ATaskMayCallAnotherPool) {
  ThreadPool outer(2);
  ThreadPool inner(2);
  std::atomic<int> count{0};
  outer.ParallelFor(4,
                    [&](int64_t) { inner.ParallelFor(4, [&](int64_t) { count.fetch_add(1); }); });
  EXPECT_EQ(count.load(), 16);
}

}  // namespace
}  // namespace conclave
