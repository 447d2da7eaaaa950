// Goal: the embedded mode places every expert exactly once, in an epoch that a later router will
// supersede. Method: plans for small models, looked at as a whole.
#include "conclave/router_service/static_router.h"

#include <vector>

#include "conclave/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::router_service {
namespace {

using ::testing::ElementsAre;

constexpr MoeLayer kLayers[] = {{LayerId(0), 4}, {LayerId(2), 4}, {LayerId(4), 2}};

TEST(StaticRouterTest, EpochIsTermOneNumberOne) {
  const auto placement = PlanEmbedded(kLayers, 2);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->epoch().value(), 0x1'0000'0001u);
}

TEST(StaticRouterTest, EveryExpertHasOneWorkerWithinRange) {
  for (const int32_t num_workers : {1, 2, 3, 5, 64}) {
    const auto placement = PlanEmbedded(kLayers, num_workers);
    ASSERT_TRUE(placement.ok()) << placement.status();
    EXPECT_EQ(placement->units().size(), 10u);
    for (const placement::ExpertUnit unit : placement->units()) {
      const auto workers = placement->WorkersOf(unit);
      ASSERT_EQ(workers.size(), 1u);
      EXPECT_GE(workers[0].value(), 0);
      EXPECT_LT(workers[0].value(), num_workers);
    }
  }
}

TEST(StaticRouterTest, TwoWorkersShareEveryLayer) {
  const auto placement = PlanEmbedded(kLayers, 2);
  ASSERT_TRUE(placement.ok()) << placement.status();
  const auto unit = [](int32_t layer, int32_t expert) {
    return placement::ExpertUnit{LayerId(layer), ExpertId(expert)};
  };
  EXPECT_THAT(placement->UnitsOf(WorkerId(0)),
              ElementsAre(unit(0, 0), unit(0, 2), unit(2, 1), unit(2, 3), unit(4, 0)));
  EXPECT_THAT(placement->UnitsOf(WorkerId(1)),
              ElementsAre(unit(0, 1), unit(0, 3), unit(2, 0), unit(2, 2), unit(4, 1)));
}

TEST(StaticRouterTest, DenseModelPlacesNothing) {
  const auto placement = PlanEmbedded({}, 1);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_TRUE(placement->units().empty());
}

TEST(StaticRouterTest, RefusesWorkersOutOfRange) {
  for (const int32_t num_workers : {-1, 0, kMaxEmbeddedWorkers + 1}) {
    const auto placement = PlanEmbedded(kLayers, num_workers);
    ASSERT_FALSE(placement.ok()) << num_workers;
    EXPECT_EQ(ReasonOf(placement.status()), "workers_out_of_range");
  }
}

TEST(StaticRouterTest, RefusesLayersThatAreNoModel) {
  const std::vector<std::vector<MoeLayer>> bad = {
      {{LayerId(2), 4}, {LayerId(2), 4}},
      {{LayerId(2), 4}, {LayerId(0), 4}},
      {{LayerId(-1), 4}},
      {{LayerId(0), 0}},
      {{LayerId(0), -4}},
      {{LayerId(0), 65'537}},
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    const auto placement = PlanEmbedded(bad[i], 2);
    ASSERT_FALSE(placement.ok()) << "case " << i;
    EXPECT_EQ(ReasonOf(placement.status()), "moe_layers") << "case " << i;
  }
}

}  // namespace
}  // namespace conclave::router_service
