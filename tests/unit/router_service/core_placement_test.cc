// Goal: every expert is served as soon and as often as workers allow; no change of the router's own
// makes a replica fewer before others are ready; what is dropped is used by nobody.
// Method: the core with made-up time and peers; the driver checks after every step that only
// durable epochs are out and that nothing is retired which a frontend routes to.
#include <algorithm>

#include "conclave/base/status.h"
#include "core_driver.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::UnorderedElementsAre;

class CorePlacementTest : public ::testing::Test {
 protected:
  void SetUp() override { driver_.Run(milliseconds(600)); }

  TestWorker& Start(const std::string& name, int64_t memory_experts = 100) {
    TestWorker& worker = driver_.Add(name);
    worker.memory_experts = memory_experts;
    driver_.Join(worker);
    return worker;
  }
  WorkerId IdOf(const std::string& name) { return *driver_.workers[name].id; }

  // Runs and looks at every tick: the replication that a healthy cluster has must not fall.
  void RunWithoutLoss(milliseconds time) {
    const int lowest = driver_.LowestReplication();
    for (milliseconds passed(0); passed < time; passed += milliseconds(50)) {
      driver_.Run(milliseconds(50));
      ASSERT_GE(driver_.LowestReplication(), lowest) << "make before break";
    }
  }

  CoreDriver driver_;
};

TEST_F(CorePlacementTest, TheFirstWorkerGetsEveryExpert) {
  Start("a");
  driver_.Run(milliseconds(1000));
  EXPECT_EQ(driver_.LowestReplication(), 1);
  EXPECT_THAT(driver_.workers["a"].held, SizeIs(8));
}

TEST_F(CorePlacementTest, APlanIsCountedFromItsMakingToItsPublication) {
  TestWorker& worker = Start("a");
  worker.load_time = milliseconds(700);
  driver_.Run(milliseconds(400));
  EXPECT_NE(driver_.Status().plan_id, 0u);
  EXPECT_GT(driver_.Status().plan_age_ms, 0u);
  driver_.Run(milliseconds(5000));
  EXPECT_EQ(driver_.Status().plan_id, 0u);
  EXPECT_EQ(driver_.Status().plan_age_ms, 0u);
  const RouterCounters& counters = driver_.core().counters();
  const auto repair = static_cast<size_t>(PlanReason::kRepair);
  EXPECT_EQ(counters.plans[repair][static_cast<size_t>(PlanResult::kDone)], 1u);
  EXPECT_GE(counters.plan_times[repair].sum, 0.7);
  EXPECT_LE(counters.plan_times[repair].sum, 5);
  EXPECT_GT(counters.bytes_loaded, 0u);
  EXPECT_EQ(counters.bytes_loaded % counters.replicas_loaded, 0u);
}

TEST_F(CorePlacementTest, TheFirstWorkerGetsWhatFitsWhenNotAllDoes) {
  Start("a", 5);
  driver_.Run(milliseconds(2000));
  EXPECT_THAT(driver_.workers["a"].held, SizeIs(5));
  Start("b", 5);
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.LowestReplication(), 1);
}

TEST_F(CorePlacementTest, TheSecondWorkerGetsASecondReplicaOfEverything) {
  Start("a");
  driver_.Run(milliseconds(1000));
  Start("b");
  RunWithoutLoss(milliseconds(2000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CorePlacementTest, AThirdWorkerTakesItsPartWhileEverythingStaysServed) {
  Start("a");
  Start("b");
  driver_.Run(milliseconds(2000));
  driver_.AddFrontend("f");
  driver_.Run(milliseconds(100));
  Start("c");
  RunWithoutLoss(milliseconds(10'000));
  EXPECT_GE(driver_.workers["c"].held.size(), 3u) << "a third of 16 replicas, or nearly";
  EXPECT_EQ(driver_.LowestReplication(), 2);
  // What went to c is not kept elsewhere.
  size_t held = 0;
  for (const auto& [name, worker] : driver_.workers) {
    held += worker.held.size();
  }
  size_t placed = 0;
  for (const ExpertStatus& expert : driver_.Status().experts) {
    placed += expert.workers.size();
  }
  EXPECT_EQ(held, placed);
  EXPECT_EQ(driver_.Status().plan_id, 0u);
}

TEST_F(CorePlacementTest, NothingChangesWhenNothingHappens) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(15'000));
  const Epoch epoch = driver_.Status().epoch;
  driver_.Run(milliseconds(60'000));
  EXPECT_EQ(driver_.Status().epoch, epoch);
}

TEST_F(CorePlacementTest, ALostExpertIsPublishedBeforeSlowerLoads) {
  // Only a holds anything; b loads slowly, c fast.
  Start("a");
  driver_.Run(milliseconds(2000));
  Start("b").load_time = milliseconds(20'000);
  driver_.Run(milliseconds(100));
  Start("c").load_time = milliseconds(50);
  driver_.Run(milliseconds(100));
  driver_.Kill(driver_.workers["a"]);
  driver_.Run(milliseconds(5000));
  int num_served = 0;
  for (const ExpertStatus& expert : driver_.Status().experts) {
    num_served += expert.workers.empty() ? 0 : 1;
  }
  EXPECT_GT(num_served, 0) << "c's are ready, b's are not";
}

TEST_F(CorePlacementTest, AfterAKillReplicasAreMadeAtOnce) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(10'000));
  ASSERT_EQ(driver_.LowestReplication(), 2);
  driver_.Kill(driver_.workers["b"]);
  driver_.Run(milliseconds(50));
  for (const ExpertStatus& expert : driver_.Status().experts) {
    EXPECT_THAT(expert.workers, Not(Contains(IdOf("b"))));
    EXPECT_THAT(expert.workers, Not(SizeIs(0)));
  }
  driver_.Run(milliseconds(1000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CorePlacementTest, ASilentWorkerThatComesBackSoonCostsNoLoads) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(10'000));
  const int loads = driver_.TotalLoads();
  driver_.workers["b"].is_silent = true;
  driver_.Run(milliseconds(2500));  // dead at 1.5 s, repair only 2 s later
  EXPECT_FALSE(driver_.workers["b"].session.has_value());
  driver_.Join(driver_.workers["b"]);
  driver_.Run(milliseconds(10'000));
  EXPECT_EQ(driver_.TotalLoads(), loads);
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CorePlacementTest, ASilentWorkerThatStaysAwayIsReplaced) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(10'000));
  driver_.workers["b"].is_silent = true;
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.LowestReplication(), 1) << "dead, and the repair waits";
  driver_.Run(milliseconds(2000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CorePlacementTest, AnEpochThatAFrontendHasNotAcknowledgedHoldsUpRetire) {
  Start("a");
  Start("b");
  driver_.Run(milliseconds(3000));
  TestFrontend& frontend = driver_.AddFrontend("f");
  driver_.Run(milliseconds(200));
  frontend.acks = false;
  Start("c");
  driver_.Run(milliseconds(5000));
  const auto num_retired = [&] {
    return driver_.workers["a"].num_retired + driver_.workers["b"].num_retired;
  };
  EXPECT_EQ(num_retired(), 0);
  // It has gone: then nobody routes by the old placement.
  const SessionId session = *frontend.session;
  frontend.session.reset();
  driver_.Send(SessionClosedEvent{session});
  driver_.Run(milliseconds(10'000));
  EXPECT_GT(num_retired(), 0);
}

TEST_F(CorePlacementTest, ADrainMovesEverythingAndEndsWhenFrontendsHaveLeft) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(10'000));
  TestFrontend& frontend = driver_.AddFrontend("f");
  driver_.Run(milliseconds(200));
  frontend.acks = false;
  EXPECT_TRUE(driver_.Ask(DrainCommand{"b"}).status.ok());
  RunWithoutLoss(milliseconds(4000));
  for (const ExpertStatus& expert : driver_.Status().experts) {
    EXPECT_THAT(expert.workers, Not(Contains(IdOf("b"))));
  }
  EXPECT_FALSE(driver_.workers["b"].is_drained) << "the frontend may still route to it";
  frontend.acks = true;
  frontend.acked = frontend.view;
  driver_.Send(EpochAckEvent{*frontend.session, frontend.view->epoch});
  driver_.Run(milliseconds(1000));
  EXPECT_TRUE(driver_.workers["b"].is_drained);
  EXPECT_TRUE(driver_.Ask(DrainCommand{"b"}).is_drained) << "asking again changes nothing";
  EXPECT_TRUE(driver_.Ask(DrainCommand{"b", true}).status.ok());
  RunWithoutLoss(milliseconds(10'000));
  EXPECT_FALSE(driver_.workers["b"].held.empty()) << "it gets its part again";
}

TEST_F(CorePlacementTest, ADrainThatWouldLoseAnExpertIsRefused) {
  Start("a");
  driver_.Run(milliseconds(1000));
  EXPECT_EQ(ReasonOf(driver_.Ask(DrainCommand{"a"}).status), "not_kill_safe");
  Start("b", 3);
  driver_.Run(milliseconds(2000));
  EXPECT_EQ(ReasonOf(driver_.Ask(DrainCommand{"a"}).status), "not_kill_safe");
  EXPECT_EQ(ReasonOf(driver_.Ask(DrainCommand{"x"}).status), "worker_unknown");
  EXPECT_EQ(driver_.LowestReplication(), 1);
}

TEST_F(CorePlacementTest, AWorkerThatWishesToLeaveIsDrainedToo) {
  Start("a");
  Start("b");
  driver_.Run(milliseconds(3000));
  driver_.Send(DrainWishEvent{*driver_.workers["a"].session});
  driver_.Run(milliseconds(2000));
  EXPECT_TRUE(driver_.workers["a"].is_drained);
  EXPECT_EQ(driver_.LowestReplication(), 1);
}

TEST_F(CorePlacementTest, TheLastWorkerKeepsServingWhateverItWishes) {
  Start("a");
  driver_.Run(milliseconds(2000));
  driver_.Send(DrainWishEvent{*driver_.workers["a"].session});
  driver_.Run(milliseconds(5000));
  EXPECT_FALSE(driver_.workers["a"].is_drained);
  EXPECT_EQ(driver_.LowestReplication(), 1);
}

TEST_F(CorePlacementTest, APinBringsAReplicaAndKeepsIt) {
  CoreOptions options = CoreDriver::Defaults();
  options.replication = 1;
  CoreDriver driver(options);
  driver.Run(milliseconds(600));
  for (const char* name : {"a", "b", "c"}) {
    driver.Join(driver.Add(name));
  }
  driver.Run(milliseconds(10'000));
  for (const char* name : {"a", "b", "c"}) {
    const WorkerId id = *driver.workers[name].id;
    EXPECT_TRUE(driver.Ask(PinCommand{Unit(3, 2), name}).status.ok());
    driver.Run(milliseconds(2000));
    EXPECT_THAT(driver.WorkersOf(Unit(3, 2)), Contains(id));
  }
  EXPECT_TRUE(driver.Ask(PinCommand{Unit(3, 2), "a", true}).status.ok());
  EXPECT_EQ(ReasonOf(driver.Ask(PinCommand{Unit(3, 9), "a"}).status), "expert_unknown");
  EXPECT_EQ(ReasonOf(driver.Ask(PinCommand{Unit(3, 2), "x"}).status), "worker_unknown");
}

TEST_F(CorePlacementTest, AnExpertGetsTheReplicasThatAreAskedForIt) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(10'000));
  EXPECT_TRUE(driver_.Ask(ReplicateCommand{Unit(1, 1), 3}).status.ok());
  driver_.Run(milliseconds(2000));
  EXPECT_THAT(driver_.WorkersOf(Unit(1, 1)), SizeIs(3));
  EXPECT_TRUE(driver_.Ask(ReplicateCommand{Unit(1, 2), 1}).status.ok());
  driver_.Run(milliseconds(2000));
  EXPECT_THAT(driver_.WorkersOf(Unit(1, 2)), SizeIs(1));
  EXPECT_TRUE(driver_.Ask(ReplicateCommand{Unit(1, 1), 0}).status.ok());
  driver_.Run(milliseconds(2000));
  EXPECT_THAT(driver_.WorkersOf(Unit(1, 1)), SizeIs(2));
  EXPECT_EQ(ReasonOf(driver_.Ask(ReplicateCommand{Unit(1, 1), -1}).status),
            "replication_unsatisfiable");
  // More than there are workers is served with as many as there are.
  EXPECT_TRUE(driver_.Ask(ReplicateCommand{Unit(1, 1), 9}).status.ok());
  driver_.Run(milliseconds(2000));
  EXPECT_THAT(driver_.WorkersOf(Unit(1, 1)), SizeIs(3));
}

TEST_F(CorePlacementTest, AReplicaWithOtherBitsIsRefusedAndItsWorkerGetsNoMore) {
  Start("a");
  driver_.Run(milliseconds(2000));
  Start("b").canary = 8;
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.LowestReplication(), 1);
  for (const ExpertStatus& expert : driver_.Status().experts) {
    EXPECT_THAT(expert.workers, ElementsAre(IdOf("a")));
  }
  EXPECT_GT(driver_.core().counters().replicas_refused, 0u);
  EXPECT_TRUE(driver_.Status().workers[1].is_distrusted);
  driver_.Run(milliseconds(2000));
  EXPECT_TRUE(driver_.workers["b"].held.empty()) << "what is wrong is dropped";
  // Started again with the right bits it is one like others.
  TestWorker& b = driver_.workers["b"];
  driver_.Kill(b);
  b.canary = 7;
  b.incarnation = 2;
  driver_.Join(b);
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CorePlacementTest, AnotherFileOfAnExpertIsRefused) {
  Start("a");
  driver_.Run(milliseconds(2000));
  Start("b").weights = 9;
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.LowestReplication(), 1);
  EXPECT_TRUE(driver_.Status().workers[1].is_distrusted);
}

TEST_F(CorePlacementTest, AWorkerThatCannotLoadIsLeftAloneAndOthersTakeOver) {
  Start("a");
  driver_.Run(milliseconds(1000));
  Start("b").fails_to_load = true;
  driver_.Run(milliseconds(12'000));
  EXPECT_TRUE(driver_.Status().workers[1].is_distrusted);
  Start("c");
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CorePlacementTest, LostExpertsLeaveThePlacementAtOnceAndComeBack) {
  Start("a");
  Start("b");
  driver_.Run(milliseconds(3000));
  TestWorker& a = driver_.workers["a"];
  a.held.erase(Unit(1, 0));
  driver_.Send(ExpertsLostEvent{*a.session, {Unit(1, 0)}, "file is gone"});
  driver_.Run(milliseconds(50));
  EXPECT_THAT(driver_.WorkersOf(Unit(1, 0)), ElementsAre(IdOf("b")));
  driver_.Run(milliseconds(8000));
  EXPECT_THAT(driver_.WorkersOf(Unit(1, 0)), SizeIs(2));
}

TEST_F(CorePlacementTest, UnevenLoadsAreRebalancedOnceInAWhile) {
  Start("a");
  Start("b");
  Start("c");
  driver_.Run(milliseconds(35'000));
  const RouterCounters before = driver_.core().counters();
  uint64_t seq = 0;
  for (int second = 0; second < 60; ++second) {
    for (auto& [name, worker] : driver_.workers) {
      LoadEvent load;
      load.session = *worker.session;
      load.seq = ++seq;
      // Two experts of a layer carry nearly all.
      for (const auto& [unit, held] : worker.held) {
        const uint64_t rows = unit.expert.value() < 2 ? 1000 : 10;
        load.experts.push_back({unit, {rows, 0, 0, 0}});
      }
      driver_.Send(load);
    }
    driver_.Run(milliseconds(1000));
  }
  const RouterCounters after = driver_.core().counters();
  EXPECT_LE(after.rebalances - before.rebalances, 3u) << "at least 30 s apart";
  EXPECT_LE(driver_.Status().imbalance_seen, 1.25);
  EXPECT_GT(driver_.Status().experts[0].rows_per_second[0], 100);
}

TEST_F(CorePlacementTest, ADryRunChangesNothing) {
  Start("a");
  Start("b");
  driver_.Run(milliseconds(5000));
  const Epoch epoch = driver_.Status().epoch;
  const auto plan = driver_.core().TryRebalance(true);
  ASSERT_TRUE(plan.ok()) << plan.status();
  driver_.Run(milliseconds(2000));
  EXPECT_EQ(driver_.Status().epoch, epoch);
}

TEST_F(CorePlacementTest, KillSafeNamesTheExpertsThatOneWorkerServesAlone) {
  Start("a");
  driver_.Run(milliseconds(2000));
  EXPECT_THAT(*driver_.core().AtRiskWithout("a"), SizeIs(8));
  Start("b");
  driver_.Run(milliseconds(3000));
  EXPECT_THAT(*driver_.core().AtRiskWithout("a"), SizeIs(0));
  EXPECT_EQ(ReasonOf(driver_.core().AtRiskWithout("x").status()), "worker_unknown");
}

// "a" and "b", which one replica of each expert fills.
void JoinTwoFullWorkers(CoreDriver& driver) {
  driver.Run(milliseconds(600));
  for (const char* name : {"a", "b"}) {
    TestWorker& worker = driver.Add(name);
    worker.memory_experts = 4;  // 8 experts in all
    driver.Join(worker);
  }
  driver.Run(milliseconds(5000));
}

TEST_F(CorePlacementTest, AMoveWithoutRoomIsGivenUpAndNothingIsLost) {
  CoreOptions options = CoreDriver::Defaults();
  options.replication = 1;
  CoreDriver driver(options);
  JoinTwoFullWorkers(driver);
  ASSERT_EQ(driver.LowestReplication(), 1);
  const ExpertUnit unit = Unit(1, 0);
  const WorkerId at = driver.WorkersOf(unit)[0];
  const char* other = at == *driver.workers["a"].id ? "b" : "a";
  EXPECT_TRUE(driver.Ask(PinCommand{unit, other}).status.ok());
  for (int i = 0; i < 200; ++i) {
    driver.Run(milliseconds(50));
    ASSERT_EQ(driver.LowestReplication(), 1);
  }
}

TEST_F(CorePlacementTest, AGoalIsNeverMoreThanAWorkerHolds) {
  const auto hold = [](TestWorker& worker, ExpertUnit unit) {
    worker.held[unit] = {
        unit,
        {1, static_cast<uint8_t>(unit.layer.value()), static_cast<uint8_t>(unit.expert.value())},
        7};
  };
  // Nothing is retired before this one has answered.
  driver_.frontends["f"].acks = false;
  driver_.AddFrontend("f");
  TestWorker& a = driver_.Add("a");
  TestWorker& b = driver_.Add("b");
  a.memory_experts = b.memory_experts = 5;
  for (const int32_t expert : {0, 1, 2, 3}) {
    hold(a, Unit(1, expert));
    hold(b, expert < 3 ? Unit(1, expert) : Unit(3, 0));
  }
  driver_.Join(a);
  driver_.Join(b);
  driver_.Run(milliseconds(1000));
  // With their 10 places most experts get one replica, and what a holds beside it is to go for
  // others. Then there is room for two of each, and what a holds is wanted after all.
  Start("c", 5);
  Start("d", 5);
  driver_.Run(milliseconds(1000));
  TestFrontend& frontend = driver_.frontends["f"];
  frontend.acks = true;
  frontend.acked = frontend.view;
  driver_.Send(EpochAckEvent{*frontend.session, frontend.view->epoch});
  driver_.Run(milliseconds(4000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
  EXPECT_EQ(driver_.core().counters().plans_cancelled, 0u);
  EXPECT_EQ(driver_.Status().plan_id, 0u);
}

TEST_F(CorePlacementTest, AMoveWithoutRoomIsGivenUpWhateverElseIsToBeRetired) {
  CoreOptions options = CoreDriver::Defaults();
  options.replication = 1;
  CoreDriver driver(options);
  JoinTwoFullWorkers(driver);
  // A worker that leaves holds an expert too. Nobody aims at that; it is dropped when the frontend
  // has answered and the expert's goal is reached.
  driver.frontends["f"].acks = false;
  TestFrontend& frontend = driver.AddFrontend("f");
  const ExpertUnit unit = Unit(1, 0);
  const bool is_at_a = driver.WorkersOf(unit)[0] == *driver.workers["a"].id;
  TestWorker& c = driver.Add("c");
  c.held[unit] = driver.workers[is_at_a ? "a" : "b"].held[unit];
  driver.Join(c);
  driver.Send(DrainWishEvent{*c.session});
  driver.Run(milliseconds(100));
  // Which it never is: the other worker is full.
  EXPECT_TRUE(driver.Ask(PinCommand{unit, is_at_a ? "b" : "a"}).status.ok());
  frontend.acks = true;
  frontend.acked = frontend.view;
  driver.Send(EpochAckEvent{*frontend.session, frontend.view->epoch});
  driver.Run(milliseconds(4000));
  EXPECT_GT(driver.core().counters().plans_cancelled, 0u);
  EXPECT_EQ(driver.LowestReplication(), 1);
}

TEST_F(CorePlacementTest, AReplicaGivesWayToNoWorkerThatMayBeGone) {
  CoreOptions options = CoreDriver::Defaults();
  options.replication = 1;
  CoreDriver driver(options);
  driver.Join(driver.Add("a"));
  driver.Join(driver.Add("b"));
  driver.Run(milliseconds(5000));
  const ExpertUnit unit = Unit(1, 0);
  const WorkerId from = driver.WorkersOf(unit)[0];
  const TestWorker& to = driver.workers[from == *driver.workers["a"].id ? "b" : "a"];
  const auto report = [&](PeerReportKind kind) {
    for (const char* name : {"f", "g"}) {
      driver.Send(PeerReportEvent{*driver.frontends[name].session, *to.id, to.incarnation, kind});
    }
  };
  driver.AddFrontend("f");
  driver.AddFrontend("g");
  driver.Run(milliseconds(100));
  report(PeerReportKind::kTimeout);
  EXPECT_TRUE(driver.Ask(PinCommand{unit, to.name}).status.ok());
  driver.Run(milliseconds(1000));
  EXPECT_TRUE(to.held.contains(unit));
  EXPECT_THAT(driver.WorkersOf(unit), testing::Contains(from));
  report(PeerReportKind::kRecovered);
  driver.Run(milliseconds(1000));
  EXPECT_THAT(driver.WorkersOf(unit), testing::ElementsAre(*to.id));
}

TEST_F(CorePlacementTest, WhileTheDiskIsFullNothingIsPublishedAndEverythingServes) {
  Start("a");
  Start("b");
  driver_.Run(milliseconds(3000));
  TestFrontend& early = driver_.AddFrontend("early");
  driver_.Run(milliseconds(100));
  const Epoch epoch = driver_.Status().epoch;
  driver_.disk = absl::UnavailableError("no space");
  TestWorker& c = Start("c");
  driver_.Run(milliseconds(3000));
  EXPECT_EQ(driver_.Status().blocked, "state_write_failed");
  EXPECT_EQ(driver_.Status().epoch, epoch);
  EXPECT_FALSE(c.id.has_value()) << "its id is not durable";
  EXPECT_EQ(ReasonOf(driver_.Ask(ReplicateCommand{Unit(1, 1), 1}).status), "state_write_failed");
  EXPECT_TRUE(driver_.workers["a"].session.has_value()) << "heartbeats are answered";
  EXPECT_EQ(early.view->epoch, epoch);
  TestFrontend& late = driver_.AddFrontend("late");
  driver_.Run(milliseconds(100));
  ASSERT_NE(late.view, nullptr) << "the last durable placement serves";
  EXPECT_EQ(late.view->epoch, epoch);
  driver_.disk = absl::OkStatus();
  driver_.Run(milliseconds(8000));
  EXPECT_EQ(driver_.Status().blocked, "");
  EXPECT_TRUE(c.id.has_value());
  EXPECT_GT(driver_.Status().epoch, epoch);
}

}  // namespace
}  // namespace conclave::router_service
