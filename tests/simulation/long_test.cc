// Goal: as simulation_test, over so many seeds that rare orders of events occur.
#include <gtest/gtest.h>

#include "world.h"

namespace conclave::simulation {
namespace {

TEST(SimulationLongTest, AHundredThousandSeeds) {
  constexpr uint64_t kSeeds = 100'000;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    const Outcome outcome = simulation::Run(PlanOf(seed), RunOptions());
    for (const Violation& violation : outcome.violations) {
      ADD_FAILURE() << "seed " << seed << ": " << violation.invariant << ": " << violation.what;
    }
  }
}

}  // namespace
}  // namespace conclave::simulation
