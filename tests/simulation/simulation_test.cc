// Goal: whatever happens to processes, links, disks and clocks, the cores keep what
// failure-model.md section 5.4 promises, and a run can be repeated from its seed.
// Method: whole clusters from consecutive seeds on a virtual clock.
#include <gtest/gtest.h>

#include "shrink.h"

namespace conclave::simulation {
namespace {

void RunSeeds(uint64_t first, uint64_t count) {
  RunOptions options;
  uint64_t num_layers = 0;
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const Outcome outcome = simulation::Run(PlanOf(seed), options);
    num_layers += outcome.num_layers_ok;
    for (const Violation& violation : outcome.violations) {
      ADD_FAILURE() << "seed " << seed << ": " << violation.invariant << ": " << violation.what;
    }
  }
  // A cluster that does nothing violates nothing.
  EXPECT_GT(num_layers, 100 * count);
}

class Seeds : public ::testing::TestWithParam<int> {};

TEST_P(Seeds, KeepTheInvariants) {
  constexpr uint64_t kCount = 500;
  RunSeeds(1 + kCount * static_cast<uint64_t>(GetParam()), kCount);
}
INSTANTIATE_TEST_SUITE_P(Simulation, Seeds, ::testing::Range(0, 4));

TEST(SimulationTest, TheSameSeedGivesTheSameTrace) {
  RunOptions options;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Outcome first = simulation::Run(PlanOf(seed), options);
    const Outcome second = simulation::Run(PlanOf(seed), options);
    EXPECT_EQ(first.trace_hash, second.trace_hash) << "seed " << seed;
    EXPECT_EQ(first.num_events, second.num_events) << "seed " << seed;
    EXPECT_NE(first.trace_hash, simulation::Run(PlanOf(seed + 1), options).trace_hash)
        << "seed " << seed;
  }
}

TEST(SimulationTest, WithoutFaultsNobodyIsLost) {
  RunOptions options;
  for (uint64_t seed = 20; seed <= 2000; seed += 20) {
    const Plan plan = PlanOf(seed);
    ASSERT_TRUE(plan.faults.empty());
    EXPECT_TRUE(simulation::Run(plan, options).violations.empty()) << "seed " << seed;
  }
}

}  // namespace
}  // namespace conclave::simulation
