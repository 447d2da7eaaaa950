// Goal: a router that comes back moves nothing, forgets nothing that matters, and never speaks with
// an epoch below one that anybody has seen; of two routers one commands.
// Method: the core with made-up time and peers, started again with its state, an older one, or
// none.
#include "conclave/base/status.h"
#include "core_driver.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

using ::testing::Contains;
using ::testing::Not;

std::map<ExpertUnit, std::vector<WorkerId>> PlacementOf(const CoreDriver& driver) {
  std::map<ExpertUnit, std::vector<WorkerId>> placement;
  for (const ExpertStatus& expert : driver.Status().experts) {
    placement[expert.unit] = expert.workers;
  }
  return placement;
}

class CoreRestartTest : public ::testing::Test {
 protected:
  void SetUp() override {
    driver_.Run(milliseconds(600));
    for (const char* name : {"a", "b", "c"}) {
      driver_.Join(driver_.Add(name));
    }
    driver_.Run(milliseconds(12'000));
    driver_.AddFrontend("f");
    driver_.Run(milliseconds(1000));
    placement_ = PlacementOf(driver_);
    epoch_ = driver_.Status().epoch;
    loads_ = driver_.TotalLoads();
    ASSERT_EQ(driver_.LowestReplication(), 2);
  }
  void JoinAll() {
    for (auto& [name, worker] : driver_.workers) {
      driver_.Join(worker);
      driver_.Run(milliseconds(100));
    }
    driver_.AddFrontend("f");
  }
  int NumRetired() {
    int sum = 0;
    for (const auto& [name, worker] : driver_.workers) {
      sum += worker.num_retired;
    }
    return sum;
  }

  CoreDriver driver_;
  std::map<ExpertUnit, std::vector<WorkerId>> placement_;
  Epoch epoch_;
  int loads_ = 0;
};

TEST_F(CoreRestartTest, WithItsStateNothingMoves) {
  const int retired = NumRetired();
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  JoinAll();
  driver_.Run(milliseconds(10'000));
  EXPECT_EQ(driver_.Status().router.term, 2u);
  EXPECT_GT(driver_.Status().epoch, epoch_);
  EXPECT_EQ(PlacementOf(driver_), placement_);
  EXPECT_EQ(driver_.TotalLoads(), loads_);
  EXPECT_EQ(NumRetired(), retired);
}

TEST_F(CoreRestartTest, FrontendsGetThePlacementBeforeWorkersAreBack) {
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  TestFrontend& frontend = driver_.AddFrontend("f");
  driver_.Run(milliseconds(100));
  EXPECT_EQ(PlacementOf(driver_), placement_);
  EXPECT_EQ(frontend.view->workers.size(), 3u);
  EXPECT_EQ(frontend.view->router.term, 2u);
}

TEST_F(CoreRestartTest, AMemberThatDoesNotComeBackIsReplaced) {
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  driver_.Join(driver_.workers["a"]);
  driver_.Join(driver_.workers["b"]);
  driver_.Run(milliseconds(300));
  EXPECT_EQ(PlacementOf(driver_), placement_) << "c still has time";
  driver_.Run(milliseconds(5000));
  EXPECT_EQ(driver_.LowestReplication(), 2);
  EXPECT_EQ(driver_.Status().workers.size(), 2u);
}

TEST_F(CoreRestartTest, WithoutItsStateItAdoptsWhatItSeesAndUnloadsNothing) {
  const int retired = NumRetired();
  driver_.Restart(false, "bbbbbbbbbbbbbbbb");
  JoinAll();
  EXPECT_EQ(driver_.Status().state, "recovering");
  driver_.Run(milliseconds(10'000));
  EXPECT_EQ(driver_.Status().router.term, 2u);
  EXPECT_GT(driver_.Status().epoch, epoch_);
  EXPECT_EQ(driver_.TotalLoads(), loads_);
  EXPECT_EQ(NumRetired(), retired);
  EXPECT_EQ(driver_.LowestReplication(), 2);
}

TEST_F(CoreRestartTest, ATermSeenByAFrontendAloneCountsToo) {
  driver_.Restart(false, "bbbbbbbbbbbbbbbb");
  FrontendRegisterEvent event;
  event.session = 999;
  event.registration.name = "g";
  event.registration.incarnation = 1;
  event.registration.model = {"0123456789abcdef", 64, 2};
  event.registration.numeric = {"bf16", "avx2", 1};
  event.registration.last_router = {41, "cccccccccccccccc"};
  event.registration.last_epoch = MakeEpoch(41, 9);
  driver_.Send(event);
  driver_.Run(milliseconds(1000));
  EXPECT_EQ(driver_.Status().router.term, 42u);
}

TEST_F(CoreRestartTest, WithAnOlderStateItRaisesItsTermAboveTheCluster) {
  const RouterState older = *driver_.kept;
  for (int i = 0; i < 3; ++i) {
    driver_.Restart(true, std::string(16, static_cast<char>('b' + i)));
    JoinAll();
    driver_.Run(milliseconds(1000));
  }
  EXPECT_EQ(driver_.Status().router.term, 4u);
  driver_.kept = older;  // a backup that was played back
  driver_.Restart(true, "eeeeeeeeeeeeeeee");
  JoinAll();
  driver_.Run(milliseconds(2000));
  EXPECT_EQ(driver_.Status().router.term, 5u);
  EXPECT_EQ(driver_.Status().state, "serving");
  EXPECT_EQ(PlacementOf(driver_), placement_);
  EXPECT_EQ(driver_.TotalLoads(), loads_);
}

TEST_F(CoreRestartTest, ARouterWithFollowersStandsByForAHigherTerm) {
  TestWorker& worker = driver_.Add("d");
  worker.last_router = {9, "dddddddddddddddd"};
  worker.last_epoch = MakeEpoch(9, 1);
  driver_.Join(worker);
  driver_.Run(milliseconds(200));
  EXPECT_EQ(driver_.Status().state, "standby");
  EXPECT_EQ(ReasonOf(worker.end), "stale_term");
  EXPECT_EQ(ReasonOf(driver_.workers["a"].end), "stale_term");
  EXPECT_EQ(ReasonOf(driver_.Ask(DrainCommand{"a"}).status), "stale_term");
  driver_.Run(milliseconds(5000));
  EXPECT_EQ(driver_.Status().epoch, epoch_) << "it commands nothing any more";
}

TEST_F(CoreRestartTest, TheSameTermOfAnotherRouterIsAnotherRouter) {
  TestWorker& worker = driver_.Add("d");
  worker.last_router = {driver_.Status().router.term, "dddddddddddddddd"};
  driver_.Join(worker);
  EXPECT_EQ(driver_.Status().state, "standby");
}

TEST_F(CoreRestartTest, NothingIsSaidBeforeTheNewTermIsDurable) {
  driver_.disk = absl::UnavailableError("no space");
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  for (auto& [name, worker] : driver_.workers) {
    worker.id.reset();
  }
  JoinAll();
  driver_.Run(milliseconds(3000));
  EXPECT_FALSE(driver_.workers["a"].id.has_value());
  EXPECT_EQ(driver_.frontends["f"].view->router.term, 1u);
  driver_.disk = absl::OkStatus();
  driver_.Run(milliseconds(3000));
  EXPECT_TRUE(driver_.workers["a"].id.has_value());
  EXPECT_EQ(driver_.frontends["f"].view->router.term, 2u);
  EXPECT_EQ(PlacementOf(driver_), placement_);
}

TEST_F(CoreRestartTest, OperatorsWishesSurvive) {
  EXPECT_TRUE(driver_.Ask(PinCommand{Unit(1, 0), "c"}).status.ok());
  EXPECT_TRUE(driver_.Ask(ReplicateCommand{Unit(3, 3), 3}).status.ok());
  EXPECT_TRUE(driver_.Ask(DrainCommand{"b"}).status.ok());
  driver_.Run(milliseconds(3000));
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  JoinAll();
  driver_.Run(milliseconds(5000));
  const auto placement = PlacementOf(driver_);
  EXPECT_THAT(placement.at(Unit(1, 0)), Contains(*driver_.workers["c"].id));
  for (const auto& [unit, workers] : placement) {
    EXPECT_THAT(workers, Not(Contains(*driver_.workers["b"].id)));
  }
  EXPECT_TRUE(driver_.workers["b"].is_drained);
  EXPECT_EQ(driver_.kept->replicas.at(Unit(3, 3)), 3);
}

TEST_F(CoreRestartTest, TheLastEpochOfATermIsFollowedByTheNextTerm) {
  driver_.kept->epoch_n = UINT32_MAX - 1;  // of the old term: a restart leaves it anyway
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  JoinAll();
  driver_.Run(milliseconds(1000));
  EXPECT_EQ(driver_.Status().router.term, 2u);
}

TEST_F(CoreRestartTest, ARouterWithoutAnyTermLeftCommandsNothing) {
  driver_.kept->term = UINT32_MAX;
  driver_.Restart(true, "bbbbbbbbbbbbbbbb");
  driver_.Run(milliseconds(1000));
  EXPECT_EQ(driver_.Status().state, "standby");
}

}  // namespace
}  // namespace conclave::router_service
