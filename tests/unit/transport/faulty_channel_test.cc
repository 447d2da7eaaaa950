// Goal: FaultyChannel does to calls what its plan says, repeatably, and keeps the channel usable.
// Method: many calls through an inproc channel with a fake clock; counts and the fate of each call
// are compared.
#include "conclave/testing/faulty_channel.h"

#include <algorithm>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/transport/inproc_channel.h"
#include "fake_handler.h"
#include "gtest/gtest.h"

namespace conclave::testing {
namespace {

using transport::CallSlot;
using transport::FakeHandler;
using transport::FillCall;
using transport::InprocOptions;

struct Outcome {
  std::vector<std::string> reasons;  // per call
  FaultCounts counts;
  int handler_calls = 0;
  MonotonicTime end;
};

Outcome RunCalls(const FaultPlan& plan, int num_calls, uint32_t deadline_us = 5000) {
  Outcome run;
  FakeClock clock;
  FakeHandler handler;
  InprocOptions options;
  options.limits = {.num_slots = 2, .max_rows = 4, .max_pairs = 8, .row_width = 16};
  options.clock = &clock;
  FaultyChannel channel(MakeInprocChannel(handler, options), plan, clock);
  for (int i = 0; i < num_calls; ++i) {
    CallSlot* slot = channel.Acquire();
    FillCall(*slot, 2, 1.0f);
    slot->call.deadline_us = deadline_us;
    absl::Status status = channel.Dispatch(slot);
    if (status.ok()) {
      status = channel.Await(slot);
    }
    EXPECT_EQ(status.ok(), !slot->reply.rows.empty());
    run.reasons.push_back(ReasonOf(status));
    channel.Release(slot);
  }
  run.counts = channel.counts();
  run.handler_calls = handler.num_calls;
  run.end = clock.Now();
  return run;
}

TEST(FaultyChannelTest, WithoutFaultsEveryCallPasses) {
  const Outcome run = RunCalls({}, 50);
  EXPECT_EQ(run.handler_calls, 50);
  EXPECT_EQ(run.counts.calls, 50);
  EXPECT_EQ(std::count(run.reasons.begin(), run.reasons.end(), ""), 50);
}

TEST(FaultyChannelTest, DroppedCallsRunIntoTheirDeadline) {
  const Outcome run = RunCalls({.drop_permille = 1000}, 10, 5000);
  EXPECT_EQ(run.handler_calls, 0);
  EXPECT_EQ(run.counts.dropped, 10);
  EXPECT_EQ(std::count(run.reasons.begin(), run.reasons.end(), "deadline"), 10);
  EXPECT_EQ(run.end - FakeClock().Now(), std::chrono::microseconds(50'000));
}

TEST(FaultyChannelTest, CorruptCallsAreErrorsAndSomeHaveRun) {
  const Outcome run = RunCalls({.seed = 3, .corrupt_permille = 1000}, 100);
  EXPECT_EQ(run.counts.corrupted, 100);
  EXPECT_EQ(std::count(run.reasons.begin(), run.reasons.end(), "corrupt_payload"), 100);
  EXPECT_GT(run.handler_calls, 0);
  EXPECT_LT(run.handler_calls, 100);
}

TEST(FaultyChannelTest, DelaysPassOnTheClockAndLateRepliesAreDropped) {
  const Outcome run =
      RunCalls({.seed = 5, .delay_permille = 1000, .max_delay_us = 10'000}, 100, 5000);
  EXPECT_EQ(run.handler_calls, 100);
  EXPECT_EQ(run.counts.delayed, 100);
  EXPECT_GT(run.counts.late, 0);
  EXPECT_LT(run.counts.late, 100);
  EXPECT_EQ(std::count(run.reasons.begin(), run.reasons.end(), "deadline"), run.counts.late);
  EXPECT_GT(run.end, FakeClock().Now());
}

TEST(FaultyChannelTest, DuplicatesRunTwiceAndAgree) {
  const Outcome run = RunCalls({.duplicate_permille = 1000}, 20);
  EXPECT_EQ(run.handler_calls, 40);
  EXPECT_EQ(run.counts.duplicated, 20);
  EXPECT_EQ(run.counts.duplicates_differing, 0);
}

TEST(FaultyChannelTest, ASeedRepeatsItselfAndAnotherDiffers) {
  FaultPlan plan{.seed = 8,
                 .drop_permille = 200,
                 .corrupt_permille = 200,
                 .delay_permille = 200,
                 .duplicate_permille = 200};
  const Outcome first = RunCalls(plan, 200);
  const Outcome again = RunCalls(plan, 200);
  EXPECT_EQ(first.reasons, again.reasons);
  EXPECT_EQ(first.handler_calls, again.handler_calls);
  EXPECT_EQ(first.end, again.end);
  plan.seed = 9;
  EXPECT_NE(RunCalls(plan, 200).reasons, first.reasons);
}

TEST(FaultyChannelTest, CancelledCallsStayCancelled) {
  FakeClock clock;
  FakeHandler handler;
  InprocOptions options;
  options.limits = {.num_slots = 1, .max_rows = 4, .max_pairs = 8, .row_width = 16};
  options.clock = &clock;
  FaultyChannel channel(MakeInprocChannel(handler, options), {.drop_permille = 1000}, clock);
  CallSlot* slot = channel.Acquire();
  FillCall(*slot, 1, 1.0f);
  ASSERT_TRUE(channel.Dispatch(slot).ok());
  channel.Cancel(slot);
  EXPECT_EQ(channel.Await(slot).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(channel.counts().dropped, 0);
  channel.Release(slot);
  EXPECT_EQ(channel.Acquire(), slot);
}

}  // namespace
}  // namespace conclave::testing
