// Goal: the simulation finds mistakes. Method: one planted at a time; seeds in order until one
// violates that is clean without it; then its faults are shrunk. Prints the table of
// docs/simulation.md.
#include <gtest/gtest.h>

#include <cstdio>
#include <string>

#include "shrink.h"

namespace conclave::simulation {
namespace {

constexpr uint64_t kSeedsMax = 500;

class PlantedBug : public ::testing::TestWithParam<const char*> {};

TEST_P(PlantedBug, IsFound) {
  constexpr int kShrinkRuns = 150;
  RunOptions options;
  options.bug = GetParam();
  for (uint64_t seed = 1; seed <= kSeedsMax; ++seed) {
    const Plan plan = PlanOf(seed);
    const Outcome outcome = simulation::Run(plan, options);
    if (outcome.violations.empty() || !simulation::Run(plan, RunOptions()).violations.empty()) {
      continue;
    }
    const std::string invariant = outcome.violations.front().invariant;
    const Shrunk shrunk = Shrink(plan, options, invariant, kShrinkRuns);
    EXPECT_LE(shrunk.plan.faults.size(), plan.faults.size());
    std::printf("| `%s` | %s | %llu | %zu | %zu |\n", GetParam(), invariant.c_str(),
                static_cast<unsigned long long>(seed), plan.faults.size(),
                shrunk.plan.faults.size());
    return;
  }
  FAIL() << "not found in " << kSeedsMax << " seeds";
}

INSTANTIATE_TEST_SUITE_P(Simulation, PlantedBug,
                         ::testing::Values(
                             // The router's core.
                             "acks_not_awaited", "break_before_make",
                             "draining_worker_gets_experts", "epoch_not_raised",
                             "failed_write_ignored", "heartbeats_not_counted", "no_standby",
                             "pause_counts_for_leases", "published_before_durable", "reports_kill",
                             "room_not_counted", "term_not_raised", "unused_never_retired",
                             // The worker's.
                             "lease_by_registration", "orphan_load_kept", "worker_not_fenced",
                             // The dispatcher.
                             "both_hedged_replies_combined", "call_deadline_ignored",
                             "empty_budget_fails_calls", "hedge_to_same_worker",
                             "retry_without_budget", "slot_leaked_on_timeout", "split_loses_a_part",
                             // What stands for transport, disk and loader.
                             "reply_of_another_seq", "state_not_synced", "weight_hash_ignored"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace conclave::simulation
