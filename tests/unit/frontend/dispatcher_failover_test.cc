// Goal: whatever happens to a worker while a call is under way, the layer's rows are those of an
// undisturbed run, each term combined once, and nobody waits longer than the settings say.
// Method: channels with a script on a fake clock, behind two or three workers that hold every
// expert or part of them; what comes out is compared with arithmetic.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "conclave/base/status.h"
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

TEST_F(DispatcherFailoverTest, ARowGoesToOneWorkerWhenOneHoldsBothOfItsExperts) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  ASSERT_TRUE(Run(1).ok());
  EXPECT_EQ(a.num_calls + b.num_calls, 1);
}

TEST_F(DispatcherFailoverTest, ALostLinkIsMaskedByTheOtherReplicaAtOnce) {
  for (int32_t victim : {0, 1}) {
    ScriptedLinks links(clock_);
    ScriptedChannel* channels[] = {&links.Add(0), &links.Add(1)};
    links.Place(PlacementOf(kBoth));
    dispatcher_ = std::make_unique<Dispatcher>(options_, links);
    channels[victim]->dies_at = clock_.Now() + microseconds(300);
    ASSERT_TRUE(Run(8).ok());
    // Detected when it happens, and one more call of the other.
    EXPECT_LE(took_, microseconds(300) + microseconds(500) + milliseconds(1));
    EXPECT_EQ(dispatcher_->Stats().timeouts, 0u);
    dispatcher_.reset();
  }
}

TEST_F(DispatcherFailoverTest, AHungWorkerCostsNoMoreThanTheHedgeDelay) {
  options_.link.hedge_min = milliseconds(2);
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  (a.num_calls > 0 ? a : b).is_hung = true;
  ASSERT_TRUE(Run(1).ok());
  EXPECT_LE(took_, options_.link.hedge_min + microseconds(500) + milliseconds(1));
  EXPECT_EQ(dispatcher_->Stats().hedges_won, 1u);
  EXPECT_EQ(dispatcher_->Stats().retries, 0u);
  EXPECT_GE(a.num_cancelled + b.num_cancelled, 1);
}

TEST_F(DispatcherFailoverTest, WithoutHedgesTheDeadlineEndsTheWait) {
  options_.is_hedging = false;
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  (a.num_calls > 0 ? a : b).is_hung = true;
  ASSERT_TRUE(Run(1).ok());
  EXPECT_LE(took_, options_.link.deadline_min + microseconds(500) + milliseconds(1));
  EXPECT_EQ(dispatcher_->Stats().timeouts, 1u);
  EXPECT_EQ(dispatcher_->Stats().retries, 1u);
  EXPECT_EQ(links_.reports.size(), 1u);
}

TEST_F(DispatcherFailoverTest, AHungWorkerGetsNoFurtherCallsAndComesBackByProbes) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  ScriptedChannel& victim = a.num_calls > 0 ? a : b;
  victim.is_hung = true;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(Run(1).ok());
    clock_.Advance(milliseconds(20));
  }
  // Three losses eject it; then only a probe now and then.
  const int calls_when_ejected = victim.num_calls;
  for (int i = 0; i < 20; ++i) {
    ASSERT_TRUE(Run(1).ok());
    EXPECT_LE(took_, microseconds(600));
  }
  EXPECT_LE(victim.num_calls - calls_when_ejected, 1);
  victim.is_hung = false;
  for (int i = 0; i < 200; ++i) {
    clock_.Advance(milliseconds(100));
    ASSERT_TRUE(Run(1).ok());
  }
  EXPECT_TRUE(std::any_of(links_.reports.begin(), links_.reports.end(), [](const auto& report) {
    return report.second == PeerSighting::kRecovered;
  }));
  dispatcher_.reset();
}

// The network has become slow, not the workers: after a few answers that came too late, calls wait
// long enough, and cost no re-sends any more.
TEST_F(DispatcherFailoverTest, LateAnswersTeachThatDeadlinesAreTooShort) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  a.latency = b.latency = milliseconds(40);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  const uint64_t timeouts = dispatcher_->Stats().timeouts;
  EXPECT_GT(timeouts, 0u);
  EXPECT_LT(timeouts, 40u);
  for (int i = 0; i < 40; ++i) {
    ASSERT_TRUE(Run(1).ok());
    EXPECT_LE(took_, milliseconds(60));
  }
  EXPECT_EQ(dispatcher_->Stats().timeouts, timeouts);
}

TEST_F(DispatcherFailoverTest, ACallWhoseExpertsAreSpreadElsewhereIsSplit) {
  ScriptedChannel& a = links_.Add(0);
  links_.Add(1);
  links_.Add(2);
  // Worker 0 holds all; the others two each.
  links_.Place(PlacementOf({{0, 1}, {0, 1}, {0, 2}, {0, 2}}));
  Start();
  a.dies_at = clock_.Now() + microseconds(1);
  ASSERT_TRUE(Run(16).ok());
  ASSERT_TRUE(Run(16, true).ok());
}

TEST_F(DispatcherFailoverTest, ARefusalForAnExpertThatIsNotHeldGoesToAnotherHolder) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  a.not_held = {0, 1};
  b.not_held = {2, 3};
  // Each holds half of what the stale placement says: calls bounce once and find their holder.
  ASSERT_TRUE(Run(1).ok());
}

TEST_F(DispatcherFailoverTest, AnExpertThatNobodyHoldsEndsAfterTheWait) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.not_held = {1};
  const absl::Status status = Run(4);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "expert_unserved");
  EXPECT_GE(took_, options_.expert_wait);
  EXPECT_LE(took_, options_.expert_wait + milliseconds(50));
}

TEST_F(DispatcherFailoverTest, AWaitingCallGoesOnWhenALinkComes) {
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  links_.At(clock_.Now() + milliseconds(700), [this] { links_.Add(0); });
  ASSERT_TRUE(Run(8).ok());
  EXPECT_GE(took_, milliseconds(700));
  EXPECT_LE(took_, milliseconds(710));
  EXPECT_GE(dispatcher_->Stats().waits, 1u);
}

TEST_F(DispatcherFailoverTest, AWaitingCallGoesOnWhenAPlacementNamesANewHolder) {
  ScriptedChannel& a = links_.Add(0);
  links_.Add(1);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.not_held = {0, 1, 2, 3};
  links_.At(clock_.Now() + milliseconds(300), [this] {
    links_.Place(PlacementOf({{1}, {1}, {1}, {1}}, 2));
  });
  ASSERT_TRUE(Run(8).ok());
  EXPECT_LE(took_, milliseconds(310));
}

TEST_F(DispatcherFailoverTest, ASingleReplicaThatIsSlowOnceIsAskedAgain) {
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  a.is_hung = true;
  links_.At(clock_.Now() + milliseconds(40), [&a] { a.is_hung = false; });
  ASSERT_TRUE(Run(1).ok());
  EXPECT_LE(took_, milliseconds(120));
}

TEST_F(DispatcherFailoverTest, ARefusalThatIsTheSameEverywhereFailsTheStep) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  a.refusal = b.refusal = InvalidArgument("bad_gate", "call: weights");
  const absl::Status status = Run(1);
  EXPECT_EQ(ReasonOf(status), "bad_gate");
  EXPECT_EQ(a.num_calls + b.num_calls, 1);
  EXPECT_EQ(a.num_held_slots() + b.num_held_slots(), 0);
}

TEST_F(DispatcherFailoverTest, RetriesStayWithinTheirBudget) {
  // Both workers refuse everything for a while: what is sent stays bounded by the bucket, and the
  // call succeeds as soon as one of them works.
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  links_.Place(PlacementOf(kBoth));
  Start();
  options_.attempts_max = 4;
  a.refusal = b.refusal = Error(absl::StatusCode::kResourceExhausted, "busy", "call: too many");
  links_.At(clock_.Now() + milliseconds(900), [&] { a.refusal = b.refusal = absl::OkStatus(); });
  ASSERT_TRUE(Run(1).ok());
  EXPECT_LE(a.num_calls + b.num_calls, 20 + 3 + 4);
  EXPECT_EQ(dispatcher_->Stats().retries + 1, static_cast<uint64_t>(a.num_calls + b.num_calls));
}

TEST_F(DispatcherFailoverTest, ARemovedWorkersLinkIsGivenBackAndAnotherIncarnationTakesOver) {
  ScriptedChannel& old = links_.Add(0, 1);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  ASSERT_TRUE(Run(4).ok());
  ScriptedChannel& fresh = links_.Add(0, 2);
  ASSERT_TRUE(Run(4).ok());
  EXPECT_EQ(links_.num_released, 1);
  EXPECT_EQ(old.num_calls, 1);
  EXPECT_EQ(fresh.num_calls, 1);
}

// Seeds: workers die, hang, come back, refuse and are slow by chance while layers run; every layer
// that succeeds is right, and none fails while an expert has a healthy holder.
class DispatcherStormTest : public DispatcherFailoverTest,
                            public ::testing::WithParamInterface<int> {};

TEST_P(DispatcherStormTest, EveryLayerIsExact) {
  std::mt19937_64 random(static_cast<uint64_t>(GetParam()));
  std::vector<ScriptedChannel*> channels;
  for (int32_t w = 0; w < 3; ++w) {
    channels.push_back(&links_.Add(w));
  }
  links_.Place(PlacementOf({{0, 1}, {1, 2}, {2, 0}, {0, 1}}));
  Start();
  uint64_t incarnation = 1;
  for (int step = 0; step < 300; ++step) {
    // Worker 0 and one more are never in trouble at once for long: at most one is ill.
    const auto ill = static_cast<size_t>(random() % 3);
    for (size_t w = 0; w < channels.size(); ++w) {
      ScriptedChannel& channel = *channels[w];
      channel.is_hung = false;
      channel.refusal = absl::OkStatus();
      channel.latency = microseconds(200 + random() % 800);
      if (w != ill) {
        continue;
      }
      switch (random() % 5) {
        case 0:
          channel.is_hung = true;
          break;
        case 1:
          channel.dies_at = clock_.Now() + microseconds(random() % 1000);
          break;
        case 2:
          channel.refusal = Error(absl::StatusCode::kDataLoss, "corrupt_payload", "call: damaged");
          break;
        case 3:
          channel.latency = milliseconds(random() % 100);
          break;
        default:
          break;
      }
    }
    ASSERT_TRUE(Run(1 + static_cast<int>(random() % 40), random() % 2 == 0).ok())
        << "seed " << GetParam() << " step " << step;
    if (channels[ill]->dies_at) {
      clock_.Advance(milliseconds(2));
      channels[ill] = &links_.Add(static_cast<int32_t>(ill), ++incarnation);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, DispatcherStormTest, ::testing::Range(0, 20));

}  // namespace
}  // namespace conclave::frontend
