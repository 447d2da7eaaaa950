// Goal: what a dispatcher says of each worker is what happened: calls, rows, bytes, time by stage,
// and what had to be sent again, however links come and go. Method: channels with a script on a
// fake clock.
#include "conclave/frontend/dispatch_counts.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>

#include "conclave/base/status.h"
#include "conclave/transport/frame.h"
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

const std::vector<std::vector<int32_t>> kFirst = {{0}, {0}, {0}, {0}};
constexpr uint64_t kRowBytes = kWidth * sizeof(float);

uint64_t CountOf(const BucketCounts& buckets) {
  return std::accumulate(buckets.counts.begin(), buckets.counts.end(), uint64_t{0});
}
const BucketCounts& Of(const WorkerDispatch& worker, DispatchStage stage) {
  return worker.stages[static_cast<size_t>(stage)];
}
uint64_t Failovers(const WorkerDispatch& worker, FailoverReason reason) {
  return worker.failovers[static_cast<size_t>(reason)];
}

class DispatchCountsTest : public DispatcherFailoverTest {
 protected:
  // The one entry of this worker.
  WorkerDispatch Worker(int32_t id) const {
    WorkerDispatch found;
    int count = 0;
    for (WorkerDispatch& worker : dispatcher_->Workers()) {
      if (worker.worker == WorkerId(id)) {
        found = std::move(worker);
        ++count;
      }
    }
    EXPECT_EQ(count, 1) << "worker " << id;
    return found;
  }
  // Calls go to one worker until its turn is known.
  ScriptedChannel& WarmUp(ScriptedChannel& a, ScriptedChannel& b) {
    for (int i = 0; i < 200; ++i) {
      EXPECT_TRUE(Run(1).ok());
    }
    return a.num_calls > 0 ? a : b;
  }
};

TEST_F(DispatchCountsTest, RowsBytesAndStagesOfAnUndisturbedCall) {
  ScriptedChannel& a = links_.Add(7);
  a.carried_by = "shm";
  a.latency = microseconds(500);
  a.dispatch_takes = microseconds(15);
  a.service_us_per_row = 10;
  a.queue_us = 30;
  links_.Place(PlacementOf({{7}, {7}, {7}, {7}}));
  Start();
  ASSERT_TRUE(Run(8).ok());
  const WorkerDispatch worker = Worker(7);
  EXPECT_EQ(worker.transport, "shm");
  EXPECT_TRUE(worker.is_up);
  EXPECT_EQ(worker.calls, 1u);
  EXPECT_EQ(worker.rows, 8u);
  EXPECT_EQ(worker.rows_answered, 8u);
  EXPECT_EQ(worker.bytes_dispatched, transport::CallFrameBytes(16, 8 * kRowBytes));
  EXPECT_EQ(worker.bytes_combined, transport::ReplyFrameBytes(8 * kRowBytes));
  EXPECT_EQ(worker.bytes_least, 2 * 8 * kRowBytes);
  EXPECT_NEAR(Of(worker, DispatchStage::kSerialize).sum, 15e-6, 1e-12);
  EXPECT_NEAR(Of(worker, DispatchStage::kNetwork).sum, 390e-6, 1e-12);
  EXPECT_NEAR(Of(worker, DispatchStage::kQueue).sum, 30e-6, 1e-12);
  EXPECT_NEAR(Of(worker, DispatchStage::kCompute).sum, 80e-6, 1e-12);
  EXPECT_NEAR(worker.round_trip.sum, 500e-6, 1e-12);
  for (const BucketCounts& stage : worker.stages) {
    EXPECT_EQ(CountOf(stage), 1u);
  }
  // At most 500 us: a bound counts what is equal to it.
  EXPECT_EQ(kDispatchBounds[7], microseconds(500));
  EXPECT_EQ(worker.round_trip.counts[7], 1u);
  EXPECT_EQ(worker.hedges + worker.timeouts + worker.link_losses + worker.refusals +
                worker.calls_resent + worker.rows_resent,
            0u);
  EXPECT_EQ(CountOf(dispatcher_->Recovery()), 0u);
}

TEST_F(DispatchCountsTest, DurationsBeyondEveryBoundAreCounted) {
  ScriptedChannel& a = links_.Add(0);
  a.latency = milliseconds(6'000);
  options_.link.deadline_min = options_.link.deadline_max = milliseconds(10'000);
  options_.call_deadline = milliseconds(10'000);
  links_.Place(PlacementOf(kFirst));
  Start();
  ASSERT_TRUE(Run(1).ok());
  EXPECT_EQ(Worker(0).round_trip.counts.back(), 1u);
}

TEST_F(DispatchCountsTest, AWorkersWordCannotMakeAPartLongerThanTheWhole) {
  ScriptedChannel& a = links_.Add(0);
  a.latency = microseconds(100);
  a.service_us_per_row = 60;
  a.queue_us = UINT32_MAX;
  links_.Place(PlacementOf(kFirst));
  Start();
  ASSERT_TRUE(Run(1).ok());
  const WorkerDispatch worker = Worker(0);
  EXPECT_NEAR(Of(worker, DispatchStage::kCompute).sum, 60e-6, 1e-12);
  EXPECT_NEAR(Of(worker, DispatchStage::kQueue).sum, 40e-6, 1e-12);
  EXPECT_EQ(Of(worker, DispatchStage::kNetwork).sum, 0);
}

TEST_F(DispatchCountsTest, ALostLinkCountsWhatItTookAndItsWorkerCountsOn) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  ASSERT_TRUE(Run(32, true).ok());
  ASSERT_EQ(a.num_calls, 2);
  const uint64_t bytes = Worker(0).bytes_dispatched;
  links_.Place(PlacementOf(kBoth, 2));
  ASSERT_TRUE(Run(1).ok());
  const int rows_before = a.num_rows;
  const int calls_before = a.num_calls;
  a.dies_at = clock_.Now() + microseconds(200);
  ASSERT_TRUE(Run(32, true).ok());
  const auto calls = static_cast<uint64_t>(a.num_calls - calls_before);
  ASSERT_GT(calls, 0u);
  const WorkerDispatch dead = Worker(0);
  EXPECT_FALSE(dead.is_up);
  EXPECT_EQ(dead.link_losses, calls);
  EXPECT_EQ(dead.calls_resent, calls);
  EXPECT_EQ(Failovers(dead, FailoverReason::kLinkLost), calls);
  EXPECT_EQ(dead.rows_resent, static_cast<uint64_t>(a.num_rows - rows_before));
  EXPECT_EQ(dispatcher_->Stats().link_losses, calls);
  const BucketCounts recovery = dispatcher_->Recovery();
  EXPECT_GE(CountOf(recovery), calls);
  EXPECT_GE(recovery.sum, static_cast<double>(calls) * 700e-6);
  EXPECT_EQ(Worker(1).calls, static_cast<uint64_t>(b.num_calls));
  // Another incarnation.
  links_.Add(0, 2);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}, 3));
  ASSERT_TRUE(Run(1).ok());
  const WorkerDispatch again = Worker(0);
  EXPECT_TRUE(again.is_up);
  EXPECT_GT(again.bytes_dispatched, bytes);
  EXPECT_EQ(again.calls, dead.calls + 1);
}

TEST_F(DispatchCountsTest, AHedgeIsNoFailover) {
  options_.link.hedge_min = milliseconds(2);
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  ScriptedChannel& slow = WarmUp(a, b);
  const int32_t slow_id = &slow == &a ? 0 : 1;
  slow.is_hung = true;
  ASSERT_TRUE(Run(1).ok());
  ASSERT_EQ(dispatcher_->Stats().hedges_won, 1u);
  EXPECT_EQ(Worker(slow_id).hedges, 1u);
  EXPECT_EQ(Worker(1 - slow_id).hedges, 0u);
  EXPECT_EQ(Worker(slow_id).calls_resent, 0u);
  EXPECT_EQ(Worker(slow_id).rows, Worker(slow_id).rows_answered + 1);
  EXPECT_EQ(CountOf(dispatcher_->Recovery()), 0u);
}

TEST_F(DispatchCountsTest, ATimeoutIsRecoveredFromAfterItsDeadline) {
  options_.is_hedging = false;
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  ScriptedChannel& hung = WarmUp(a, b);
  hung.is_hung = true;
  ASSERT_TRUE(Run(1).ok());
  const WorkerDispatch worker = Worker(&hung == &a ? 0 : 1);
  EXPECT_EQ(worker.timeouts, 1u);
  EXPECT_EQ(Failovers(worker, FailoverReason::kTimeout), 1u);
  EXPECT_EQ(worker.rows_resent, 1u);
  const BucketCounts recovery = dispatcher_->Recovery();
  EXPECT_EQ(CountOf(recovery), 1u);
  EXPECT_NEAR(recovery.sum, std::chrono::duration<double>(took_).count(), 1e-3);
}

TEST_F(DispatchCountsTest, ARefusalIsNamed) {
  ScriptedChannel& a = links_.Add(0);
  links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  a.not_held = {0, 1, 2, 3};
  ASSERT_TRUE(Run(16, true).ok());
  const WorkerDispatch worker = Worker(0);
  ASSERT_GT(worker.refusals, 0u);
  EXPECT_EQ(Failovers(worker, FailoverReason::kRefused), worker.refusals);
  EXPECT_EQ(worker.rows_answered, 0u);
  EXPECT_EQ(NameOf(FailoverReason::kRefused), "refused");
}

TEST_F(DispatchCountsTest, WhatTheFrontendComputesItselfIsDegradedAndNoWorkers) {
  ScriptedRescue rescue(clock_);
  options_.rescue = &rescue;
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf(kFirst));
  Start();
  a.dies_at = clock_.Now();
  ASSERT_TRUE(Run(8).ok());
  EXPECT_EQ(dispatcher_->Stats().degraded_rows, 8u);
  EXPECT_EQ(dispatcher_->Workers().size(), 1u);
  EXPECT_EQ(Worker(0).rows_answered, 0u);
}

TEST_F(DispatchCountsTest, AnotherCarrierIsAnotherEntry) {
  links_.Add(0).carried_by = "tcp";
  links_.Place(PlacementOf(kFirst));
  Start();
  ASSERT_TRUE(Run(1).ok());
  links_.Add(0, 2).carried_by = "grpc";
  ASSERT_TRUE(Run(1).ok());
  const std::vector<WorkerDispatch> workers = dispatcher_->Workers();
  ASSERT_EQ(workers.size(), 2u);
  EXPECT_EQ(workers[0].transport, "tcp");
  EXPECT_FALSE(workers[0].is_up);
  EXPECT_EQ(workers[1].transport, "grpc");
  EXPECT_TRUE(workers[1].is_up);
  EXPECT_EQ(workers[0].calls, 1u);
  EXPECT_EQ(workers[1].calls, 1u);
}

// The reader sees entries whole while the dispatcher's thread makes new ones.
TEST_F(DispatchCountsTest, ReadingWhileWorkersComeAndCallsAreCounted) {
  links_.Add(0);
  links_.Place(PlacementOf(kFirst));
  Start();
  std::atomic<bool> is_over{false};
  std::thread reader([&] {
    uint64_t rows = 0;
    size_t size = 0;
    while (!is_over) {
      const std::vector<WorkerDispatch> workers = dispatcher_->Workers();
      EXPECT_GE(workers.size(), size);
      size = workers.size();
      if (size > 0) {
        EXPECT_GE(workers[0].rows, rows);
        rows = workers[0].rows;
      }
    }
  });
  for (int32_t w = 1; w < 200; ++w) {
    links_.Add(w);
    EXPECT_TRUE(Run(4).ok());
  }
  is_over = true;
  reader.join();
  EXPECT_EQ(dispatcher_->Workers().size(), 200u);
  EXPECT_EQ(Worker(0).rows, 199u * 4);
}

}  // namespace
}  // namespace conclave::frontend
