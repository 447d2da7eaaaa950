// Goal: the router's page says how things are at the scrape, shows a member as long as it is one,
// and stays small. Method: states by hand, lines of the page.
#include "router_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace conclave::router_service {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

WorkerStatus Worker(int32_t id, const std::string& name) {
  WorkerStatus worker;
  worker.member.id = WorkerId(id);
  worker.member.name = name;
  worker.member.data_address = "10.0.0." + std::to_string(id) + ":7001";
  worker.member.numeric.dtype = "bf16";
  worker.num_experts = 4;
  worker.memory_bytes = 1000;
  worker.memory_used_bytes = 600;
  worker.busy_ratio = 0.5;
  worker.queued_rows = 7;
  return worker;
}

class RouterMetricsTest : public ::testing::Test {
 protected:
  void Update() { router_.Update(status_, counters_); }
  std::string Page() { return page_.Text(); }

  observability::Metrics page_;
  RouterStatus status_;
  RouterCounters counters_;
  int num_refreshes_ = 0;
  RouterMetrics router_{&page_, [this] {
                          ++num_refreshes_;
                          Update();
                        }};
};

TEST_F(RouterMetricsTest, AMemberIsShownAsItIsAndVanishesWithItsMembership) {
  status_.workers = {Worker(0, "w0"), Worker(1, "w1")};
  status_.workers[1].member.state = MemberState::kSuspect;
  std::string page = Page();
  EXPECT_EQ(num_refreshes_, 1);
  EXPECT_THAT(page, HasSubstr("moe_worker_up{host=\"10.0.0.0\",name=\"w0\",worker=\"0\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_up{host=\"10.0.0.1\",name=\"w1\",worker=\"1\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_info{host=\"10.0.0.0\",name=\"w0\",worker=\"0\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_state{state=\"live\",worker=\"0\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_state{state=\"suspect\",worker=\"1\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_state{state=\"live\",worker=\"1\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_queue_depth{worker=\"0\"} 7\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_busy_ratio{worker=\"0\"} 0.5\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_memory_bytes{kind=\"used\",worker=\"0\"} 600\n"));
  status_.workers.pop_back();
  status_.workers[0].member.state = MemberState::kDraining;
  status_.workers[0].is_drained = true;
  page = Page();
  EXPECT_THAT(page, HasSubstr("moe_worker_state{state=\"drained\",worker=\"0\"} 1\n"));
  EXPECT_THAT(page, Not(HasSubstr("worker=\"1\"")));
  EXPECT_EQ(router_.dtype(), "bf16");
}

TEST_F(RouterMetricsTest, ARouterThatStandsByShowsNobody) {
  status_.workers = {Worker(0, "w0")};
  Update();
  router_.Stop();
  router_.SetLeading(false);
  const std::string page = Page();
  EXPECT_THAT(page, Not(HasSubstr("worker=\"0\"")));
  EXPECT_THAT(page, HasSubstr("conclave_router_workers{state=\"live\"} 0\n"));
  EXPECT_EQ(num_refreshes_, 0);
}

TEST_F(RouterMetricsTest, PlacementsBeyondTheLimitShowWholeLayers) {
  // Three layers of 500 experts with two replicas each: 1000 series a layer.
  for (int32_t layer = 0; layer < 3; ++layer) {
    for (int32_t e = 0; e < 500; ++e) {
      status_.experts.push_back(
          {{LayerId(layer), ExpertId(e)}, {WorkerId(e % 2), WorkerId(2)}, {}});
    }
  }
  status_.experts[3].workers.clear();
  const std::string page = Page();
  EXPECT_THAT(page, HasSubstr("moe_expert_placement{expert=\"2\",layer=\"0\",worker=\"0\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("moe_expert_placement{expert=\"499\",layer=\"1\",worker=\"2\"} 1\n"));
  EXPECT_THAT(page, Not(HasSubstr("moe_expert_placement{expert=\"0\",layer=\"2\"")));
  EXPECT_THAT(page, HasSubstr("moe_expert_replicas{expert=\"3\",layer=\"0\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("moe_expert_replicas{expert=\"499\",layer=\"2\"} 2\n"));
}

TEST_F(RouterMetricsTest, PlansAreCountedOnOverSeveralCores) {
  const auto uneven = static_cast<size_t>(PlanReason::kUneven);
  EXPECT_THAT(Page(), Not(HasSubstr("\nmoe_rebalance_last_success_timestamp_seconds ")));
  for (int core = 0; core < 2; ++core) {
    router_.BeginCore();
    counters_ = {};
    Update();
    counters_.rebalances = 3;
    counters_.operator_rebalances = 1;
    counters_.plans[uneven][static_cast<size_t>(PlanResult::kDone)] = 1;
    counters_.plan_times[uneven].counts[4] = 1;
    counters_.plan_times[uneven].sum = 2;
    counters_.bytes_loaded = 100;
    Update();
  }
  const std::string page = Page();
  EXPECT_THAT(page, HasSubstr("moe_rebalances_total{reason=\"uneven\"} 4\n"));
  EXPECT_THAT(page, HasSubstr("moe_rebalances_total{reason=\"operator\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("moe_plans_total{reason=\"uneven\",result=\"done\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("moe_rebalance_seconds_bucket{reason=\"uneven\",le=\"2.5\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("moe_rebalance_seconds_sum{reason=\"uneven\"} 4\n"));
  EXPECT_THAT(page, HasSubstr("moe_rebalance_moved_bytes_total 200\n"));
  EXPECT_THAT(page, HasSubstr("\nmoe_rebalance_last_success_timestamp_seconds 1"));
}

}  // namespace
}  // namespace conclave::router_service
