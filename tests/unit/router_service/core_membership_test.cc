// Goal: who is a member follows from streams, leases and names alone, and never from a pause of the
// router or from what one peer says of another.
// Method: the core with made-up time and peers (core_driver.h).
#include <algorithm>

#include "conclave/base/status.h"
#include "core_driver.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

MemberState StateOf(const CoreDriver& driver, const std::string& name) {
  for (const WorkerStatus& worker : driver.Status().workers) {
    if (worker.member.name == name) {
      return worker.member.state;
    }
  }
  ADD_FAILURE() << name << " is no member";
  return MemberState::kLive;
}

bool IsMember(const CoreDriver& driver, const std::string& name) {
  const RouterStatus status = driver.Status();
  return std::any_of(status.workers.begin(), status.workers.end(),
                     [&](const WorkerStatus& worker) { return worker.member.name == name; });
}

// A cluster of workers a, b, ... that is settled.
CoreDriver Settled(int num_workers) {
  CoreDriver driver;
  driver.Run(milliseconds(600));
  for (int i = 0; i < num_workers; ++i) {
    driver.Join(driver.Add(std::string(1, static_cast<char>('a' + i))));
  }
  driver.Run(milliseconds(8000));
  return driver;
}

TEST(CoreMembershipTest, AWorkerIsToldItsIdOnceTheRouterHasATerm) {
  CoreDriver driver;
  TestWorker& worker = driver.Add("a");
  driver.Join(worker);
  driver.Run(milliseconds(300));
  EXPECT_FALSE(worker.id.has_value()) << "the term is not decided yet";
  EXPECT_EQ(driver.Status().state, "recovering");
  driver.Run(milliseconds(500));
  EXPECT_EQ(worker.id, WorkerId(0));
  EXPECT_EQ(driver.Status().state, "serving");
  EXPECT_EQ(driver.Status().router.term, 1u);
}

TEST(CoreMembershipTest, ASilentWorkerIsSuspectAndThenDead) {
  CoreDriver driver = Settled(2);
  driver.workers["a"].is_silent = true;
  driver.Run(milliseconds(500));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kLive);
  driver.Run(milliseconds(400));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kSuspect);
  EXPECT_THAT(driver.WorkersOf(Unit(1, 0)), ::testing::SizeIs(2)) << "suspect is only a hint";
  driver.Run(milliseconds(900));
  EXPECT_FALSE(IsMember(driver, "a"));
  EXPECT_THAT(driver.WorkersOf(Unit(1, 0)), ElementsAre(WorkerId(1)));
  EXPECT_EQ(ReasonOf(driver.workers["a"].end), "reregister");
}

TEST(CoreMembershipTest, ALeaseBeginsWithTheHeartbeatAndNotWithTheTickBefore) {
  CoreDriver driver = Settled(1);
  TestWorker& worker = driver.workers["a"];
  worker.is_silent = true;
  driver.Pause(milliseconds(30));
  HeartbeatEvent beat;
  beat.session = *worker.session;
  beat.seq = ++worker.heartbeat_seq;
  driver.Send(beat);
  driver.Pause(milliseconds(20));
  driver.Send(TickEvent{});
  driver.Run(milliseconds(1450));
  EXPECT_TRUE(IsMember(driver, "a")) << "1470 ms without a heartbeat";
  driver.Run(milliseconds(50));
  EXPECT_FALSE(IsMember(driver, "a"));
}

TEST(CoreMembershipTest, AHeartbeatEndsSuspicion) {
  CoreDriver driver = Settled(1);
  driver.workers["a"].is_silent = true;
  driver.Run(milliseconds(900));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kSuspect);
  driver.workers["a"].is_silent = false;
  driver.Run(milliseconds(250));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kLive);
}

TEST(CoreMembershipTest, APauseOfTheRouterKillsNobody) {
  for (const milliseconds pause : {milliseconds(1900), milliseconds(2100), milliseconds(30'000)}) {
    CoreDriver driver = Settled(3);
    driver.Pause(pause);
    // The worst case: the tick comes before the heartbeats that wait.
    driver.Send(TickEvent{});
    EXPECT_EQ(driver.Status().workers.size(), 3u) << pause.count();
    driver.Run(milliseconds(3000));
    EXPECT_EQ(driver.Status().workers.size(), 3u) << pause.count();
    EXPECT_EQ(driver.core().counters().workers_lost, 0u);
  }
}

TEST(CoreMembershipTest, AWorkerThatDiedDuringAPauseIsStillNoticed) {
  CoreDriver driver = Settled(2);
  driver.workers["a"].is_silent = true;
  driver.Pause(milliseconds(30'000));
  driver.Run(milliseconds(1400));
  EXPECT_TRUE(IsMember(driver, "a"));
  driver.Run(milliseconds(300));
  EXPECT_FALSE(IsMember(driver, "a"));
}

TEST(CoreMembershipTest, TheEndOfAStreamIsTheEndOfTheWorker) {
  CoreDriver driver = Settled(2);
  driver.Kill(driver.workers["a"]);
  driver.Run(milliseconds(100));
  EXPECT_FALSE(IsMember(driver, "a"));
  EXPECT_THAT(driver.WorkersOf(Unit(1, 0)), ElementsAre(WorkerId(1)));
}

TEST(CoreMembershipTest, ReportsOfOneFrontendAreNotEnoughForSuspicionAndOfManyNotForDeath) {
  CoreDriver driver = Settled(2);
  TestFrontend& f = driver.AddFrontend("f");
  TestFrontend& g = driver.AddFrontend("g");
  driver.Run(milliseconds(100));
  const auto report = [&](const TestFrontend& by) {
    driver.Send(PeerReportEvent{*by.session, WorkerId(0), 1, PeerReportKind::kTimeout});
  };
  for (int i = 0; i < 100; ++i) {
    report(f);
  }
  driver.Run(milliseconds(100));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kLive);
  report(g);
  driver.Run(milliseconds(100));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kSuspect);
  for (int i = 0; i < 100; ++i) {
    report(f);
    report(g);
    driver.Run(milliseconds(50));
  }
  EXPECT_TRUE(IsMember(driver, "a")) << "its heartbeats count";
  driver.Run(milliseconds(6000));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kLive) << "old reports are forgotten";
}

TEST(CoreMembershipTest, AReportOnAnEarlierStartOfAWorkerIsIgnored) {
  CoreDriver driver = Settled(1);
  TestFrontend& f = driver.AddFrontend("f");
  TestFrontend& g = driver.AddFrontend("g");
  driver.Send(PeerReportEvent{*f.session, WorkerId(0), 99, PeerReportKind::kLinkLost});
  driver.Send(PeerReportEvent{*g.session, WorkerId(0), 99, PeerReportKind::kLinkLost});
  driver.Run(milliseconds(100));
  EXPECT_EQ(StateOf(driver, "a"), MemberState::kLive);
  EXPECT_EQ(driver.core().counters().reports_ignored, 2u);
}

TEST(CoreMembershipTest, ANameBelongsToItsLiveHolder) {
  CoreDriver driver = Settled(1);
  TestWorker& twin = driver.workers["twin"];
  twin.name = "a";
  twin.port = 20'000;
  twin.incarnation = 2;
  driver.Join(twin);
  EXPECT_EQ(ReasonOf(twin.end), "name_taken");
  EXPECT_EQ(twin.end.code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(driver.workers["a"].session.has_value());
}

TEST(CoreMembershipTest, ARestartedWorkerNeedNotWaitForItsLease) {
  CoreDriver driver = Settled(1);
  TestWorker& worker = driver.workers["a"];
  driver.Kill(worker);
  worker.incarnation = 2;
  worker.id.reset();
  driver.Join(worker);
  driver.Run(milliseconds(100));
  EXPECT_EQ(worker.id, WorkerId(0)) << "an id belongs to a name for good";
}

TEST(CoreMembershipTest, AnOlderIncarnationIsRefusedEvenWhenTheNameIsFree) {
  CoreDriver driver = Settled(1);
  TestWorker& worker = driver.workers["a"];
  driver.Kill(worker);
  driver.Run(milliseconds(3000));
  worker.incarnation = 0;
  driver.Join(worker);
  EXPECT_EQ(ReasonOf(worker.end), "name_taken");
}

TEST(CoreMembershipTest, TheSameStartThatComesAgainReplacesItsOldStreamAndKeepsItsKey) {
  CoreDriver driver = Settled(1);
  TestWorker& worker = driver.workers["a"];
  const uint64_t key = worker.key;
  const int loads = driver.TotalLoads();
  driver.Join(worker);
  driver.Run(milliseconds(1000));
  EXPECT_EQ(worker.key, key);
  EXPECT_TRUE(worker.session.has_value());
  EXPECT_EQ(driver.TotalLoads(), loads);
}

TEST(CoreMembershipTest, WhoHasAnotherModelOrModeIsRefused) {
  CoreDriver driver = Settled(1);
  TestWorker& other = driver.Add("other");
  other.dtype = "f32";
  driver.Join(other);
  EXPECT_EQ(ReasonOf(other.end), "cluster_mismatch");
  driver.num_experts = 8;
  TestWorker& larger = driver.Add("larger");
  driver.Join(larger);
  EXPECT_EQ(ReasonOf(larger.end), "cluster_mismatch");
}

// Rows of both are bf16: only the mode tells them apart.
TEST(CoreMembershipTest, WhoIsInQ8DoesNotMixWithBf16) {
  const auto expect_refused = [](const absl::Status& end, const char* expected, const char* found) {
    EXPECT_EQ(ReasonOf(end), "cluster_mismatch");
    EXPECT_THAT(MessageOf(end), ::testing::HasSubstr(std::string("expected ") + expected));
    EXPECT_THAT(MessageOf(end), ::testing::HasSubstr(std::string("found ") + found));
  };
  CoreDriver driver = Settled(1);
  TestWorker& worker = driver.Add("quantized");
  worker.dtype = "q8";
  driver.Join(worker);
  expect_refused(worker.end, "bf16", "q8");
  expect_refused(driver.AddFrontend("quantized", "q8").end, "bf16", "q8");
  TestFrontend& frontend = driver.AddFrontend("bf16");
  driver.Run(milliseconds(100));
  ASSERT_TRUE(frontend.session.has_value());
  // All of the old mode are gone: the cluster starts again in the new one.
  driver.Kill(driver.workers["a"]);
  driver.Run(milliseconds(2000));
  worker.end = absl::OkStatus();
  driver.Join(worker);
  EXPECT_TRUE(worker.end.ok()) << worker.end;
  expect_refused(frontend.end, "q8", "bf16");
  EXPECT_TRUE(driver.AddFrontend("quantized again", "q8").end.ok());
}

TEST(CoreMembershipTest, TwoWorkersDoNotShareAnAddress) {
  CoreDriver driver = Settled(1);
  TestWorker& other = driver.Add("other");
  other.port = driver.workers["a"].port;
  driver.Join(other);
  EXPECT_EQ(ReasonOf(other.end), "placement_worker");
  EXPECT_EQ(ParamOf(other.end), "data_address");
}

TEST(CoreMembershipTest, MessagesOfAStreamThatIsOverAskForARegistration) {
  CoreDriver driver = Settled(1);
  TestWorker& worker = driver.workers["a"];
  worker.is_silent = true;
  const SessionId old = *worker.session;
  driver.Run(milliseconds(2000));
  ASSERT_FALSE(worker.session.has_value());
  worker.session = old;
  worker.end = absl::OkStatus();
  driver.Send(HeartbeatEvent{.session = old, .seq = 1000});
  EXPECT_EQ(ReasonOf(worker.end), "reregister");
  EXPECT_EQ(worker.end.code(), absl::StatusCode::kNotFound);
}

TEST(CoreMembershipTest, HeartbeatsOutOfOrderAreIgnoredAndCounted) {
  CoreDriver driver = Settled(1);
  const SessionId session = *driver.workers["a"].session;
  driver.Send(HeartbeatEvent{.session = session, .seq = 1});
  driver.Send(HeartbeatEvent{.session = session, .seq = 1});
  EXPECT_EQ(driver.core().counters().reports_ignored, 2u);
}

TEST(CoreMembershipTest, FrontendIdsDifferAndTheirStreamsGetSnapshots) {
  CoreDriver driver = Settled(2);
  TestFrontend& f = driver.AddFrontend("f");
  TestFrontend& g = driver.AddFrontend("g");
  driver.Run(milliseconds(100));
  ASSERT_TRUE(f.id.has_value() && g.id.has_value());
  EXPECT_NE(*f.id & 0xffff, *g.id & 0xffff);
  ASSERT_NE(f.view, nullptr);
  EXPECT_EQ(f.view->workers.size(), 2u);
  EXPECT_EQ(f.view->experts->size(), 8u);
  EXPECT_EQ(f.view->workers[0].key, driver.workers["a"].key);
  EXPECT_EQ(driver.Status().frontends[0].acked_epoch, f.view->epoch);
}

TEST(CoreMembershipTest, AFrontendOfAnotherModelIsRefusedOnceTheModelIsKnown) {
  CoreDriver driver;
  TestFrontend& f = driver.AddFrontend("f");
  FrontendRegisterEvent event;
  event.session = 77;
  event.registration.name = "g";
  event.registration.incarnation = 1;
  event.registration.model = {"fedcba9876543210", 64, 2};
  event.registration.numeric = {"bf16", "avx2", 1};
  TestFrontend& g = driver.frontends["g"];
  g.name = "g";
  g.session = 77;
  driver.Send(event);
  driver.Run(milliseconds(600));
  EXPECT_TRUE(g.session.has_value());
  driver.Join(driver.Add("a"));
  EXPECT_EQ(ReasonOf(g.end), "cluster_mismatch");
  EXPECT_TRUE(f.session.has_value());
}

MemberView Member(int32_t id, const std::string& name, MemberState state = MemberState::kLive) {
  MemberView member;
  member.id = WorkerId(id);
  member.name = name;
  member.state = state;
  return member;
}

TEST(CoreMembershipTest, DiffNamesWhatChangedAndNothingElse) {
  PlacementView from;
  from.workers = {Member(0, "a"), Member(1, "b")};
  from.experts = std::make_shared<std::vector<UnitReplicas>>(
      std::vector<UnitReplicas>{{Unit(1, 0), {WorkerId(0)}, {}}, {Unit(1, 1), {WorkerId(1)}, {}}});
  PlacementView to = from;
  EXPECT_THAT(Diff(from, to).workers, IsEmpty());
  EXPECT_THAT(Diff(from, to).experts, IsEmpty());
  to.workers = {Member(1, "b", MemberState::kSuspect), Member(2, "c")};
  to.experts = std::make_shared<std::vector<UnitReplicas>>(
      std::vector<UnitReplicas>{{Unit(1, 0), {WorkerId(2)}, {}}, {Unit(1, 1), {WorkerId(1)}, {}}});
  const PlacementDelta delta = Diff(from, to);
  EXPECT_THAT(delta.workers, ElementsAre(&to.workers[0], &to.workers[1]));
  EXPECT_THAT(delta.removed_workers, ElementsAre(WorkerId(0)));
  EXPECT_THAT(delta.experts, ElementsAre(to.experts->data()));
}

}  // namespace
}  // namespace conclave::router_service
