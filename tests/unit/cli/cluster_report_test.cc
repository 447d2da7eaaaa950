// Goal: what `conclave cluster` prints is complete for scripts, readable for people, and harmless
// to a terminal.
// Method: a status with one of everything.
#include "cluster_report.h"

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include "conclave/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

router_service::RouterStatus Sample() {
  router_service::RouterStatus status;
  status.router = {3, "0123456789abcdef"};
  status.epoch = router_service::MakeEpoch(3, 12);
  status.state = "serving";
  status.replication_wanted = 2;
  status.replication_lowest = 0;
  router_service::WorkerStatus worker;
  worker.member.id = WorkerId(4);
  worker.member.name = "gpu-1";
  worker.member.data_address = "10.0.0.1:7001";
  worker.member.state = router_service::MemberState::kSuspect;
  worker.memory_bytes = 1 << 30;
  status.workers = {worker};
  status.frontends = {{0x10002, "front\x1b[31m", router_service::MakeEpoch(3, 11), 0, ""}};
  status.experts = {{{LayerId(1), ExpertId(0)}, {WorkerId(4)}, {1.5, 0, 2, 0}},
                    {{LayerId(1), ExpertId(1)}, {}, {}}};
  return status;
}

TEST(ClusterReportTest, TheTableSaysWhatMatters) {
  const std::string text = StatusText(Sample());
  EXPECT_THAT(text, HasSubstr("serving, epoch 3.12"));
  EXPECT_THAT(text, HasSubstr("2 experts, 1 unserved"));
  EXPECT_THAT(text, HasSubstr("suspect"));
  EXPECT_THAT(text, HasSubstr("1:1     none"));
  EXPECT_THAT(text, Not(HasSubstr("\x1b"))) << "names come from peers";
}

TEST(ClusterReportTest, TheJsonHasEveryField) {
  const boost::json::value value = boost::json::parse(StatusJson(Sample()));
  EXPECT_EQ(value.at("epoch").as_int64(), (int64_t{3} << 32) + 12);
  EXPECT_EQ(value.at("workers").at(0).at("state").as_string(), "suspect");
  EXPECT_EQ(value.at("workers").at(0).at("memory_bytes").as_int64(), 1 << 30);
  EXPECT_EQ(value.at("frontends").at(0).at("id").as_int64(), 0x10002);
  EXPECT_EQ(value.at("experts").at(0).at("decode_text").as_double(), 1.5);
  EXPECT_TRUE(value.at("experts").at(1).at("workers").as_array().empty());
}

TEST(ClusterReportTest, APlanSaysWhetherItIsOneOnly) {
  router_service::RebalancePlan plan;
  EXPECT_THAT(RebalanceText(plan, true), HasSubstr("nothing to move"));
  plan.moves = {{{LayerId(1), ExpertId(0)}, WorkerId(2), WorkerId(-1)}};
  plan.bytes = 5 << 20;
  EXPECT_THAT(RebalanceText(plan, true), HasSubstr("would load 1 replicas, 5MiB"));
  EXPECT_THAT(RebalanceText(plan, false), HasSubstr("loads 1 replicas"));
  const boost::json::value value = boost::json::parse(RebalanceJson(plan, true));
  EXPECT_EQ(value.at("moves").at(0).at("from").as_int64(), -1);
}

TEST(ClusterReportTest, ExpertsAreReadStrictly) {
  EXPECT_EQ(ParseExpert("3:7")->expert, ExpertId(7));
  for (const char* text : {"", "3", "3:", ":3", "3:-1", "3:x", "03:1", "3:65536", "3:1:2"}) {
    EXPECT_EQ(ReasonOf(ParseExpert(text).status()), "usage") << text;
  }
}

TEST(ClusterReportTest, KillSafeNamesExperts) {
  EXPECT_THAT(KillSafeText("w", {}), HasSubstr("may be killed"));
  EXPECT_THAT(KillSafeText("w", {{LayerId(1), ExpertId(2)}}), HasSubstr("1:2"));
  EXPECT_FALSE(
      boost::json::parse(KillSafeJson("w", {{LayerId(1), ExpertId(2)}})).at("is_safe").as_bool());
}

}  // namespace
}  // namespace conclave::cli
