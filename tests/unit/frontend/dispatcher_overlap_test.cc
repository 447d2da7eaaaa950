// Goal: while the caller computes between Start and Finish the workers do too, nothing that happens
// to them meanwhile changes a row, and the caller's own time is not taken for theirs.
// Method: channels with a script on a fake clock, which the caller moves on as if it computed.
#include <gtest/gtest.h>

#include "conclave/base/status.h"
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

TEST_F(DispatcherFailoverTest, AnAnswerThatCameMeanwhileCostsNoFurtherWait) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.latency = milliseconds(3);
  for (const bool polls : {true, false}) {
    busy_ = milliseconds(5);
    polls_ = polls;
    ASSERT_TRUE(Run(8).ok());
    EXPECT_EQ(took_, milliseconds(5));
    busy_ = milliseconds(1);
    ASSERT_TRUE(Run(8).ok());
    EXPECT_EQ(took_, milliseconds(3));
  }
}

TEST_F(DispatcherFailoverTest, CallsBeyondTheSlotsAreSentByPoll) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  options_.max_rows = 80;
  Start();
  // Five calls of 16 rows, and the link has four slots.
  busy_ = milliseconds(2);
  ASSERT_TRUE(Run(80, /*is_prefill=*/true).ok());
  EXPECT_EQ(a.num_calls, 5);
  EXPECT_EQ(took_, milliseconds(2));
  polls_ = false;
  ASSERT_TRUE(Run(80, /*is_prefill=*/true).ok());
  EXPECT_EQ(took_, milliseconds(2) + microseconds(500));
}

TEST_F(DispatcherFailoverTest, ALinkThatIsLostMeanwhileIsMasked) {
  for (const bool polls : {true, false}) {
    ScriptedLinks links(clock_);
    ScriptedChannel* channels[] = {&links.Add(0), &links.Add(1)};
    links.Place(PlacementOf(kBoth));
    dispatcher_ = std::make_unique<Dispatcher>(options_, links);
    channels[0]->dies_at = clock_.Now() + microseconds(100);
    busy_ = milliseconds(1);
    polls_ = polls;
    ASSERT_TRUE(Run(16).ok());
    EXPECT_LE(took_, milliseconds(1) + microseconds(500));
    dispatcher_.reset();
  }
}

TEST_F(DispatcherFailoverTest, AFatalRefusalThatCameMeanwhileIsSaidByFinish) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.refusal = InvalidArgument("bad_gate", "call: weights");
  busy_ = milliseconds(1);
  EXPECT_EQ(ReasonOf(Run(4)), "bad_gate");
  EXPECT_EQ(a.num_held_slots(), 0);
  // The next layer starts anew.
  a.refusal = absl::OkStatus();
  EXPECT_TRUE(Run(4).ok());
}

TEST_F(DispatcherFailoverTest, TheCallersOwnTimeDoesNotPutOffDeadlines) {
  options_.is_hedging = false;
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  // Attention takes a hundred times what the workers take. Were that their round trip, a hang would
  // be noticed after four times as long.
  busy_ = milliseconds(50);
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  (a.num_calls > 0 ? a : b).is_hung = true;
  busy_ = microseconds(0);
  ASSERT_TRUE(Run(1).ok());
  EXPECT_EQ(dispatcher_->Stats().timeouts, 1u);
  EXPECT_LE(took_, options_.link.deadline_min + microseconds(500) + milliseconds(1));
}

}  // namespace
}  // namespace conclave::frontend
