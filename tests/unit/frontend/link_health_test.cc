// Goal: deadlines and hedge delays follow what a link has shown, within their bounds; a link that
// loses calls is set aside and comes back by probes; re-sends stay within their budget. Method: a
// clock by hand, tables of events.
#include "conclave/frontend/link_health.h"

#include <gtest/gtest.h>

namespace conclave::frontend {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Trust = LinkHealth::Trust;

class LinkHealthTest : public ::testing::Test {
 protected:
  LinkHealthTest() { health_.SetEstimate(1'000, 100); }

  void Answer(int count, int rows, Microseconds round_trip) {
    for (int i = 0; i < count; ++i) {
      health_.OnSent(rows, now_);
      now_ += round_trip;
      health_.OnAnswer(rows, round_trip, 0, static_cast<uint32_t>(round_trip.count()), now_);
    }
  }
  void Timeout(int count) {
    for (int i = 0; i < count; ++i) {
      health_.OnSent(1, now_);
      now_ += milliseconds(5);
      health_.OnTimeout(1, now_);
    }
  }

  LinkSettings settings_;
  LinkHealth health_{settings_};
  MonotonicTime now_{seconds(100)};
};

TEST_F(LinkHealthTest, BeforeAnythingIsSeenTheEstimateDoubledCountsTimesTheColdFactor) {
  // One expert, one row: 1.1 ms, doubled 2.2 ms, raised to the least deadline, and cold.
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), settings_.deadline_min * settings_.cold_factor);
  Answer(settings_.warm_answers, 1, Microseconds(1'000));
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), settings_.deadline_min);
  // 256 rows of two experts: 27.6 ms, doubled.
  EXPECT_EQ(health_.DeadlineFor(256, 2, 1.0), Microseconds(55'200));
}

TEST_F(LinkHealthTest, TheDeadlineIsFourTimesThePercentileThatWasSeenAndCapped) {
  Answer(200, 1, Microseconds(4'000));
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), Microseconds(16'000));
  EXPECT_EQ(health_.HedgeDelayFor(1, 1, 1.0), settings_.hedge_min);
  Answer(600, 1, Microseconds(60'000));
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), settings_.deadline_max);
  EXPECT_EQ(health_.HedgeDelayFor(1, 1, 1.0), Microseconds(60'000));
}

// 40 ms of network are not 40 ms of silence: without this every call to a far worker would run into
// its deadline until fifty of its size had been answered, each by its last attempt alone.
TEST_F(LinkHealthTest, TheWayToAFarWorkerCountsForSizesThatWereNotSeenYet) {
  const auto answer = [this](Microseconds round_trip, uint32_t queue_us, uint32_t service_us) {
    health_.OnSent(1, now_);
    now_ += round_trip;
    health_.OnAnswer(1, round_trip, queue_us, service_us, now_);
  };
  for (int i = 0; i < settings_.warm_answers; ++i) {
    answer(Microseconds(42'000), 1'000, 1'000);
  }
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), Microseconds(2 * (40'000 + 1'100)));
  EXPECT_EQ(health_.HedgeDelayFor(1, 1, 1.0), Microseconds(2 * (40'000 + 1'100)));
  // One answer that this side was late to look at says little, one that came at once says it all.
  answer(Microseconds(140'000), 0, 0);
  EXPECT_LT(health_.DeadlineFor(1, 1, 1.0), Microseconds(2 * (46'000 + 1'100)));
  answer(Microseconds(3'000), 1'000, 1'000);
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), settings_.deadline_min);
}

TEST_F(LinkHealthTest, LateTimersStretchAndAFalseAlarmTeachesPatience) {
  Answer(200, 1, Microseconds(4'000));
  EXPECT_EQ(health_.DeadlineFor(1, 1, 2.0), Microseconds(32'000));
  health_.OnFalseAlarm();
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), Microseconds(24'000));
  Answer(2'000, 1, Microseconds(4'000));
  EXPECT_EQ(health_.DeadlineFor(1, 1, 1.0), Microseconds(16'000));
}

TEST_F(LinkHealthTest, SizeClassesDoNotTeachEachOther) {
  Answer(200, 1, Microseconds(30'000));
  EXPECT_EQ(health_.DeadlineFor(8, 1, 1.0), settings_.deadline_min);
}

TEST_F(LinkHealthTest, TwoTimeoutsInARowMakeItSuspectAndAnAnswerTrusted) {
  Answer(20, 1, Microseconds(500));
  Timeout(1);
  EXPECT_EQ(health_.TrustAt(now_), Trust::kFull);
  Timeout(1);
  EXPECT_EQ(health_.TrustAt(now_), Trust::kNone);
  EXPECT_EQ(health_.TrustAt(now_ + settings_.probe_interval), Trust::kProbe);
  now_ += settings_.probe_interval;
  Answer(1, 1, Microseconds(500));
  EXPECT_EQ(health_.TrustAt(now_), Trust::kFull);
}

TEST_F(LinkHealthTest, ThreeLossesEjectItAndThreeProbesBringItBack) {
  Answer(20, 1, Microseconds(500));
  Timeout(3);
  EXPECT_TRUE(health_.is_ejected());
  EXPECT_EQ(health_.TrustAt(now_ + milliseconds(900)), Trust::kNone);
  now_ += milliseconds(1'100);
  for (int i = 0; i < settings_.probes_to_close; ++i) {
    EXPECT_TRUE(health_.is_ejected());
    EXPECT_EQ(health_.TrustAt(now_), Trust::kProbe);
    Answer(1, 1, Microseconds(500));
  }
  EXPECT_TRUE(health_.is_trusted());
}

TEST_F(LinkHealthTest, EjectionsInARowLastLonger) {
  Timeout(3);
  now_ += milliseconds(1'100);
  Timeout(1);  // the probe fails: twice as long
  EXPECT_EQ(health_.TrustAt(now_ + milliseconds(1'900)), Trust::kNone);
  EXPECT_EQ(health_.TrustAt(now_ + milliseconds(2'100)), Trust::kProbe);
}

TEST_F(LinkHealthTest, FiveErrorsOfTwentyEjectItToo) {
  for (int i = 0; i < settings_.eject_errors; ++i) {
    Answer(2, 1, Microseconds(500));
    EXPECT_FALSE(health_.is_ejected());
    health_.OnSent(1, now_);
    health_.OnError(1, now_);
  }
  EXPECT_TRUE(health_.is_ejected());
}

TEST_F(LinkHealthTest, WhatIsUnderWayIsCounted) {
  health_.OnSent(10, now_);
  health_.OnSent(5, now_);
  EXPECT_EQ(health_.outstanding_rows(), 15);
  EXPECT_DOUBLE_EQ(health_.ExpectedUs(1, 1), 15 * 100 + 1'000 + 100);
  health_.OnWithdrawn(10);
  health_.OnTimeout(5, now_);
  EXPECT_EQ(health_.outstanding_rows(), 0);
  EXPECT_EQ(health_.outstanding_calls(), 0);
}

TEST(RetryBudget, ATwentiethOfTheCapPerFiveCallsAndThreeASecond) {
  MonotonicTime now{seconds(10)};
  RetryBudget budget({}, now);
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(budget.Take(now));
  }
  EXPECT_FALSE(budget.Take(now));
  EXPECT_LE(budget.NextToken(now), now + milliseconds(334));
  for (int i = 0; i < 5; ++i) {
    EXPECT_FALSE(budget.Take(now));
    budget.OnFirstAttempt();
  }
  EXPECT_TRUE(budget.Take(now));
  now += seconds(1);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(budget.Take(now)) << i;
  }
  EXPECT_FALSE(budget.Take(now));
}

TEST(TimerLateness, TheSecondLargestOfManyCountsAndTheFactorIsCapped) {
  TimerLateness lateness;
  EXPECT_DOUBLE_EQ(lateness.factor(), 1.0);
  lateness.Observe(milliseconds(400));
  EXPECT_DOUBLE_EQ(lateness.factor(), 1.0) << "one slip says nothing";
  lateness.Observe(milliseconds(100));
  EXPECT_DOUBLE_EQ(lateness.factor(), 2.0);
  lateness.Observe(seconds(5));
  EXPECT_DOUBLE_EQ(lateness.factor(), 5.0);
  lateness.Observe(seconds(5));
  EXPECT_DOUBLE_EQ(lateness.factor(), 8.0);
}

}  // namespace
}  // namespace conclave::frontend
