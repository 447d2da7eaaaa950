// Goal: a replayed recording says what the router would have done, and the same thing every time.
// Method: recordings made here whose loads and workers have a known best answer; the gauge against
// the planner's own measure.
#include "conclave/router_service/what_if.h"

#include <random>

#include "conclave/base/status.h"
#include "conclave/placement/planner.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "placement_gauge.h"

namespace conclave::router_service {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kExpertBytes = 1 << 20;

ExpertUnit Unit(int32_t layer, int32_t expert) { return {LayerId(layer), ExpertId(expert)}; }

TraceWorker Made(int32_t id, int64_t memory_experts) {
  const std::string name = "w" + std::to_string(id);
  return {WorkerId(id), name, "host-" + name, 1, memory_experts * kExpertBytes, kExpertBytes, true};
}

// Layers 1 and 3 with four experts; expert e on worker e % num_workers and on the next one.
RoutingTrace Made(int32_t num_workers, int32_t replication, int64_t memory_experts) {
  RoutingTrace trace;
  trace.head.model = {"0123456789abcdef", 64, 2};
  trace.head.replication = replication;
  trace.head.layers = {{LayerId(1), 4}, {LayerId(3), 4}};
  trace.end = TraceEnd::kStopped;
  TraceWorkers workers;
  for (int32_t w = 0; w < num_workers; ++w) {
    workers.workers.push_back(Made(w, memory_experts));
  }
  TracePlacement placement;
  for (const int32_t layer : {1, 3}) {
    for (int32_t e = 0; e < 4; ++e) {
      std::vector<WorkerId> ids;
      for (int32_t r = 0; r < replication; ++r) {
        ids.emplace_back((e + r) % num_workers);
      }
      placement.changed.emplace_back(Unit(layer, e), std::move(ids));
    }
  }
  trace.records.emplace_back(std::move(workers));
  trace.records.emplace_back(std::move(placement));
  return trace;
}

// `seconds` in which expert e of both layers gets loads[e] rows, all but the first of them images'.
void AddWindows(RoutingTrace& trace, int seconds, const std::array<uint64_t, 4>& loads) {
  for (int s = 0; s < seconds; ++s) {
    TraceWindow window;
    window.length = std::chrono::seconds(1);
    for (const int32_t layer : {1, 3}) {
      for (int32_t e = 0; e < 4; ++e) {
        const uint64_t rows = loads[static_cast<size_t>(e)];
        if (rows > 0) {
          window.rows.push_back({Unit(layer, e), {1, 0, 0, rows - 1}});
        }
      }
    }
    trace.records.emplace_back(std::move(window));
  }
}

WhatIfReport Of(const RoutingTrace& trace, const WhatIfOptions& options = {}) {
  const auto report = ReplayWhatIf(trace, options);
  EXPECT_TRUE(report.ok()) << report.status();
  return report.value_or(WhatIfReport{});
}

TEST(WhatIfTest, EvenTrafficNeedsNothing) {
  RoutingTrace trace = Made(4, 1, 8);
  AddWindows(trace, 60, {100, 100, 100, 100});
  const WhatIfReport report = Of(trace);
  EXPECT_DOUBLE_EQ(report.recorded.imbalance, 1);
  EXPECT_DOUBLE_EQ(report.kept.imbalance, 1);
  EXPECT_DOUBLE_EQ(report.planned.imbalance, 1);
  EXPECT_EQ(report.planned.num_rebalances, 0);
  EXPECT_EQ(report.planned.num_loads, 0);
  EXPECT_DOUBLE_EQ(report.seconds, 60);
  EXPECT_THAT(report.rows, ElementsAre(480, 0, 0, 60 * 8 * 99));
  EXPECT_TRUE(report.advice.empty());
}

TEST(WhatIfTest, UnevenTrafficIsRebalancedAsTheRouterWould) {
  RoutingTrace trace = Made(2, 1, 8);
  AddWindows(trace, 120, {300, 20, 300, 20});  // both hot ones of a layer are on w0
  const WhatIfReport report = Of(trace);
  EXPECT_NEAR(report.recorded.imbalance, 600.0 / 320, 1e-9);
  EXPECT_DOUBLE_EQ(report.recorded.imbalance, report.kept.imbalance);
  EXPECT_GE(report.planned.num_rebalances, 1);
  EXPECT_LT(report.planned.imbalance, report.kept.imbalance - 0.2);
  EXPECT_EQ(report.bytes_loaded, report.planned.num_loads * kExpertBytes);
  ASSERT_FALSE(report.rebalanced_at.empty());
  EXPECT_GE(report.rebalanced_at.front(), 30) << "the pause between rebalances";
  WhatIfOptions soon;
  soon.rebalance_interval = std::chrono::milliseconds(1000);
  const WhatIfReport sooner = Of(trace, soon);
  ASSERT_FALSE(sooner.rebalanced_at.empty());
  EXPECT_LT(sooner.rebalanced_at.front(), 30);
  EXPECT_LT(sooner.planned.imbalance, report.planned.imbalance);
  WhatIfOptions full;
  full.is_full = true;
  const WhatIfReport once = Of(trace, full);
  ASSERT_FALSE(once.rebalanced_at.empty());
  EXPECT_EQ(once.rebalanced_at.front(), 10);
  EXPECT_LT(once.planned.imbalance, 1.15);

  ASSERT_FALSE(report.hottest.empty());
  EXPECT_EQ(report.hottest[0].unit, Unit(1, 0));
  EXPECT_DOUBLE_EQ(report.hottest[0].share, 300.0 * 4 / 640);
  EXPECT_DOUBLE_EQ(report.hottest[0].text_share, 1);
  EXPECT_DOUBLE_EQ(report.hottest[0].image_share, 299.0 * 4 / 636);
}

TEST(WhatIfTest, AHotExpertGetsTheAdviceToBeReplicated) {
  RoutingTrace trace = Made(4, 1, 8);
  AddWindows(trace, 20, {700, 100, 100, 100});
  const WhatIfReport report = Of(trace);
  ASSERT_FALSE(report.advice.empty());
  EXPECT_EQ(report.advice[0].unit, Unit(1, 0));
  EXPECT_EQ(report.advice[0].num_replicas, 2);
  EXPECT_NEAR(report.advice[0].before, 2.8, 1e-9);
  EXPECT_NEAR(report.advice[0].after, 1.8, 1e-9);
  RoutingTrace small = Made(4, 1, 2);  // no room for a further replica
  AddWindows(small, 20, {700, 100, 100, 100});
  EXPECT_TRUE(Of(small).advice.empty());
}

TEST(WhatIfTest, AWorkerThatIsMissingIsReplacedByTheOthers) {
  RoutingTrace trace = Made(3, 2, 8);
  AddWindows(trace, 20, {100, 100, 100, 100});
  WhatIfOptions options;
  options.without = {"w1"};
  const WhatIfReport report = Of(trace, options);
  EXPECT_EQ(report.num_workers, 2);
  EXPECT_EQ(report.planned.unserved, 0);
  EXPECT_EQ(report.recorded.num_loads, 0);
  EXPECT_GT(report.planned.num_loads, 0);
  ASSERT_EQ(report.workers.size(), 3);
  EXPECT_EQ(report.workers[0].planned, 8);
  EXPECT_EQ(report.workers[0].planned_alone, 0);
  EXPECT_EQ(report.workers[1].planned, -1);

  // With one replica everything that it held is unserved in the kept placement, and only for a
  // moment where the router acts.
  RoutingTrace single = Made(3, 1, 8);
  AddWindows(single, 20, {100, 100, 100, 100});
  const WhatIfReport lost = Of(single, options);
  EXPECT_NEAR(lost.kept.unserved, 0.25, 1e-9);
  EXPECT_LT(lost.planned.unserved, 0.05);
  EXPECT_EQ(lost.workers[0].planned_alone, lost.workers[0].planned);
}

TEST(WhatIfTest, FollowsWhoCameWentAndDrained) {
  RoutingTrace trace = Made(3, 2, 8);
  AddWindows(trace, 10, {100, 100, 100, 100});
  TraceWorkers changed;
  changed.workers = {Made(0, 8), Made(1, 8)};  // w2 dies
  trace.records.emplace_back(changed);
  AddWindows(trace, 10, {100, 100, 100, 100});
  changed.workers.push_back(Made(5, 8));  // w5 comes
  trace.records.emplace_back(changed);
  AddWindows(trace, 10, {100, 100, 100, 100});
  changed.workers[0].takes_experts = false;  // w0 drains
  trace.records.emplace_back(changed);
  AddWindows(trace, 30, {100, 100, 100, 100});
  const WhatIfReport report = Of(trace);
  EXPECT_EQ(report.planned.unserved, 0);
  ASSERT_EQ(report.workers.size(), 3);
  EXPECT_EQ(report.workers[0].planned, 0) << "it drains";
  EXPECT_EQ(report.workers[1].planned, 8);
  EXPECT_EQ(report.workers[2].name, "w5");
  EXPECT_EQ(report.workers[2].planned, 8);
  EXPECT_EQ(report.workers[2].planned_alone, 0);
  WhatIfOptions fixed;
  fixed.num_workers = 3;
  const WhatIfReport still = Of(trace, fixed);
  EXPECT_EQ(still.kept.unserved, 0);
  for (const WhatIfWorker& worker : still.workers) {
    EXPECT_EQ(worker.planned > 0, worker.name != "w5") << "nobody comes or goes: " << worker.name;
  }
}

TEST(WhatIfTest, AddedWorkersGetTheirPart) {
  RoutingTrace trace = Made(2, 2, 8);
  AddWindows(trace, 30, {100, 100, 100, 100});
  WhatIfOptions options;
  options.num_added = 2;
  const WhatIfReport report = Of(trace, options);
  EXPECT_EQ(report.num_workers, 4);
  EXPECT_EQ(report.workers[0].name, "new-1");
  EXPECT_GT(report.workers[0].planned, 0);
  EXPECT_NEAR(report.kept.imbalance, 2, 1e-9) << "two of four do nothing";
  EXPECT_LT(report.planned.imbalance, 1.5);
  options.replication = 1;
  options.memory_bytes = 4 * kExpertBytes;
  const WhatIfReport small = Of(trace, options);
  EXPECT_EQ(small.replication, 1);
  for (const WhatIfWorker& worker : small.workers) {
    EXPECT_LE(worker.planned, 4);
  }
}

TEST(WhatIfTest, RefusesWhatCannotBe) {
  RoutingTrace trace = Made(2, 2, 8);
  WhatIfOptions options;
  EXPECT_EQ(ReasonOf(ReplayWhatIf(trace, options).status()), "trace_empty");
  AddWindows(trace, 3, {0, 0, 0, 0});
  EXPECT_EQ(ReasonOf(ReplayWhatIf(trace, options).status()), "trace_empty");
  AddWindows(trace, 3, {1, 1, 1, 1});
  options.without = {"w7"};
  EXPECT_THAT(MessageOf(ReplayWhatIf(trace, options).status()), HasSubstr("(w0, w1), found w7"));
  options.without = {"w0", "w1"};
  EXPECT_EQ(ReasonOf(ReplayWhatIf(trace, options).status()), "placement_worker");
  options.without.clear();
  options.memory_bytes = 3 * kExpertBytes;
  const absl::Status full = ReplayWhatIf(trace, options).status();
  EXPECT_EQ(ReasonOf(full), "placement_over_capacity");
  EXPECT_THAT(MessageOf(full),
              HasSubstr("hold 6 experts; expected room for one replica of each of 8"));
}

TEST(WhatIfTest, TheSameRecordingGivesTheSameReport) {
  RoutingTrace trace = Made(3, 2, 5);
  std::mt19937_64 random(7);
  for (int i = 0; i < 60; ++i) {
    AddWindows(trace, 1, {random() % 500, random() % 100, random() % 300, random() % 50});
  }
  WhatIfOptions options;
  options.num_added = 1;
  options.rebalance_interval = std::chrono::milliseconds(5000);
  const WhatIfReport a = Of(trace, options);
  const WhatIfReport b = Of(trace, options);
  EXPECT_EQ(a.planned.imbalance, b.planned.imbalance);
  EXPECT_EQ(a.planned.num_loads, b.planned.num_loads);
  EXPECT_EQ(a.rebalanced_at, b.rebalanced_at);
  EXPECT_GT(a.planned.num_rebalances, 0);
}

// The gauge measures as the planner does, wherever both have an answer.
TEST(PlacementGaugeTest, AgreesWithThePlanner) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(round);
    const std::vector<MoeLayer> layers = {{LayerId(0), 5}, {LayerId(4), 3}};
    std::vector<TraceWorker> workers;
    placement::PlanProblem problem;
    for (int32_t w = 0; w < 4; ++w) {
      TraceWorker& worker = workers.emplace_back(Made(w, 100));
      worker.speed = 1 + static_cast<double>(random() % 3);
      worker.takes_experts = w != 0 || random() % 2 == 0;
      problem.workers.push_back(
          {worker.id, w, worker.speed, worker.memory_bytes, worker.takes_experts});
    }
    ReplicaMap map;
    std::vector<double> loads;
    for (const MoeLayer& layer : layers) {
      for (int32_t e = 0; e < layer.num_experts; ++e) {
        loads.push_back(1 + static_cast<double>(random() % 1000));
        problem.units.push_back({{layer.layer, ExpertId(e)}, loads.back(), kExpertBytes});
        const auto first = static_cast<int32_t>(1 + random() % 3);
        map[{layer.layer, ExpertId(e)}] = {WorkerId(first)};
        if (random() % 2 == 0) {
          map[{layer.layer, ExpertId(e)}].emplace_back(1 + first % 3);
        }
      }
    }
    PlacementGauge gauge(layers);
    gauge.SetWorkers(workers);
    gauge.SetPlacement(map);
    gauge.Add(loads, 2);
    EXPECT_NEAR(gauge.Imbalance(), placement::ImbalanceOf(problem, ToReplicas(map), {}), 1e-9);
    EXPECT_EQ(gauge.Unserved(), 0);
  }
}

}  // namespace
}  // namespace conclave::router_service
