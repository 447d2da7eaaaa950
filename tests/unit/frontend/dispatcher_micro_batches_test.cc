// Goal: two micro-batches share links, slots and what is known of workers, and neither can harm the
// other's rows: not by a lost link, not by an error, not by holding every slot.
// Method: channels with a script on a fake clock; two layers are under way at once, started and
// finished as the decoder does it.
#include <gtest/gtest.h>

#include "conclave/base/status.h"
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

TEST_F(DispatcherFailoverTest, TwoMicroBatchesAreAwayAtOnce) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.latency = milliseconds(3);
  LayerRows first(8, false);
  LayerRows second(5, false);
  const MonotonicTime begin = clock_.Now();
  first.Start(*dispatcher_, 0);
  clock_.Advance(milliseconds(2));
  second.Start(*dispatcher_, 1);
  EXPECT_EQ(a.num_held_slots(), 2);
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  EXPECT_EQ(clock_.Now() - begin, milliseconds(3));
  // The first goes on to its next layer while the second is still away.
  first.Start(*dispatcher_, 0);
  ASSERT_TRUE(second.Finish(*dispatcher_, 1).ok());
  EXPECT_EQ(clock_.Now() - begin, milliseconds(5));
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  EXPECT_EQ(clock_.Now() - begin, milliseconds(6));
  EXPECT_EQ(a.num_held_slots(), 0);
}

TEST_F(DispatcherFailoverTest, ALostLinkTakesTheCallsOfBothAndBothAreMasked) {
  ScriptedChannel* channels[] = {&links_.Add(0), &links_.Add(1)};
  links_.Place(PlacementOf(kBoth));
  Start();
  channels[0]->latency = milliseconds(2);
  channels[1]->latency = milliseconds(2);
  LayerRows first(16, false);
  LayerRows second(16, false);
  first.Start(*dispatcher_, 0);
  second.Start(*dispatcher_, 1);
  channels[0]->dies_at = clock_.Now() + milliseconds(1);
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  ASSERT_TRUE(second.Finish(*dispatcher_, 1).ok());
  EXPECT_GE(dispatcher_->Stats().link_losses, 1u);
  EXPECT_EQ(links_.num_released, 1);
  EXPECT_EQ(channels[1]->num_held_slots(), 0);
}

TEST_F(DispatcherFailoverTest, OneWaitsForSlotsThatTheOtherHolds) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  options_.max_rows = 96;
  Start();
  // Four slots: the first micro-batch's four calls take them all, and the second's wait.
  LayerRows first(64, true);
  LayerRows second(96, true);
  first.Start(*dispatcher_, 0);
  second.Start(*dispatcher_, 1);
  EXPECT_EQ(a.num_held_slots(), 4);
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  // And the other way round.
  first.Start(*dispatcher_, 0);
  ASSERT_TRUE(second.Finish(*dispatcher_, 1).ok());
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  EXPECT_EQ(a.num_held_slots(), 0);
  EXPECT_EQ(dispatcher_->Stats().calls, 4u + 6u + 4u);
}

TEST_F(DispatcherFailoverTest, AnErrorOfOneIsSaidByItsOwnFinish) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  LayerRows first(4, false);
  LayerRows second(4, false);
  first.Start(*dispatcher_, 0);
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  a.latency = milliseconds(1);
  first.Start(*dispatcher_, 0);
  clock_.Advance(milliseconds(1));
  dispatcher_->Poll();  // the first has its rows
  a.refusal = InvalidArgument("bad_gate", "call: weights");
  second.Start(*dispatcher_, 1);
  clock_.Advance(milliseconds(1));
  EXPECT_TRUE(first.Finish(*dispatcher_, 0).ok());
  EXPECT_EQ(ReasonOf(second.Finish(*dispatcher_, 1)), "bad_gate");
  EXPECT_EQ(a.num_held_slots(), 0);
  a.refusal = absl::OkStatus();
  second.Start(*dispatcher_, 1);
  EXPECT_TRUE(second.Finish(*dispatcher_, 1).ok());
}

TEST_F(DispatcherFailoverTest, AHangIsNoticedInBoth) {
  options_.is_hedging = false;
  ScriptedChannel* channels[] = {&links_.Add(0), &links_.Add(1)};
  links_.Place(PlacementOf(kBoth));
  Start();
  for (int i = 0; i < 60; ++i) {
    ASSERT_TRUE(Run(8).ok());
  }
  channels[0]->is_hung = true;
  channels[1]->is_hung = true;
  LayerRows first(8, false);
  LayerRows second(8, false);
  first.Start(*dispatcher_, 0);
  second.Start(*dispatcher_, 1);
  links_.At(clock_.Now() + milliseconds(1), [&] { channels[1]->is_hung = false; });
  ASSERT_TRUE(first.Finish(*dispatcher_, 0).ok());
  // The caller's work until the second's turn is not held against its worker.
  clock_.Advance(milliseconds(40));
  ASSERT_TRUE(second.Finish(*dispatcher_, 1).ok());
  EXPECT_EQ(channels[0]->num_held_slots() + channels[1]->num_held_slots(), 0);
}

// What nobody serves stays unserved for both, and the failed step leaves nothing behind.
TEST_F(DispatcherFailoverTest, BothEndWhereNobodyServes) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {7}, {0}}));
  Start();
  LayerRows first(4, false);
  LayerRows second(4, false);
  const MonotonicTime begin = clock_.Now();
  first.Start(*dispatcher_, 0);
  second.Start(*dispatcher_, 1);
  EXPECT_EQ(ReasonOf(first.Finish(*dispatcher_, 0)), "expert_unserved");
  EXPECT_EQ(ReasonOf(second.Finish(*dispatcher_, 1)), "expert_unserved");
  EXPECT_LE(clock_.Now() - begin, options_.expert_wait + milliseconds(10));
  EXPECT_EQ(a.num_held_slots(), 0);
}

}  // namespace
}  // namespace conclave::frontend
