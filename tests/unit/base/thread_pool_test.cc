// Goal: every task of a loop runs exactly once and before the loop returns, whoever calls and
// however the threads are timed; compute runs with denormals off. Method: count per task, in many
// short loops and from many callers; numbers are small so that sanitizers keep up.
#include "conclave/base/thread_pool.h"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <atomic>
#include <chrono>
#include <limits>
#include <set>
#include <thread>
#include <vector>

#include "conclave/base/mutex.h"

namespace conclave {
namespace {

class ThreadPoolTest : public testing::TestWithParam<int> {};

TEST_P(ThreadPoolTest, EveryTaskRunsExactlyOnce) {
  ThreadPool pool(GetParam());
  for (const int64_t num_tasks : {0, 1, 2, 3, 17, 1000}) {
    std::vector<std::atomic<int>> runs(static_cast<size_t>(num_tasks));
    pool.ParallelFor(num_tasks,
                     [&](int64_t task) { runs[static_cast<size_t>(task)].fetch_add(1); });
    for (const std::atomic<int>& count : runs) {
      EXPECT_EQ(count.load(), 1);
    }
  }
}

// Plain memory: a loop that returned too early would leave a hole, and a race would show under a
// sanitizer.
TEST_P(ThreadPoolTest, ShortLoopsInARowSeeEachOthersWrites) {
  ThreadPool pool(GetParam());
  std::vector<int> values(8, 0);
  constexpr int kLoops = 2000;
  for (int loop = 0; loop < kLoops; ++loop) {
    pool.ParallelFor(8, [&](int64_t task) { ++values[static_cast<size_t>((task + loop) % 8)]; });
  }
  EXPECT_EQ(values, std::vector<int>(8, kLoops));
}

TEST_P(ThreadPoolTest, ManyCallersTakeTurns) {
  ThreadPool pool(GetParam());
  constexpr int kCallers = 6;
  constexpr int kLoops = 200;
  std::vector<std::vector<int>> values(kCallers, std::vector<int>(5, 0));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) {
    callers.emplace_back([&, caller] {
      for (int loop = 0; loop < kLoops; ++loop) {
        pool.ParallelFor(5, [&](int64_t task) {
          ++values[static_cast<size_t>(caller)][static_cast<size_t>(task)];
        });
      }
    });
  }
  for (std::thread& caller : callers) {
    caller.join();
  }
  for (const std::vector<int>& of_caller : values) {
    EXPECT_EQ(of_caller, std::vector<int>(5, kLoops));
  }
}

TEST_P(ThreadPoolTest, WakesSleepingThreads) {
  ThreadPool pool(GetParam());
  std::atomic<int> sum{0};
  for (int loop = 0; loop < 20; ++loop) {
    // Longer than the spin of an idle worker. Spinning here and not sleeping keeps the gap short
    // and exact.
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(200);
    while (std::chrono::steady_clock::now() < until) {
    }
    pool.ParallelFor(10, [&](int64_t task) { sum.fetch_add(static_cast<int>(task)); });
  }
  EXPECT_EQ(sum.load(), 20 * 45);
}

TEST_P(ThreadPoolTest, DenormalsAreZeroInTasksAndBackAfterwards) {
  ThreadPool pool(GetParam());
  const unsigned before = _mm_getcsr();
  std::atomic<int> num_zero{0};
  pool.ParallelFor(32, [&](int64_t) {
    volatile float tiny = std::numeric_limits<float>::min();
    volatile float half = 0.5f;
    num_zero.fetch_add(tiny * half == 0.0f ? 1 : 0);
  });
  EXPECT_EQ(num_zero.load(), 32);
  EXPECT_EQ(_mm_getcsr() & 0x8040U, before & 0x8040U);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ThreadPoolTest, testing::Values(1, 2, 3, 8));

TEST(ThreadPoolLifeTest, PoolsComeAndGoWithAndWithoutWork) {
  for (int i = 0; i < 50; ++i) {
    ThreadPool pool(1 + i % 4);
    EXPECT_EQ(pool.num_threads(), 1 + i % 4);
    if (i % 2 == 0) {
      std::atomic<int> count{0};
      pool.ParallelFor(3, [&](int64_t) { count.fetch_add(1); });
      EXPECT_EQ(count.load(), 3);
    }
  }
}

TEST(ThreadPoolLifeTest, NoMoreThreadsThanAskedForRunTasks) {
  ThreadPool pool(3);
  Mutex mu;
  std::set<std::thread::id> ids;
  for (int loop = 0; loop < 100; ++loop) {
    pool.ParallelFor(16, [&](int64_t) {
      MutexLock lock(mu);
      ids.insert(std::this_thread::get_id());
    });
  }
  EXPECT_LE(ids.size(), 3U);
}

TEST(ThreadPoolDeathTest, NoThreadsIsAMistake) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(ThreadPool(0), "broken invariant");
}

TEST(DenormalsOffTest, HoldsForItsScopeOnly) {
  volatile float tiny = std::numeric_limits<float>::min();
  volatile float half = 0.5f;
  ASSERT_GT(tiny * half, 0.0f);
  {
    const DenormalsOff denormals_off;
    EXPECT_EQ(tiny * half, 0.0f);
    {
      const DenormalsOff nested;
      EXPECT_EQ(tiny * half, 0.0f);
    }
    EXPECT_EQ(tiny * half, 0.0f);
  }
  EXPECT_GT(tiny * half, 0.0f);
}

}  // namespace
}  // namespace conclave
