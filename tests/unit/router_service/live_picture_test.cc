// Goal: what the router tells the live picture is what its core says, and Signs() changes with
// whatever that picture dates by events. Method: a status by hand, and a core with made-up peers.
#include "live_picture.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core_driver.h"

namespace conclave::router_service {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

WorkerStatus Worker(int32_t id, MemberState state, int32_t num_experts) {
  WorkerStatus worker;
  worker.member.id = WorkerId(id);
  worker.member.name = "w" + std::to_string(id);
  worker.member.state = state;
  worker.num_experts = num_experts;
  return worker;
}

TEST(ToPictureTest, AWorkersStateFollowsFromItsStandingAndWhatItHolds) {
  RouterStatus status;
  status.workers = {Worker(0, MemberState::kLive, 0), Worker(1, MemberState::kLive, 1),
                    Worker(2, MemberState::kSuspect, 0), Worker(3, MemberState::kDraining, 1),
                    Worker(4, MemberState::kDraining, 0)};
  status.workers[4].is_drained = true;
  std::vector<live::WorkerState> states;
  for (const live::WorkerPicture& worker : ToPicture(status).workers) {
    states.push_back(worker.state);
  }
  using enum live::WorkerState;
  EXPECT_THAT(states, ElementsAre(kJoining, kLive, kSuspect, kDraining, kDrained));
}

TEST(ToPictureTest, EveryFigureComesThrough) {
  RouterStatus status;
  status.router.term = 3;
  status.epoch = MakeEpoch(3, 41);
  status.state = "serving";
  status.blocked = "why";
  status.replication_wanted = 2;
  status.replication_lowest = 1;
  status.placement_age_ms = 1500;
  status.imbalance_planned = 1.25;
  status.imbalance_seen = 1.5;
  status.plan_id = 9;
  WorkerStatus worker = Worker(7, MemberState::kLive, 4);
  worker.member.host_id = "host";
  worker.num_loading = 2;
  worker.memory_bytes = 100;
  worker.memory_used_bytes = 60;
  worker.last_heartbeat_ms = 250;
  worker.rows_per_second = 12.5;
  worker.busy_ratio = 0.5;
  worker.queued_rows = 3;
  worker.is_distrusted = true;
  status.workers = {worker};
  status.frontends = {{0x10002, "f0", MakeEpoch(3, 40), 11, "127.0.0.1:8000"},
                      {0x10003, "f1", MakeEpoch(3, 41), 12, ""}};

  const live::ClusterPicture picture = ToPicture(status);
  EXPECT_EQ(picture.epoch, 41u) << "within the term";
  EXPECT_EQ(picture.term, 3u);
  EXPECT_EQ(picture.state, "serving");
  EXPECT_EQ(picture.blocked, "why");
  EXPECT_EQ(picture.replicas_wanted, 2);
  EXPECT_EQ(picture.replicas_lowest, 1);
  EXPECT_EQ(picture.placement_age, 1.5);
  EXPECT_EQ(picture.imbalance_planned, 1.25);
  EXPECT_EQ(picture.imbalance_seen, 1.5);
  EXPECT_EQ(picture.plan, 9u);
  const live::WorkerPicture& shown = picture.workers.at(0);
  EXPECT_EQ(shown.id, 7);
  EXPECT_EQ(shown.name, "w7");
  EXPECT_EQ(shown.host, "host");
  EXPECT_EQ(shown.experts, 4);
  EXPECT_EQ(shown.loading, 2);
  EXPECT_EQ(shown.memory_bytes, 100);
  EXPECT_EQ(shown.memory_used_bytes, 60);
  EXPECT_EQ(shown.heartbeat_age, 0.25);
  EXPECT_EQ(shown.rows_per_second, 12.5);
  EXPECT_EQ(shown.busy, 0.5);
  EXPECT_EQ(shown.queued_rows, 3u);
  EXPECT_TRUE(shown.is_distrusted);
  EXPECT_EQ(picture.frontends.at(0).id, 0x10002u);
  EXPECT_EQ(picture.frontends[0].name, "f0");
  EXPECT_EQ(picture.frontends[0].incarnation, 11u);
  EXPECT_EQ(picture.frontends[0].epoch, 40u);
  EXPECT_TRUE(picture.frontends[0].has_api);
  EXPECT_FALSE(picture.frontends[1].has_api);
}

TEST(ToPictureTest, ThePlacementStandsLayerAfterLayerWithWhatNobodyServes) {
  RouterStatus status;
  status.experts = {{Unit(1, 0), {WorkerId(2), WorkerId(0)}, {}},
                    {Unit(1, 1), {}, {}},
                    {Unit(3, 0), {WorkerId(0)}, {}}};
  const live::ClusterPicture picture = ToPicture(status);
  EXPECT_THAT(picture.layers, ElementsAre(live::MoeLayer{1, 2}, live::MoeLayer{3, 1}));
  EXPECT_THAT(picture.placement, ElementsAre(ElementsAre(2, 0), IsEmpty(), ElementsAre(0)));
}

TEST(RouterSignsTest, ChangeWithEverythingThatIsDatedByAnEvent) {
  CoreDriver driver;
  driver.Run(milliseconds(600));
  RouterSigns last = driver.core().Signs();
  EXPECT_THAT(last.workers, IsEmpty());
  // Whether they are others now than when this was asked last.
  const auto have_changed = [&] {
    const RouterSigns now = driver.core().Signs();
    return !(std::exchange(last, now) == now);
  };
  driver.Join(driver.Add("a"));
  driver.Join(driver.Add("b"));
  driver.Run(milliseconds(100));
  EXPECT_TRUE(have_changed()) << "two came";
  driver.Run(milliseconds(8000));
  EXPECT_TRUE(have_changed()) << "they have loaded";
  EXPECT_EQ(last.epoch, driver.Status().epoch);
  EXPECT_FALSE(last.workers.at(0).is_loading);
  driver.Run(milliseconds(2000));
  EXPECT_FALSE(have_changed()) << "nothing happened but heartbeats";

  driver.AddFrontend("f");
  driver.Run(milliseconds(100));
  EXPECT_TRUE(have_changed());
  EXPECT_EQ(last.num_frontends, 1u);

  driver.workers["a"].is_silent = true;
  driver.Run(milliseconds(900));
  EXPECT_TRUE(have_changed());
  EXPECT_EQ(last.workers.at(0).state, MemberState::kSuspect);
  driver.workers["a"].is_silent = false;
  driver.Run(milliseconds(400));
  EXPECT_TRUE(have_changed());
  EXPECT_EQ(last.workers.at(0).state, MemberState::kLive);

  driver.Ask(DrainCommand{"a", false});
  driver.Run(milliseconds(4000));
  EXPECT_TRUE(have_changed());
  EXPECT_EQ(last.workers.at(0).state, MemberState::kDraining);
  EXPECT_TRUE(last.workers.at(0).is_drained);

  driver.Kill(driver.workers["b"]);
  driver.Run(milliseconds(100));
  EXPECT_TRUE(have_changed());
  EXPECT_THAT(last.workers, ::testing::SizeIs(1));
}

}  // namespace
}  // namespace conclave::router_service
