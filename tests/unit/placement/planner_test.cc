// Goal: plans keep every rule (each expert served, twins apart, memory, pins, hosts, budget) and
// balance what can be balanced. Method: small problems whose best plan is known, and seeded random
// ones whose plans are checked rule by rule.
#include "conclave/placement/planner.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <set>

#include "conclave/base/status.h"

namespace conclave::placement {
namespace {

constexpr int64_t kBytes = 100;

PlanProblem Problem(int32_t num_layers, int32_t num_experts, int32_t num_workers, int64_t slots) {
  PlanProblem problem;
  for (int32_t w = 0; w < num_workers; ++w) {
    problem.workers.push_back({WorkerId(w), w, 1.0, slots * kBytes, true});
  }
  for (int32_t l = 0; l < num_layers; ++l) {
    for (int32_t e = 0; e < num_experts; ++e) {
      problem.units.push_back({{LayerId(2 * l), ExpertId(e)}, 1.0, kBytes});
    }
  }
  return problem;
}

void SetLogNormalLoads(PlanProblem& problem, double sigma, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> normal(0.0, sigma);
  for (PlanUnit& unit : problem.units) {
    unit.load = std::exp(normal(random));
  }
}

// Every rule that holds for any plan of `problem`.
void ExpectSound(const PlanProblem& problem, const Plan& plan, int32_t least_replicas) {
  std::map<ExpertUnit, std::set<int32_t>> holders;
  std::map<int32_t, int64_t> bytes;
  for (const Replica& replica : plan.replicas) {
    EXPECT_TRUE(holders[replica.unit].insert(replica.worker.value()).second) << "a twin";
    bytes[replica.worker.value()] += kBytes;
  }
  for (const PlanUnit& unit : problem.units) {
    EXPECT_GE(static_cast<int32_t>(holders[unit.unit].size()), least_replicas);
  }
  for (const PlanWorker& worker : problem.workers) {
    EXPECT_LE(bytes[worker.id.value()], worker.memory_bytes) << worker.id.value();
    EXPECT_TRUE(worker.takes_experts || bytes[worker.id.value()] == 0);
  }
  for (const PlanPin& pin : problem.pins) {
    EXPECT_TRUE(holders[pin.unit].contains(pin.worker.value()));
  }
}

Plan Full(const PlanProblem& problem, const PlanOptions& options = {}) {
  auto plan = PlanFull(problem, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : Plan{};
}

Plan Next(const PlanProblem& problem, const std::vector<Replica>& current,
          const PlanOptions& options = {}) {
  auto plan = PlanIncremental(problem, current, options);
  EXPECT_TRUE(plan.ok()) << plan.status();
  return plan.ok() ? *plan : Plan{};
}

TEST(PlannerTest, TwoReplicasOfEveryExpertWhereThereIsRoom) {
  const PlanProblem problem = Problem(12, 4, 3, 48);
  const Plan plan = Full(problem);
  ExpectSound(problem, plan, 2);
  EXPECT_TRUE(plan.is_full);
  // 4 experts with 2 replicas and an eighth more: 9 on three workers, three each.
  EXPECT_EQ(plan.replicas.size(), 12u * 9u);
  EXPECT_LT(plan.ratio_after, 1.2);
}

TEST(PlannerTest, OneReplicaWhereThereIsNot) {
  const PlanProblem problem = Problem(12, 4, 2, 24);
  const Plan plan = Full(problem);
  ExpectSound(problem, plan, 1);
  EXPECT_EQ(plan.replicas.size(), 48u);
  EXPECT_DOUBLE_EQ(plan.ratio_after, 1.0);
}

TEST(PlannerTest, ScarceMemoryIsUsedToTheLastPlace) {
  // 10 places for 10 experts on workers that do not divide them evenly over layers.
  PlanProblem problem = Problem(5, 2, 3, 0);
  problem.workers[0].memory_bytes = 1 * kBytes;
  problem.workers[1].memory_bytes = 2 * kBytes;
  problem.workers[2].memory_bytes = 7 * kBytes;
  ExpectSound(problem, Full(problem), 1);
}

TEST(PlannerTest, TooLittleMemoryIsAnErrorThatSaysSo) {
  const auto plan = PlanFull(Problem(2, 4, 2, 3), {});
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(ReasonOf(plan.status()), "placement_over_capacity");
}

TEST(PlannerTest, HotExpertsGetMoreReplicas) {
  PlanProblem problem = Problem(1, 8, 8, 9);
  problem.units[3].load = 20;
  PlanOptions options;
  options.replication = 1;
  options.extra_share = 1.0;
  const Plan plan = Full(problem, options);
  ExpectSound(problem, plan, 1);
  const auto replicas_of = [&](int32_t expert) {
    return std::count_if(plan.replicas.begin(), plan.replicas.end(), [&](const Replica& replica) {
      return replica.unit.expert == ExpertId(expert);
    });
  };
  EXPECT_GE(replicas_of(3), 6);
  EXPECT_LE(replicas_of(0), 2);
}

TEST(PlannerTest, ReplicasStandOnDifferentHosts) {
  PlanProblem problem = Problem(6, 4, 6, 40);
  for (PlanWorker& worker : problem.workers) {
    worker.host = worker.id.value() / 3;
  }
  SetLogNormalLoads(problem, 1.0, 7);
  const Plan plan = Full(problem);
  std::map<ExpertUnit, std::set<int32_t>> hosts;
  for (const Replica& replica : plan.replicas) {
    hosts[replica.unit].insert(replica.worker.value() / 3);
  }
  for (const auto& [unit, seen] : hosts) {
    EXPECT_EQ(seen.size(), 2u) << unit.layer.value() << ' ' << unit.expert.value();
  }
}

TEST(PlannerTest, AFasterWorkerCarriesMore) {
  PlanProblem problem = Problem(1, 12, 2, 12);
  problem.workers[1].speed = 3.0;
  PlanOptions options;
  options.replication = 1;
  options.extra_share = 0;
  const Plan plan = Full(problem, options);
  const auto on_fast =
      std::count_if(plan.replicas.begin(), plan.replicas.end(),
                    [](const Replica& replica) { return replica.worker == WorkerId(1); });
  EXPECT_EQ(on_fast, 9);
  EXPECT_DOUBLE_EQ(plan.ratio_after, 1.0);
}

TEST(PlannerTest, ExpertsThatAnswerTogetherShareAWorker) {
  PlanProblem problem = Problem(1, 4, 2, 2);
  problem.pairs = {{LayerId(0), ExpertId(0), ExpertId(3), 50},
                   {LayerId(0), ExpertId(1), ExpertId(2), 40}};
  const Plan plan = Full(problem);
  std::map<int32_t, int32_t> worker_of;
  for (const Replica& replica : plan.replicas) {
    worker_of[replica.unit.expert.value()] = replica.worker.value();
  }
  EXPECT_EQ(worker_of[0], worker_of[3]);
  EXPECT_EQ(worker_of[1], worker_of[2]);
  EXPECT_NE(worker_of[0], worker_of[1]);
}

TEST(PlannerTest, PinsHold) {
  PlanProblem problem = Problem(3, 4, 4, 12);
  SetLogNormalLoads(problem, 1.0, 3);
  problem.pins = {{{LayerId(0), ExpertId(2)}, WorkerId(3)},
                  {{LayerId(4), ExpertId(0)}, WorkerId(1)}};
  const Plan plan = Full(problem);
  ExpectSound(problem, plan, 2);
  SetLogNormalLoads(problem, 1.0, 4);
  ExpectSound(problem, Next(problem, plan.replicas), 2);
}

TEST(PlannerTest, NothingMovesWhenNothingChanged) {
  PlanProblem problem = Problem(12, 4, 3, 48);
  SetLogNormalLoads(problem, 0.5, 11);
  const Plan full = Full(problem);
  const Plan next = Next(problem, full.replicas);
  EXPECT_EQ(next.num_replicas_needed, 0);
  EXPECT_LE(next.num_replicas_moved, 2);
  EXPECT_LE(next.ratio_after, next.ratio_before);
}

TEST(PlannerTest, ADeadWorkersExpertsAreReplacedWithoutMovingOthers) {
  PlanProblem problem = Problem(12, 4, 4, 48);
  PlanOptions options;
  options.extra_share = 0;
  options.move_share = 0;
  const Plan full = Full(problem, options);
  PlanProblem after = problem;
  after.workers.erase(after.workers.begin() + 1);
  const auto lost = std::count_if(full.replicas.begin(), full.replicas.end(),
                                  [](const Replica& r) { return r.worker == WorkerId(1); });
  const Plan next = Next(after, full.replicas, options);
  ExpectSound(after, next, 2);
  EXPECT_FALSE(next.is_full);
  EXPECT_EQ(next.num_replicas_needed, lost);
  EXPECT_LE(next.num_replicas_moved, 1);
  EXPECT_EQ(next.bytes_loaded, kBytes * (next.num_replicas_needed + next.num_replicas_moved));
}

TEST(PlannerTest, ADrainingWorkerEndsUpEmptyAndNobodyUnserved) {
  PlanProblem problem = Problem(12, 4, 3, 48);
  const Plan full = Full(problem);
  problem.workers[2].takes_experts = false;
  ExpectSound(problem, Next(problem, full.replicas), 2);
}

TEST(PlannerTest, AJoinedWorkerTakesItsShareWithinTheBudget) {
  PlanProblem problem = Problem(12, 4, 2, 48);
  std::vector<Replica> current = Full(problem).replicas;
  problem.workers.push_back({WorkerId(2), 2, 1.0, 48 * kBytes, true});
  int rounds = 0;
  for (; rounds < 30; ++rounds) {
    const Plan next = Next(problem, current, {.full_factor = 1e9});
    ExpectSound(problem, next, 2);
    EXPECT_LE(next.num_replicas_moved, static_cast<int32_t>(current.size()) / 10);
    current = next.replicas;
    if (next.num_replicas_moved == 0) {
      break;
    }
  }
  EXPECT_LT(rounds, 30);
  const auto on_new = std::count_if(current.begin(), current.end(),
                                    [](const Replica& r) { return r.worker == WorkerId(2); });
  EXPECT_GE(on_new, 12 * 2);
}

TEST(PlannerTest, PlansAreTheSameEveryTime) {
  PlanProblem problem = Problem(8, 16, 5, 60);
  SetLogNormalLoads(problem, 0.9, 21);
  const Plan a = Full(problem);
  const Plan b = Full(problem);
  ASSERT_EQ(a.replicas.size(), b.replicas.size());
  for (size_t i = 0; i < a.replicas.size(); ++i) {
    EXPECT_EQ(a.replicas[i].unit, b.replicas[i].unit);
    EXPECT_EQ(a.replicas[i].worker, b.replicas[i].worker);
  }
}

TEST(PlannerTest, RandomProblemsKeepEveryRule) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    std::mt19937_64 random(seed);
    const auto pick = [&](int lo, int hi) {
      return lo + static_cast<int32_t>(random() % static_cast<uint64_t>(hi - lo + 1));
    };
    const int32_t layers = pick(1, 6);
    const int32_t experts = pick(2, 9);
    const int32_t workers = pick(1, 6);
    const int32_t slots = (layers * experts + workers - 1) / workers + pick(1, 12);
    PlanProblem problem = Problem(layers, experts, workers, slots);
    for (PlanWorker& worker : problem.workers) {
      worker.speed = 0.5 + 0.5 * pick(0, 3);
      worker.host = pick(0, 2);
    }
    SetLogNormalLoads(problem, 1.0, seed);
    SCOPED_TRACE("seed " + std::to_string(seed));
    PlanOptions options;
    options.replication = pick(1, 3);
    const Plan full = Full(problem, options);
    ExpectSound(problem, full, 1);
    // Drift, and a worker that leaves when the rest has room.
    SetLogNormalLoads(problem, 1.0, seed + 1000);
    if (workers > 1 && layers * experts <= (workers - 1) * (slots - layers)) {
      problem.workers.pop_back();
    }
    const Plan next = Next(problem, full.replicas, options);
    ExpectSound(problem, next, 1);
    EXPECT_TRUE(next.ratio_before == 0 || next.is_full || next.num_replicas_needed > 0 ||
                next.ratio_after <= next.ratio_before + 1e-9);
  }
}

TEST(PlannerTest, AFewMovesComeCloseToAFullPlan) {
  // The shape and drift of the study in data-plane.md section 12: 256 experts, 288 places on 32
  // workers: nine a layer of each.
  double incremental = 0;
  double full = 0;
  double moved = 0;
  constexpr int kWindows = 5;
  PlanProblem problem = Problem(4, 256, 32, 36);
  SetLogNormalLoads(problem, 0.7, 1);
  PlanOptions options;
  options.replication = 1;
  std::vector<Replica> current = Full(problem, options).replicas;
  std::mt19937_64 random(2);
  std::normal_distribution<double> drift(0.0, 0.1);
  for (int window = 0; window < kWindows; ++window) {
    for (PlanUnit& unit : problem.units) {
      unit.load *= std::exp(drift(random));
    }
    const Plan next = Next(problem, current, options);
    current = next.replicas;
    EXPECT_FALSE(next.is_full);
    incremental += next.ratio_after / kWindows;
    full += Full(problem, options).ratio_after / kWindows;
    moved += static_cast<double>(next.num_replicas_moved) / static_cast<double>(current.size()) /
             kWindows;
  }
  EXPECT_LE(incremental, full + 0.02);
  EXPECT_LE(moved, 0.10);
}

TEST(PlannerTest, SharesLevelTheWorkers) {
  PlanProblem problem = Problem(2, 6, 3, 8);
  SetLogNormalLoads(problem, 1.0, 5);
  const Plan plan = Full(problem);
  const std::vector<double> shares = SplitShares(problem, plan.replicas);
  ASSERT_EQ(shares.size(), plan.replicas.size());
  std::map<ExpertUnit, double> sums;
  for (size_t i = 0; i < shares.size(); ++i) {
    EXPECT_GE(shares[i], 0);
    sums[plan.replicas[i].unit] += shares[i];
  }
  for (const auto& [unit, sum] : sums) {
    EXPECT_NEAR(sum, 1.0, 1e-9);
  }
  EXPECT_LE(ImbalanceOf(problem, plan.replicas, shares),
            ImbalanceOf(problem, plan.replicas, {}) + 1e-9);
  EXPECT_DOUBLE_EQ(ImbalanceOf(problem, plan.replicas, {}), plan.ratio_after);
}

TEST(PlannerBadInput, EachIsNamed) {
  const auto reason = [](const PlanProblem& problem, const PlanOptions& options = {}) {
    const auto plan = PlanFull(problem, options);
    return plan.ok() ? "" : ReasonOf(plan.status());
  };
  PlanProblem problem = Problem(1, 2, 2, 4);
  EXPECT_EQ(reason(problem, {.replication = 0}), "replication_unsatisfiable");
  problem.workers[1].id = WorkerId(0);
  EXPECT_EQ(reason(problem), "placement_worker");
  problem = Problem(1, 2, 2, 4);
  problem.workers[0].speed = 0;
  EXPECT_EQ(reason(problem), "placement_worker");
  problem = Problem(1, 2, 0, 4);
  EXPECT_EQ(reason(problem), "placement_worker");
  problem = Problem(1, 2, 2, 4);
  problem.units.push_back(problem.units[0]);
  EXPECT_EQ(reason(problem), "placement_duplicate");
  problem = Problem(1, 2, 2, 4);
  problem.units[0].load = std::nan("");
  EXPECT_EQ(reason(problem), "placement_unknown_unit");
  problem = Problem(1, 2, 2, 4);
  problem.pins = {{{LayerId(9), ExpertId(0)}, WorkerId(0)}};
  EXPECT_EQ(reason(problem), "placement_unknown_unit");
}

TEST(PlannerTest, ADenseModelHasAnEmptyPlan) {
  const Plan plan = Full(Problem(0, 0, 2, 4));
  EXPECT_TRUE(plan.replicas.empty());
  EXPECT_EQ(plan.ratio_after, 1.0);
}

}  // namespace
}  // namespace conclave::placement
