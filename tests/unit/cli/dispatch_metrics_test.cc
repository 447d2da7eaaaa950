// Goal: what a dispatcher counts is on the page once per series, sums over carriers where a carrier
// is no label, and stays small with many workers. Method: counts by hand, lines of the page.
#include "dispatch_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

namespace conclave::cli {
namespace {

using frontend::WorkerDispatch;
using ::testing::HasSubstr;
using ::testing::Not;

WorkerDispatch Counted(int32_t id, const char* transport, uint64_t n) {
  WorkerDispatch worker;
  worker.worker = WorkerId(id);
  worker.transport = transport;
  worker.rows = 10 * n;
  worker.rows_resent = n;
  worker.failovers = {1 * n, 2 * n, 3 * n};
  worker.bytes_dispatched = 100 * n;
  worker.bytes_combined = 50 * n;
  worker.bytes_least = 120 * n;
  for (frontend::BucketCounts& stage : worker.stages) {
    stage.counts[0] = n;
    stage.sum = 1e-6 * static_cast<double>(n);
  }
  worker.round_trip.counts.back() = n;
  return worker;
}

std::string PageOf(const DispatchReading& reading) {
  observability::Metrics metrics;
  AddDispatchMetrics(metrics, "f0", [&reading] { return reading; });
  return metrics.Text();
}

TEST(DispatchMetricsTest, AWorkerThatChangedItsCarrierIsOneWorker) {
  DispatchReading reading;
  reading.workers = {Counted(3, "tcp", 1), Counted(3, "shm", 2)};
  reading.stats.degraded_rows = 5;
  reading.recovery.counts[4] = 2;
  const std::string page = PageOf(reading);
  EXPECT_THAT(page,
              HasSubstr("moe_dispatch_bytes_total{direction=\"dispatch\",dst=\"3\",src=\"f0\","
                        "transport=\"tcp\"} 100\n"));
  EXPECT_THAT(page, HasSubstr("moe_dispatch_bytes_total{direction=\"combine\",dst=\"f0\",src=\"3\","
                              "transport=\"shm\"} 100\n"));
  EXPECT_THAT(page,
              HasSubstr("moe_dispatch_least_bytes_total{transport=\"shm\",worker=\"3\"} 240\n"));
  EXPECT_THAT(page, HasSubstr("moe_dispatch_tokens_total{worker=\"3\"} 30\n"));
  EXPECT_THAT(page, HasSubstr("moe_redispatched_tokens_total{worker=\"3\"} 3\n"));
  EXPECT_THAT(page, HasSubstr("moe_failover_total{reason=\"link_lost\",worker=\"3\"} 6\n"));
  EXPECT_THAT(page, HasSubstr("moe_degraded_tokens_total 5\n"));
  EXPECT_THAT(
      page,
      HasSubstr("moe_dispatch_seconds_bucket{stage=\"queue\",worker=\"3\",le=\"2e-06\"} 3\n"));
  EXPECT_THAT(page, HasSubstr("moe_dispatch_round_trip_seconds_bucket{worker=\"3\",le=\"5\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("moe_dispatch_round_trip_seconds_count{worker=\"3\"} 3\n"));
  EXPECT_THAT(page, HasSubstr("moe_failover_recovery_seconds_bucket{le=\"5e-05\"} 2\n"));
}

TEST(DispatchMetricsTest, ManyWorkersShareTheTimesOfTheLast) {
  DispatchReading reading;
  for (int32_t id = 0; id < 1000; ++id) {
    reading.workers.push_back(Counted(id, "grpc", 1));
  }
  const std::string page = PageOf(reading);
  EXPECT_THAT(page, HasSubstr("moe_dispatch_round_trip_seconds_count{worker=\"31\"} 1\n"));
  EXPECT_THAT(page, Not(HasSubstr("moe_dispatch_round_trip_seconds_count{worker=\"32\"}")));
  EXPECT_THAT(page, HasSubstr("moe_dispatch_round_trip_seconds_count{worker=\"other\"} 968\n"));
  EXPECT_THAT(page,
              HasSubstr("moe_dispatch_seconds_count{stage=\"combine\",worker=\"other\"} 968\n"));
  EXPECT_LT(page.size(), size_t{1} << 20);
}

TEST(DispatchMetricsTest, NamesStandBesideIds) {
  observability::Metrics metrics;
  AddWorkerInfo(metrics, [] {
    return std::vector<frontend::MemberLink>{{WorkerId(0), "w0", "10.0.0.7:7001", "tcp"},
                                             {WorkerId(1), "w1", "[fd00::1]:7001", nullptr}};
  });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("moe_worker_info{channel=\"tcp\",host=\"10.0.0.7\",name=\"w0\","
                              "worker=\"0\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("channel=\"none\",host=\"fd00::1\",name=\"w1\",worker=\"1\"} 1\n"));
}

}  // namespace
}  // namespace conclave::cli
