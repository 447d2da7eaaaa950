// Goal: a worker obeys the right router, only while it is a member; loads, retires and reports what
// it was told; comes back after a loss with what it holds; and leaves without a loss.
// Method: events by hand with a made-up time, and the list of actions that follows.
#include "conclave/expert_worker/worker_control.h"

#include <algorithm>
#include <random>

#include "conclave/base/status.h"
#include "gtest/gtest.h"

namespace conclave::expert_worker {
namespace {

using placement::ExpertUnit;
using std::chrono::milliseconds;

ExpertUnit Unit(int32_t layer, int32_t expert) { return {LayerId(layer), ExpertId(expert)}; }

HeldExpert Held(ExpertUnit unit, uint8_t hash = 1) {
  HeldExpert held;
  held.unit = unit;
  held.weight_hash.fill(hash);
  held.canary_checksum = 100u + static_cast<uint32_t>(unit.expert.value());
  return held;
}

class WorkerControlTest : public ::testing::Test {
 protected:
  explicit WorkerControlTest(WorkerControlOptions options = {}) : core_(options) {}

  template <typename T>
  static std::vector<T> Of(const WorkerActions& actions) {
    std::vector<T> found;
    for (const WorkerAction& action : actions) {
      if (const T* match = std::get_if<T>(&action)) {
        found.push_back(*match);
      }
    }
    return found;
  }
  template <typename T>
  static size_t Count(const WorkerActions& actions) {
    return Of<T>(actions).size();
  }

  WorkerActions Start() {
    WorkerActions out;
    core_.Start(now_, &out);
    return out;
  }
  WorkerActions Command(RouterIdentity router, decltype(RouterCommand::command) body) {
    WorkerActions out;
    core_.OnCommand(now_, {std::move(router), std::move(body)}, &out);
    return out;
  }
  WorkerActions Command(decltype(RouterCommand::command) body) {
    return Command(router_, std::move(body));
  }
  WorkerActions Registered() {
    RegisteredCommand command;
    command.worker = WorkerId(3);
    command.worker_key = 77;
    return Command(command);
  }
  void Join() {
    Start();
    Registered();
  }
  WorkerActions Loaded(ExpertUnit unit, uint8_t hash = 1) {
    WorkerActions out;
    core_.OnLoaded(now_, unit, Held(unit, hash), &out);
    return out;
  }
  WorkerActions Lost(const absl::Status& why = absl::UnavailableError("gone")) {
    WorkerActions out;
    core_.OnStreamLost(now_, why, &out);
    return out;
  }
  WorkerActions Tick() {
    WorkerActions out;
    core_.OnTimer(now_, &out);
    return out;
  }
  // Time passes timer by timer; heartbeats are acknowledged when `acknowledge`.
  WorkerActions Pass(milliseconds duration, bool acknowledge = true) {
    const MonotonicTime end = now_ + duration;
    WorkerActions all;
    while (core_.NextTimer() <= end) {
      now_ = std::max(now_, core_.NextTimer());
      WorkerActions out = Tick();
      for (const auto& beat : Of<action::SendHeartbeat>(out)) {
        if (acknowledge) {
          const WorkerActions more = Command(HeartbeatAckCommand{beat.seq});
          out.insert(out.end(), more.begin(), more.end());
        }
      }
      all.insert(all.end(), out.begin(), out.end());
    }
    now_ = end;
    return all;
  }

  WorkerControlCore core_;
  MonotonicTime now_ = MonotonicTime(std::chrono::seconds(1000));
  RouterIdentity router_{4, "aaaa"};
};

TEST_F(WorkerControlTest, RegistersFirstAndThenBeats) {
  EXPECT_EQ(Count<action::Connect>(Start()), 1u);
  EXPECT_TRUE(Pass(milliseconds(500)).empty());
  const WorkerActions registered = Registered();
  ASSERT_EQ(Count<action::SetRegistration>(registered), 1u);
  EXPECT_EQ(Of<action::SetRegistration>(registered)[0].worker_key, 77u);
  const WorkerActions beats = Pass(milliseconds(1000));
  EXPECT_EQ(Count<action::SendHeartbeat>(beats), 6u);  // at 0, 200, ..., 1000
  EXPECT_EQ(Count<action::SendLoads>(beats), 1u);
  EXPECT_EQ(core_.state(now_), WorkerState::kRegistered);
}

TEST_F(WorkerControlTest, PreparesAtMostTwoAtOnceAndAnswersWhenAllAreDone) {
  Join();
  const WorkerActions first = Command(PrepareCommand{9, {Unit(0, 0), Unit(0, 1), Unit(1, 0)}, {}});
  EXPECT_EQ(Count<action::LoadExpert>(first), 2u);
  EXPECT_EQ(core_.num_loading(), 3u);
  const WorkerActions second = Loaded(Unit(0, 1));
  EXPECT_EQ(Count<action::LoadExpert>(second), 1u);
  EXPECT_EQ(Count<action::SendPrepareResult>(second), 0u);
  Loaded(Unit(0, 0));
  const auto results = Of<action::SendPrepareResult>(Loaded(Unit(1, 0)));
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].plan_id, 9u);
  ASSERT_EQ(results[0].ready.size(), 3u);
  EXPECT_EQ(results[0].ready[0], Held(Unit(0, 0)));
  EXPECT_TRUE(results[0].failed.empty());
}

TEST_F(WorkerControlTest, AnExpertThatIsHeldIsReadyAtOnce) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0)}, {}});
  Loaded(Unit(0, 0));
  const WorkerActions again = Command(PrepareCommand{2, {Unit(0, 0)}, {}});
  EXPECT_EQ(Count<action::LoadExpert>(again), 0u);
  ASSERT_EQ(Count<action::SendPrepareResult>(again), 1u);
  EXPECT_EQ(Of<action::SendPrepareResult>(again)[0].ready.size(), 1u);
  // Other weights than it holds are not made ready.
  ExpectedExpert expected;
  expected.weight_hash = Held(Unit(0, 0), 2).weight_hash;
  const auto wrong = Of<action::SendPrepareResult>(
      Command(PrepareCommand{3, {Unit(0, 0)}, {{Unit(0, 0), expected}}}));
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_TRUE(wrong[0].ready.empty());
  EXPECT_EQ(wrong[0].failed, std::vector<ExpertUnit>{Unit(0, 0)});
}

TEST_F(WorkerControlTest, WhatIsExpectedTravelsWithTheLoad) {
  Join();
  ExpectedExpert expected;
  expected.canary_checksum = 5;
  const auto loads =
      Of<action::LoadExpert>(Command(PrepareCommand{1, {Unit(0, 0)}, {{Unit(0, 0), expected}}}));
  ASSERT_EQ(loads.size(), 1u);
  EXPECT_EQ(loads[0].expected.canary_checksum, 5u);
}

TEST_F(WorkerControlTest, TwoPlansWaitForOneLoad) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0)}, {}});
  EXPECT_EQ(Count<action::LoadExpert>(Command(PrepareCommand{2, {Unit(0, 0)}, {}})), 0u);
  EXPECT_TRUE(Command(PrepareCommand{2, {Unit(0, 0)}, {}}).empty());  // sent again
  const auto results = Of<action::SendPrepareResult>(Loaded(Unit(0, 0)));
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].ready.size(), 1u);
  EXPECT_EQ(results[1].ready.size(), 1u);
}

TEST_F(WorkerControlTest, AFailedLoadIsNamedWithItsReason) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0), Unit(0, 1)}, {}});
  Loaded(Unit(0, 0));
  WorkerActions out;
  core_.OnLoaded(now_, Unit(0, 1),
                 Error(absl::StatusCode::kResourceExhausted, "worker_memory", "no room"), &out);
  const auto results = Of<action::SendPrepareResult>(out);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].ready.size(), 1u);
  EXPECT_EQ(results[0].failed, std::vector<ExpertUnit>{Unit(0, 1)});
  EXPECT_EQ(results[0].error, "worker_memory: no room");
}

TEST_F(WorkerControlTest, RetiresAndAnswers) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0)}, {}});
  Loaded(Unit(0, 0));
  const WorkerActions retire = Command(RetireCommand{2, {Unit(0, 0)}});
  ASSERT_EQ(Count<action::RetireExperts>(retire), 1u);
  EXPECT_TRUE(core_.registration().held.empty());
  EXPECT_TRUE(Command(RetireCommand{2, {Unit(0, 0)}}).empty());  // sent again
  WorkerActions out;
  core_.OnRetired(now_, 2, 4096, &out);
  ASSERT_EQ(Count<action::SendRetireResult>(out), 1u);
  EXPECT_EQ(Of<action::SendRetireResult>(out)[0].freed_bytes, 4096);
}

TEST_F(WorkerControlTest, ARetireOfWhatIsBeingLoadedComesAfterTheLoad) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0), Unit(0, 1), Unit(0, 2)}, {}});
  EXPECT_EQ(Count<action::RetireExperts>(Command(RetireCommand{2, {Unit(0, 0)}})), 0u);
  EXPECT_EQ(Count<action::RetireExperts>(Loaded(Unit(0, 0))), 1u);
  // One that still waits is not loaded at all, and its plan hears so.
  Loaded(Unit(0, 1));
  Command(PrepareCommand{3, {Unit(1, 0), Unit(1, 1)}, {}});
  const WorkerActions out = Command(RetireCommand{4, {Unit(1, 1)}});
  EXPECT_EQ(Count<action::RetireExperts>(out), 1u);
}

TEST_F(WorkerControlTest, ObeysTheHighestTermAndItsFirstRouter) {
  Join();
  EXPECT_EQ(Count<action::Disconnect>(
                Command(RouterIdentity{3, "aaaa"}, PrepareCommand{1, {Unit(0, 0)}, {}})),
            1u);
  // The stale stream was given up; the worker tries again at once or soon.
  Pass(milliseconds(200));
  Registered();
  const WorkerActions other =
      Command(RouterIdentity{4, "bbbb"}, PrepareCommand{1, {Unit(0, 0)}, {}});
  ASSERT_EQ(Count<action::Disconnect>(other), 1u);
  EXPECT_EQ(ReasonOf(Of<action::Disconnect>(other)[0].why), "stale_term");
  EXPECT_EQ(Count<action::LoadExpert>(other), 0u);
  Pass(milliseconds(300));
  RegisteredCommand newer;
  newer.worker = WorkerId(8);
  EXPECT_EQ(Count<action::SetRegistration>(Command(RouterIdentity{5, "bbbb"}, newer)), 1u);
  EXPECT_EQ(core_.router(), (RouterIdentity{5, "bbbb"}));
  EXPECT_EQ(core_.registration().last_router.term, 5u);
}

TEST_F(WorkerControlTest, WithoutAcknowledgementNothingThatIsHeldChanges) {
  Join();
  Pass(milliseconds(400));
  Pass(milliseconds(1190), /*acknowledge=*/false);
  // Sent 400 ms into the registration, acknowledged; 1.2 s later the lease is over.
  EXPECT_EQ(core_.state(now_), WorkerState::kRegistered);
  now_ += milliseconds(20);
  EXPECT_EQ(core_.state(now_), WorkerState::kFenced);
  EXPECT_TRUE(Command(PrepareCommand{1, {Unit(0, 0)}, {}}).empty());
  EXPECT_TRUE(Command(RetireCommand{2, {Unit(0, 5)}}).empty());
  // The router was slow, not gone: with its answer what waited begins.
  const WorkerActions out = Command(HeartbeatAckCommand{8});
  EXPECT_EQ(Count<action::LoadExpert>(out), 1u);
  EXPECT_EQ(Count<action::RetireExperts>(out), 1u);
}

TEST_F(WorkerControlTest, AfterAPauseBufferedCommandsDoNothingAndItRegistersAgain) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0)}, {}});
  Loaded(Unit(0, 0));
  Pass(milliseconds(400));
  now_ += milliseconds(10'000);                          // stopped
  EXPECT_TRUE(Command(HeartbeatAckCommand{3}).empty());  // of before
  EXPECT_EQ(Count<action::RetireExperts>(Command(RetireCommand{2, {Unit(0, 0)}})), 0u);
  const WorkerActions out = Tick();
  EXPECT_EQ(Count<action::Disconnect>(out), 1u);
  EXPECT_EQ(Count<action::Connect>(out), 1u);
  ASSERT_EQ(core_.registration().held.size(), 1u);
  // The retire of the old stream is forgotten.
  EXPECT_EQ(Count<action::RetireExperts>(Registered()), 0u);
}

TEST_F(WorkerControlTest, ComesBackAtOnceThenWithGrowingPauses) {
  Join();
  Pass(milliseconds(400));
  EXPECT_EQ(Count<action::Connect>(Lost()), 1u);
  milliseconds expected(100);
  for (int i = 0; i < 8; ++i) {
    const MonotonicTime lost_at = now_;
    EXPECT_EQ(Count<action::Connect>(Lost()), 0u);
    const auto pause = core_.NextTimer() - lost_at;
    EXPECT_GE(pause, expected * 8 / 10);
    EXPECT_LE(pause, expected * 12 / 10);
    now_ = core_.NextTimer();
    EXPECT_EQ(Count<action::Connect>(Tick()), 1u);
    expected = std::min(expected * 2, milliseconds(2000));
  }
  // A registration that dies at once is no reason to come back at once.
  Registered();
  EXPECT_EQ(Count<action::Connect>(Lost()), 0u);
}

TEST_F(WorkerControlTest, JitterFollowsTheSeed) {
  const auto pauses = [this](uint64_t seed) {
    WorkerControlCore core(WorkerControlOptions{.seed = seed});
    WorkerActions out;
    MonotonicTime now = now_;
    core.Start(now, &out);
    std::vector<std::chrono::nanoseconds> found;
    for (int i = 0; i < 5; ++i) {
      core.OnStreamLost(now, absl::UnavailableError("gone"), &out);
      found.push_back(core.NextTimer() - now);
      now = core.NextTimer();
      core.OnTimer(now, &out);
    }
    return found;
  };
  EXPECT_EQ(pauses(1), pauses(1));
  EXPECT_NE(pauses(1), pauses(2));
}

TEST_F(WorkerControlTest, RegistersAgainWithWhatItHolds) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0), Unit(0, 1)}, {}});
  Loaded(Unit(0, 0));
  Lost();
  // What is under way ends and counts; the plan's answer has nobody to go to.
  EXPECT_EQ(Count<action::SendPrepareResult>(Loaded(Unit(0, 1))), 0u);
  const RegistrationFacts facts = core_.registration();
  EXPECT_EQ(facts.held, (std::vector<HeldExpert>{Held(Unit(0, 0)), Held(Unit(0, 1))}));
  EXPECT_EQ(facts.last_router, router_);
}

TEST_F(WorkerControlTest, ARegistrationThatTheRouterAnswersLateKeepsItsStream) {
  Start();
  now_ += milliseconds(3500);  // a router that recovers
  EXPECT_EQ(Count<action::Disconnect>(Tick()), 0u);
  Registered();
  EXPECT_EQ(Count<action::Disconnect>(Tick()), 0u);
  // And no lease before the router has acknowledged anything.
  EXPECT_EQ(Count<action::LoadExpert>(Command(PrepareCommand{1, {Unit(0, 1)}, {}})), 0u);
  EXPECT_EQ(Count<action::LoadExpert>(Command(HeartbeatAckCommand{1})), 1u);
}

TEST_F(WorkerControlTest, ALoadThatEndsBehindANewRegistrationIsDropped) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 1), Unit(0, 2)}, {}});
  Command(HeartbeatAckCommand{1});
  Lost();
  Pass(milliseconds(500));
  Registered();
  // One of the two is wanted again.
  Command(PrepareCommand{2, {Unit(0, 2), Unit(0, 3)}, {}});
  const auto dropped = Of<action::RetireExperts>(Loaded(Unit(0, 1)));
  ASSERT_EQ(dropped.size(), 1u);
  EXPECT_EQ(dropped[0].units, std::vector<ExpertUnit>{Unit(0, 1)});
  EXPECT_EQ(Count<action::RetireExperts>(Loaded(Unit(0, 2))), 0u);
  ASSERT_EQ(core_.registration().held.size(), 1u);
  EXPECT_EQ(core_.registration().held[0].unit, Unit(0, 2));
}

TEST_F(WorkerControlTest, ARefusalThatNothingMendsEndsAWorkerThatNeverWasAMember) {
  Start();
  const WorkerActions out =
      Lost(Error(absl::StatusCode::kFailedPrecondition, "cluster_mismatch", "another model"));
  ASSERT_EQ(Count<action::Stop>(out), 1u);
  EXPECT_EQ(ReasonOf(Of<action::Stop>(out)[0].status), "cluster_mismatch");
}

TEST_F(WorkerControlTest, AMemberServesOnWhateverARouterSays) {
  Join();
  EXPECT_EQ(Count<action::Stop>(Lost(
                Error(absl::StatusCode::kFailedPrecondition, "cluster_mismatch", "another model"))),
            0u);
}

TEST_F(WorkerControlTest, ATakenNameIsTriedUntilThePredecessorsLeaseIsOver) {
  Start();
  const absl::Status taken = Error(absl::StatusCode::kAlreadyExists, "name_taken", "taken");
  WorkerActions out;
  while (Count<action::Stop>(out) == 0) {
    ASSERT_LT(now_, MonotonicTime(std::chrono::seconds(1010)));
    out = Lost(taken);
    if (Count<action::Stop>(out) == 0) {
      now_ = core_.NextTimer();
      Tick();
    }
  }
  EXPECT_GE(now_, MonotonicTime(std::chrono::seconds(1005)));
}

TEST_F(WorkerControlTest, PlacementsGiveEpochAndHolders) {
  Join();
  const auto set = Of<action::SetPlacement>(Command(
      PlacementCommand{Epoch(10),
                       Epoch(0),
                       {{Unit(0, 0), {WorkerId(3), WorkerId(4)}}, {Unit(0, 1), {WorkerId(4)}}}}));
  ASSERT_EQ(set.size(), 1u);
  EXPECT_EQ(set[0].epoch, Epoch(10));
  EXPECT_EQ(set[0].holders->at(Unit(0, 0)).size(), 2u);
  // A delta of it.
  const auto delta =
      Of<action::SetPlacement>(Command(PlacementCommand{Epoch(11), Epoch(10), {{Unit(0, 1), {}}}}));
  ASSERT_EQ(delta.size(), 1u);
  EXPECT_FALSE(delta[0].holders->contains(Unit(0, 1)));
  EXPECT_TRUE(delta[0].holders->contains(Unit(0, 0)));
  // A delta of something else, and an older one, change nothing.
  EXPECT_TRUE(Command(PlacementCommand{Epoch(13), Epoch(12), {}}).empty());
  EXPECT_TRUE(Command(PlacementCommand{Epoch(9), Epoch(0), {}}).empty());
  EXPECT_EQ(core_.epoch(), Epoch(11));
}

TEST_F(WorkerControlTest, ReadyWhenWhatItWasGivenIsLoadedAndPlaced) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0)}, {}});
  EXPECT_EQ(Count<action::AnnounceReady>(Pass(milliseconds(3000))), 0u);
  EXPECT_EQ(Count<action::AnnounceReady>(Loaded(Unit(0, 0))), 0u);
  const WorkerActions placed =
      Command(PlacementCommand{Epoch(1), Epoch(0), {{Unit(0, 0), {WorkerId(3)}}}});
  EXPECT_EQ(Count<action::AnnounceReady>(placed), 1u);
  EXPECT_TRUE(core_.is_ready());
  EXPECT_EQ(Count<action::AnnounceReady>(Pass(milliseconds(3000))), 0u);
}

TEST_F(WorkerControlTest, ReadyWithoutExpertsWhenTheRouterHasNone) {
  Join();
  EXPECT_EQ(Count<action::AnnounceReady>(Pass(milliseconds(900))), 0u);
  EXPECT_EQ(Count<action::AnnounceReady>(Pass(milliseconds(200))), 1u);
}

TEST_F(WorkerControlTest, AfterAPausePastItsLeaseNoTimerStaysDue) {
  Join();
  Pass(milliseconds(0));
  now_ += milliseconds(1300);  // without experts since 1 s, its last acknowledgement older than 1.2
  EXPECT_EQ(Count<action::AnnounceReady>(Tick()), 0u);
  EXPECT_GT(core_.NextTimer(), now_);
  EXPECT_EQ(Count<action::AnnounceReady>(Command(HeartbeatAckCommand{2})), 1u);
}

TEST_F(WorkerControlTest, NotReadyWhenNothingCouldBeLoaded) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0)}, {}});
  WorkerActions out;
  core_.OnLoaded(now_, Unit(0, 0), absl::DataLossError("broken"), &out);
  EXPECT_EQ(Count<action::AnnounceReady>(Pass(milliseconds(5000))), 0u);
}

TEST_F(WorkerControlTest, DrainsWhenTheRouterSaysSo) {
  Join();
  WorkerActions out;
  core_.OnDrainWish(now_, &out);
  EXPECT_EQ(Count<action::SendDrainWish>(out), 1u);
  EXPECT_EQ(core_.state(now_), WorkerState::kDraining);
  EXPECT_EQ(Count<action::Stop>(Command(DrainCommand{true, false})), 0u);
  const auto stop = Of<action::Stop>(Command(DrainCommand{true, true}));
  ASSERT_EQ(stop.size(), 1u);
  EXPECT_TRUE(stop[0].status.ok());
}

TEST_F(WorkerControlTest, AnOperatorsDrainDoesNotEndIt) {
  Join();
  EXPECT_EQ(Count<action::Stop>(Command(DrainCommand{true, true})), 0u);
}

TEST_F(WorkerControlTest, DrainEndsAfterItsTimeoutWithOrWithoutARouter) {
  Join();
  WorkerActions out;
  core_.OnDrainWish(now_, &out);
  Lost();
  EXPECT_TRUE(core_.registration().is_draining);
  EXPECT_EQ(Count<action::Stop>(Pass(milliseconds(29'900))), 0u);
  EXPECT_EQ(Count<action::Stop>(Pass(milliseconds(200))), 1u);
  EXPECT_TRUE(Pass(milliseconds(10'000)).empty());
}

TEST_F(WorkerControlTest, AWorkerThatNeverWasAMemberLeavesAtOnce) {
  Start();
  WorkerActions out;
  core_.OnDrainWish(now_, &out);
  EXPECT_EQ(Count<action::Stop>(out), 1u);
}

TEST_F(WorkerControlTest, AFailedCanaryDropsTheExpertAndTellsTheRouter) {
  Join();
  Command(PrepareCommand{1, {Unit(0, 0), Unit(0, 1)}, {}});
  Loaded(Unit(0, 0));
  Loaded(Unit(0, 1));
  WorkerActions out;
  core_.OnCanaryFailed(now_, Unit(0, 0), &out);
  EXPECT_EQ(Count<action::RetireExperts>(out), 1u);
  ASSERT_EQ(Count<action::SendExpertsLost>(out), 1u);
  EXPECT_EQ(Of<action::SendExpertsLost>(out)[0].why, "canary_mismatch");
  auto beats = Of<action::SendHeartbeat>(Pass(milliseconds(200)));
  ASSERT_FALSE(beats.empty());
  EXPECT_FALSE(beats.back().is_canary_ok);
  // Loaded again and found right.
  Command(PrepareCommand{2, {Unit(0, 0)}, {}});
  Loaded(Unit(0, 0));
  beats = Of<action::SendHeartbeat>(Pass(milliseconds(200)));
  EXPECT_TRUE(beats.back().is_canary_ok);
}

TEST_F(WorkerControlTest, LoadReportsAreDifferences) {
  UnitRows a{.unit = Unit(0, 0), .rows = {5, 0, 2, 0}};
  UnitRows b{.unit = Unit(0, 1), .rows = {0, 0, 0, 0}};
  std::vector<UnitRows> all = {a, b};
  auto deltas = core_.LoadDeltas(all);
  ASSERT_EQ(deltas.size(), 1u);
  EXPECT_EQ(deltas[0].rows[0], 5u);
  all[0].rows[0] = 9;
  all[1].rows[3] = 1;
  deltas = core_.LoadDeltas(all);
  ASSERT_EQ(deltas.size(), 2u);
  EXPECT_EQ(deltas[0].rows[0], 4u);
  EXPECT_EQ(deltas[0].rows[2], 0u);
  EXPECT_EQ(deltas[1].rows[3], 1u);
  EXPECT_TRUE(core_.LoadDeltas(all).empty());
}

// Random events: never more than two loads at once, never a change without a lease or on the word
// of a lower term, never an epoch that falls; and the same events give the same actions.
TEST_F(WorkerControlTest, RandomWalksKeepTheRules) {
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    WorkerControlCore core(WorkerControlOptions{.seed = seed});
    MonotonicTime now = now_;
    WorkerActions out;
    core.Start(now, &out);
    std::vector<ExpertUnit> loads;
    std::vector<uint64_t> retires;
    uint32_t highest_term = 0;
    Epoch last_epoch;
    for (int i = 0; i < 300; ++i) {
      const bool had_lease = core.state(now) == WorkerState::kRegistered;
      out.clear();
      const auto unit =
          Unit(static_cast<int32_t>(random() % 3), static_cast<int32_t>(random() % 4));
      const RouterIdentity router{static_cast<uint32_t>(1 + random() % 3),
                                  random() % 4 == 0 ? "bbbb" : "aaaa"};
      bool is_command = false;
      switch (random() % 9) {
        case 0:
          core.OnStreamLost(now, absl::UnavailableError("gone"), &out);
          break;
        case 1:
          core.OnCommand(now, {router, RegisteredCommand{}}, &out);
          is_command = true;
          break;
        case 2:
          core.OnCommand(now, {core.router(), PrepareCommand{random() % 20, {unit}, {}}}, &out);
          break;
        case 3:
          core.OnCommand(now, {router, RetireCommand{random() % 20, {unit}}}, &out);
          is_command = true;
          break;
        case 4:
          core.OnCommand(now, {router, PlacementCommand{Epoch(random() % 50), Epoch(0), {}}}, &out);
          is_command = true;
          break;
        case 5:
          if (!loads.empty()) {
            const ExpertUnit loaded = loads.back();
            loads.pop_back();
            core.OnLoaded(now, loaded,
                          random() % 4 == 0 ? absl::StatusOr<HeldExpert>(absl::DataLossError("x"))
                                            : absl::StatusOr<HeldExpert>(Held(loaded)),
                          &out);
          }
          break;
        case 6:
          if (!retires.empty()) {
            const uint64_t plan = retires.back();
            retires.pop_back();
            core.OnRetired(now, plan, 1, &out);
          }
          break;
        default:
          now += milliseconds(random() % 400);
          core.OnTimer(now, &out);
          for (const auto& beat : Of<action::SendHeartbeat>(out)) {
            if (random() % 3 != 0) {
              core.OnCommand(now, {core.router(), HeartbeatAckCommand{beat.seq}}, &out);
            }
          }
          break;
      }
      const bool has_lease = core.state(now) == WorkerState::kRegistered;
      for (const auto& load : Of<action::LoadExpert>(out)) {
        loads.push_back(load.unit);
        EXPECT_TRUE(had_lease || has_lease);
      }
      EXPECT_LE(loads.size(), 2u);
      for (const auto& retire : Of<action::RetireExperts>(out)) {
        retires.push_back(retire.plan_id);
        // What goes on its own account needs no lease.
        EXPECT_TRUE(had_lease || has_lease || retire.plan_id == 0);
        EXPECT_FALSE(is_command && router.term < highest_term);
      }
      EXPECT_GE(core.router().term, highest_term);
      highest_term = core.router().term;
      EXPECT_GE(core.epoch(), last_epoch);
      last_epoch = core.epoch();
    }
  }
}

}  // namespace
}  // namespace conclave::expert_worker
