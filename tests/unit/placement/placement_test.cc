// Goal: a Placement answers exactly what it was built from and refuses what would lose or double an
// expert. Method: small placements written out by hand, and a seeded random one compared with a
// std::map.
#include "conclave/placement/placement.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

#include "conclave/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::placement {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ExpertUnit Unit(int32_t layer, int32_t expert) { return {LayerId(layer), ExpertId(expert)}; }

Replica On(int32_t layer, int32_t expert, int32_t worker) {
  return {Unit(layer, expert), WorkerId(worker)};
}

TEST(PlacementTest, KeepsPlannerOrderOfReplicas) {
  const auto placement = Placement::Create(Epoch(7), {Unit(2, 1), Unit(2, 0)},
                                           {On(2, 1, 9), On(2, 0, 4), On(2, 1, 3), On(2, 1, 5)});
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->epoch(), Epoch(7));
  EXPECT_THAT(placement->units(), ElementsAre(Unit(2, 0), Unit(2, 1)));
  EXPECT_THAT(placement->WorkersOf(Unit(2, 1)), ElementsAre(WorkerId(9), WorkerId(3), WorkerId(5)));
  EXPECT_THAT(placement->WorkersOf(Unit(2, 0)), ElementsAre(WorkerId(4)));
}

TEST(PlacementTest, UnknownUnitHasNoWorkers) {
  const auto placement = Placement::Create(Epoch(1), {Unit(2, 1)}, {On(2, 1, 0)});
  ASSERT_TRUE(placement.ok()) << placement.status();
  for (const ExpertUnit unit : {Unit(2, 0), Unit(2, 2), Unit(0, 1), Unit(3, 1), Unit(-1, 1)}) {
    EXPECT_THAT(placement->WorkersOf(unit), IsEmpty());
  }
}

TEST(PlacementTest, DenseModelHasAnEmptyPlacement) {
  const auto placement = Placement::Create(Epoch(1), {}, {});
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_THAT(placement->units(), IsEmpty());
  EXPECT_THAT(placement->WorkersOf(Unit(0, 0)), IsEmpty());
  EXPECT_THAT(placement->UnitsOf(WorkerId(0)), IsEmpty());
}

struct BadCase {
  const char* name;
  std::vector<ExpertUnit> units;
  std::vector<Replica> replicas;
  const char* reason;
  const char* names;  // must stand in the message
};

class BadPlacementTest : public ::testing::TestWithParam<BadCase> {};

TEST_P(BadPlacementTest, IsRefusedWithItsReason) {
  const BadCase& bad = GetParam();
  const auto placement = Placement::Create(Epoch(1), bad.units, bad.replicas);
  ASSERT_FALSE(placement.ok());
  EXPECT_EQ(placement.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(placement.status()), bad.reason);
  EXPECT_THAT(MessageOf(placement.status()), HasSubstr(bad.names));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadPlacementTest,
    ::testing::Values(
        BadCase{"NoReplica",
                {Unit(1, 0), Unit(1, 1)},
                {On(1, 0, 0)},
                "placement_uncovered",
                "layer 1 expert 1"},
        BadCase{"TwoOnOneWorker",
                {Unit(1, 0)},
                {On(1, 0, 2), On(1, 0, 3), On(1, 0, 2)},
                "placement_duplicate",
                "worker 2"},
        BadCase{"UnitListedTwice",
                {Unit(1, 0), Unit(1, 0)},
                {On(1, 0, 0)},
                "placement_duplicate",
                "layer 1 expert 0"},
        BadCase{"UnknownUnit",
                {Unit(1, 0)},
                {On(1, 0, 0), On(1, 5, 0)},
                "placement_unknown_unit",
                "layer 1 expert 5"},
        BadCase{
            "ReplicaWithoutUnits", {}, {On(0, 0, 0)}, "placement_unknown_unit", "layer 0 expert 0"},
        BadCase{
            "NegativeWorker", {Unit(1, 0)}, {On(1, 0, -1)}, "placement_bad_worker", "found -1"}),
    [](const auto& test) { return test.param.name; });

// Random placements against the obvious data structure.
TEST(PlacementTest, AgreesWithAMapOnRandomPlacements) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    std::set<ExpertUnit> units;
    while (units.size() < 40) {
      units.insert(Unit(static_cast<int32_t>(rng() % 12), static_cast<int32_t>(rng() % 8)));
    }
    std::map<ExpertUnit, std::vector<WorkerId>> workers_of;
    std::vector<Replica> replicas;
    for (int round = 0; round < 3; ++round) {
      for (const ExpertUnit unit : units) {
        const WorkerId worker(static_cast<int32_t>(rng() % 6));
        std::vector<WorkerId>& known = workers_of[unit];
        if (std::find(known.begin(), known.end(), worker) == known.end()) {
          known.push_back(worker);
          replicas.push_back({unit, worker});
        }
      }
    }
    std::vector<ExpertUnit> shuffled(units.begin(), units.end());
    std::shuffle(shuffled.begin(), shuffled.end(), rng);
    const auto placement = Placement::Create(Epoch(seed), shuffled, replicas);
    ASSERT_TRUE(placement.ok()) << placement.status();
    std::map<WorkerId, std::vector<ExpertUnit>> units_of;
    for (const auto& [unit, workers] : workers_of) {
      const auto found = placement->WorkersOf(unit);
      EXPECT_EQ(std::vector<WorkerId>(found.begin(), found.end()), workers);
      for (const WorkerId worker : workers) {
        units_of[worker].push_back(unit);
      }
    }
    for (int32_t worker = 0; worker < 7; ++worker) {
      EXPECT_EQ(placement->UnitsOf(WorkerId(worker)), units_of[WorkerId(worker)]);
    }
  }
}

std::vector<ExpertUnit> AllUnits(const std::vector<int32_t>& layers, int32_t num_experts) {
  std::vector<ExpertUnit> units;
  for (const int32_t layer : layers) {
    for (int32_t expert = 0; expert < num_experts; ++expert) {
      units.push_back(Unit(layer, expert));
    }
  }
  return units;
}

TEST(SpreadEvenlyTest, RotatesByMoeLayerNotByLayerNumber) {
  const Placement placement = SpreadEvenly(Epoch(1), AllUnits({0, 2, 4}, 4), 3);
  for (int32_t rank = 0; rank < 3; ++rank) {
    for (int32_t expert = 0; expert < 4; ++expert) {
      EXPECT_THAT(placement.WorkersOf(Unit(2 * rank, expert)),
                  ElementsAre(WorkerId((expert + rank) % 3)));
    }
  }
}

TEST(SpreadEvenlyTest, NoWorkerHoldsMuchMoreThanAnother) {
  for (const int32_t num_workers : {1, 2, 3, 4, 5, 7}) {
    const Placement placement =
        SpreadEvenly(Epoch(1), AllUnits({1, 3, 5, 7, 9, 11}, 4), num_workers);
    size_t fewest = placement.units().size();
    size_t most = 0;
    size_t total = 0;
    for (int32_t worker = 0; worker < num_workers; ++worker) {
      const size_t held = placement.UnitsOf(WorkerId(worker)).size();
      fewest = std::min(fewest, held);
      most = std::max(most, held);
      total += held;
    }
    EXPECT_EQ(total, 24u);
    EXPECT_LE(most - fewest, 2u) << num_workers << " workers";
  }
}

TEST(SpreadEvenlyTest, OneWorkerHoldsEverything) {
  const Placement placement = SpreadEvenly(Epoch(1), AllUnits({0, 1}, 4), 1);
  EXPECT_EQ(placement.UnitsOf(WorkerId(0)).size(), 8u);
}

TEST(SpreadEvenlyDeathTest, NoWorkersIsABrokenInvariant) {
  EXPECT_DEATH(SpreadEvenly(Epoch(1), AllUnits({0}, 2), 0), "num_workers >= 1");
}

}  // namespace
}  // namespace conclave::placement
