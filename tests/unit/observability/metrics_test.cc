// Goal: the page is what Prometheus reads, and the handles count what they are told.
// Method: set values, look for exact lines in the text.
#include "conclave/observability/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <sstream>
#include <thread>

#include "conclave/observability/engine_metrics.h"

namespace conclave::observability {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

TEST(MetricsTest, PageHasHelpTypeLabelsAndValue) {
  Metrics metrics;
  metrics.AddCounter("conclave_things_total", "Things.", {{"kind", "a"}}).Add(3);
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("# HELP conclave_things_total Things.\n"));
  EXPECT_THAT(page, HasSubstr("# TYPE conclave_things_total counter\n"));
  EXPECT_THAT(page, HasSubstr("conclave_things_total{kind=\"a\"} 3\n"));
}

TEST(MetricsTest, SameNameAndLabelsIsTheSameMetric) {
  Metrics metrics;
  metrics.AddCounter("conclave_x_total", "X.", {{"a", "1"}}).Add(1);
  metrics.AddCounter("conclave_x_total", "X.", {{"a", "1"}}).Add(2);
  EXPECT_THAT(metrics.Text(), HasSubstr("conclave_x_total{a=\"1\"} 3\n"));
}

TEST(MetricsTest, CounterNeverFalls) {
  Metrics metrics;
  const Counter counter = metrics.AddCounter("conclave_x_total", "X.");
  counter.Add(2);
  counter.Add(-1);
  EXPECT_EQ(counter.Value(), 2);
}

TEST(MetricsTest, HistogramCountsIntoItsBuckets) {
  Metrics metrics;
  const double bounds[] = {0.1, 1.0};
  const Histogram histogram = metrics.AddHistogram("conclave_s_seconds", "S.", {}, bounds);
  histogram.Observe(0.1);
  histogram.Observe(0.5);
  histogram.Observe(7);
  histogram.Observe(std::numeric_limits<double>::quiet_NaN());
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("conclave_s_seconds_bucket{le=\"0.1\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("conclave_s_seconds_bucket{le=\"1\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("conclave_s_seconds_bucket{le=\"+Inf\"} 3\n"));
  EXPECT_THAT(page, HasSubstr("conclave_s_seconds_count 3\n"));
}

TEST(MetricsTest, LabelValuesAreEscaped) {
  Metrics metrics;
  metrics.AddGauge("conclave_g", "G.", {{"name", "a\"b\\c\nd"}}).Set(1);
  EXPECT_THAT(metrics.Text(), HasSubstr("conclave_g{name=\"a\\\"b\\\\c\\nd\"} 1\n"));
}

TEST(MetricsTest, CollectorIsAskedAtEveryScrape) {
  Metrics metrics;
  int calls = 0;
  metrics.AddCollector("moe_rows_total", "Rows.", Metrics::Kind::kCounter, [&calls] {
    ++calls;
    return std::vector<Metrics::Sample>{{{{"layer", "1"}}, 10.0 * calls}};
  });
  EXPECT_THAT(metrics.Text(), HasSubstr("moe_rows_total{layer=\"1\"} 10\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("moe_rows_total{layer=\"1\"} 20\n"));
}

TEST(MetricsTest, WhatIsToBeUpToDateIsAskedForBeforeThePage) {
  Metrics metrics;
  const Gauge gauge = metrics.AddGauge("conclave_g", "G.");
  double value = 1;
  metrics.AddRefresh([&] { gauge.Set(value++); });
  EXPECT_THAT(metrics.Text(), HasSubstr("conclave_g 1\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("conclave_g 2\n"));
}

TEST(MetricsTest, AnAliasIsTheSameMetricUnderAnotherName) {
  Metrics metrics;
  metrics.AddAlias("conclave_x_total", "other:x_total");
  metrics.AddAlias("conclave_missing", "other:missing");
  metrics.AddCounter("conclave_x_total", "X.", {{"a", "1"}}).Add(3);
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("conclave_x_total{a=\"1\"} 3\n"));
  EXPECT_THAT(page, HasSubstr("# TYPE other:x_total counter\nother:x_total{a=\"1\"} 3\n"));
  EXPECT_THAT(page, Not(HasSubstr("missing")));
}

// Names, types and labels of vllm/v1/metrics/loggers.py.
TEST(VllmNamesTest, EveryNameThatIsClaimedIsThere) {
  Metrics metrics;
  AddVllmNames(metrics);
  const EngineMetrics engine(metrics, "demo", "0", 2048);
  engine.CountFinished(Finished::kLength);
  const std::string page = metrics.Text();
  const std::pair<const char*, std::vector<const char*>> families[] = {
      {"gauge", {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}},
      {"counter",
       {"prompt_tokens_total", "prompt_tokens_cached_total", "generation_tokens_total",
        "prefix_cache_queries_total", "prefix_cache_hits_total", "mm_cache_queries_total",
        "mm_cache_hits_total", "num_preemptions_total", "request_success_total"}},
      {"histogram",
       {"time_to_first_token_seconds", "inter_token_latency_seconds",
        "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
        "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
        "request_inference_time_seconds", "iteration_tokens_total", "request_prompt_tokens",
        "request_generation_tokens"}}};
  size_t count = 0;
  for (const auto& [type, names] : families) {
    for (const std::string name : names) {
      ++count;
      EXPECT_THAT(page, HasSubstr("# TYPE vllm:" + name + " " + type + "\n"));
    }
  }
  size_t found = 0;
  for (size_t at = 0; (at = page.find("# TYPE vllm:", at)) != std::string::npos; ++at) {
    ++found;
  }
  EXPECT_EQ(found, count);
  EXPECT_THAT(page, HasSubstr("vllm:request_success_total{engine=\"0\",finished_reason=\"length\","
                              "model_name=\"demo\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("vllm:time_to_first_token_seconds_count{engine=\"0\","
                              "model_name=\"demo\"} 0\n"));
}

TEST(MetricsTest, CountsOfBucketsThatSomebodyElseKeepsBecomeAHistogram) {
  Metrics metrics;
  const double bounds[] = {0.1, 1.0};
  uint64_t beyond = 4;
  metrics.AddHistogramCollector("moe_s_seconds", "S.", bounds, [&beyond] {
    return std::vector<Metrics::HistogramSample>{{{{"worker", "1"}}, {2, 3, beyond++}, 7.5}};
  });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("# TYPE moe_s_seconds histogram\n"));
  EXPECT_THAT(page, HasSubstr("moe_s_seconds_bucket{worker=\"1\",le=\"0.1\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("moe_s_seconds_bucket{worker=\"1\",le=\"1\"} 5\n"));
  EXPECT_THAT(page, HasSubstr("moe_s_seconds_bucket{worker=\"1\",le=\"+Inf\"} 9\n"));
  EXPECT_THAT(page, HasSubstr("moe_s_seconds_count{worker=\"1\"} 9\n"));
  EXPECT_THAT(page, HasSubstr("moe_s_seconds_sum{worker=\"1\"} 7.5\n"));
  EXPECT_THAT(metrics.Text(), HasSubstr("moe_s_seconds_count{worker=\"1\"} 10\n"));
}

TEST(MetricsTest, HandlesWithoutMetricsDoNothing) {
  Counter().Add();
  Gauge().Set(1);
  Histogram().Observe(1);
  EXPECT_EQ(Counter().Value(), 0);
}

TEST(MetricsTest, CountsOfManyThreadsAddUp) {
  Metrics metrics;
  const Counter counter = metrics.AddCounter("conclave_x_total", "X.");
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        counter.Add();
        if (i % 250 == 0) {
          (void)metrics.Text();
        }
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(counter.Value(), 4000);
}

TEST(MetricsDeathTest, MistakesInNamesAndTypesAbort) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  Metrics metrics;
  EXPECT_DEATH(metrics.AddCounter("vllm:x_total", "X."), "broken invariant");
  EXPECT_DEATH(metrics.AddCounter("has space", "X."), "broken invariant");
  EXPECT_DEATH(metrics.AddGauge("g", "G.", {{"le-gal", "1"}}), "broken invariant");
  metrics.AddGauge("g", "G.");
  EXPECT_DEATH(metrics.AddCounter("g", "G."), "broken invariant");
  const double falling[] = {2.0, 1.0};
  EXPECT_DEATH(metrics.AddHistogram("h", "H.", {}, falling), "broken invariant");
}

TEST(MetricsTest, ProcessMetricsHaveSaneValues) {
  Metrics metrics;
  metrics.AddProcessMetrics();
  const std::string page = metrics.Text();
  for (const char* name : {"process_resident_memory_bytes", "process_cpu_seconds_total",
                           "process_open_fds", "process_max_fds", "process_start_time_seconds"}) {
    const size_t at = page.find("\n" + std::string(name) + " ");
    ASSERT_NE(at, std::string::npos) << name;
    EXPECT_GT(std::stod(page.substr(at + std::string(name).size() + 2)), 0) << name;
  }
}

// By hand: F = {3/4, 1/4}, G = {0.6, 0.4} over 4 rows: 2 * (0.45 + 0.1).
TEST(GateBalanceTest, TheLossIsTheFormula) {
  Metrics metrics;
  AddGateBalance(metrics, [] {
    std::vector<ExpertTokens> experts(4);
    experts[0] = {.layer = 1, .expert = 0, .tokens = 3, .weights = 2.4};
    experts[1] = {.layer = 1, .expert = 1, .tokens = 1, .weights = 1.6};
    experts[2] = {.layer = 3, .expert = 0};
    experts[3] = {.layer = 3, .expert = 1};
    return experts;
  });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("moe_balance_loss{layer=\"1\"} 1.1\n"));
  EXPECT_THAT(page, HasSubstr("moe_balance_loss{layer=\"3\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("moe_gate_probability_sum_total{expert=\"0\",layer=\"1\"} 2.4\n"));
}

// vLLM's bounds (ecosystem notes, metrics): each must be among ours, or its dashboards cannot be
// carried over.
TEST(BucketTest, OursContainEveryBoundOfVllm) {
  const auto contains = [](std::span<const double> ours, std::initializer_list<double> theirs) {
    return std::all_of(theirs.begin(), theirs.end(), [&](double bound) {
      return std::find(ours.begin(), ours.end(), bound) != ours.end();
    });
  };
  EXPECT_TRUE(contains(TimeToFirstTokenBounds(),
                       {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75, 1,
                        1.5,  2,    2.5, 5,   7.5, 10,  20,  40, 80,  160, 640, 2560}));
  EXPECT_TRUE(contains(InterTokenBounds(),
                       {.0005, .001, .002, .003, .005, .0075, .01, .025, .05, .075, .1, .15, .2,
                        .3,    .4,   .5,   .75,  1,    2.5,   5,   7.5,  10,  20,   40, 80}));
  EXPECT_TRUE(contains(RequestTimeBounds(),
                       {.01, .025, .05, .1, .2, .3, .5, .8,  1,   1.5, 2,   2.5,  5,
                        10,  15,   20,  30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}));
  EXPECT_TRUE(contains(IterationTokenBounds(),
                       {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}));
}

TEST(BucketTest, TokenCountsAreA125SeriesUpToTheContext) {
  EXPECT_THAT(TokenCountBounds(100), ElementsAre(1, 2, 5, 10, 20, 50, 100));
  EXPECT_THAT(TokenCountBounds(101), ElementsAre(1, 2, 5, 10, 20, 50, 100, 200));
  EXPECT_THAT(TokenCountBounds(1), ElementsAre(1));
}

TEST(EngineMetricsTest, EverySeriesCarriesModelAndEngine) {
  Metrics metrics;
  const EngineMetrics engine(metrics, "demo", "0", 4096);
  engine.num_requests_running.Set(2);
  engine.CountFinished(Finished::kLength);
  engine.time_to_first_token.Observe(0.02);
  const std::string page = metrics.Text();
  EXPECT_THAT(page,
              HasSubstr("conclave_num_requests_running{engine=\"0\",model_name=\"demo\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("conclave_request_success_total{engine=\"0\",finished_reason="
                              "\"length\",model_name=\"demo\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("conclave_request_success_total{engine=\"0\",finished_reason="
                              "\"abort\",model_name=\"demo\"} 0\n"));
  EXPECT_THAT(page, HasSubstr("conclave_time_to_first_token_seconds_count{engine=\"0\",model_name="
                              "\"demo\"} 1\n"));
}

TEST(EngineMetricsTest, SR25PageOfOneEngineIsSmall) {
  Metrics metrics;
  const EngineMetrics engine(metrics, "demo", "0", 32768);
  metrics.AddProcessMetrics();
  const std::string page = metrics.Text();
  std::istringstream lines(page);
  int num_series = 0;
  for (std::string line; std::getline(lines, line);) {
    num_series += line.starts_with('#') ? 0 : 1;
    EXPECT_THAT(line.substr(0, line.find_first_of("{ ")), Not(HasSubstr(":")));
  }
  EXPECT_LE(num_series, 2000);
  EXPECT_GT(num_series, 100);
}

ExpertTokens Tokens(int32_t layer, int32_t expert, uint64_t tokens) {
  ExpertTokens entry;
  entry.layer = layer;
  entry.expert = expert;
  entry.tokens = tokens;
  return entry;
}

TEST(ExpertTokensTest, LabelsFollowTheEntry) {
  Metrics metrics;
  ExpertTokens frontend = Tokens(2, 3, 7);
  frontend.modality = Modality::kImage;
  frontend.phase = Phase::kDecode;
  frontend.rank = Rank::kTop2;
  ExpertTokens worker = Tokens(2, 0, 1);
  worker.worker = 5;
  AddExpertTokens(metrics, [=] { return std::vector{frontend, worker}; });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("moe_expert_tokens_total{expert=\"3\",layer=\"2\",modality=\"image\","
                              "phase=\"decode\",rank=\"top2\"} 7\n"));
  EXPECT_THAT(page, HasSubstr("moe_expert_tokens_total{expert=\"0\",layer=\"2\",modality=\"text\","
                              "phase=\"prefill\",worker=\"5\"} 1\n"));
}

TEST(ExpertTokensTest, WeightsAreSummedOverPhasesAndRanks) {
  Metrics metrics;
  ExpertTokens first = Tokens(2, 3, 7);
  first.rank = Rank::kTop1;
  first.weights = 4.5;
  ExpertTokens second = Tokens(2, 3, 1);
  second.rank = Rank::kTop2;
  second.phase = Phase::kDecode;
  second.weights = 0.25;
  ExpertTokens image = second;
  image.modality = Modality::kImage;
  AddExpertWeights(metrics, [=] { return std::vector{first, second, image}; });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("moe_expert_weight_sum_total{expert=\"3\",layer=\"2\","
                              "modality=\"text\"} 4.75\n"));
  EXPECT_THAT(page, HasSubstr("moe_expert_weight_sum_total{expert=\"3\",layer=\"2\","
                              "modality=\"image\"} 0.25\n"));
}

TEST(ExpertTokensTest, WorkersOfThisProcessAreSummedEach) {
  Metrics metrics;
  ExpertTokens first = Tokens(1, 0, 7);
  first.worker = 0;
  ExpertTokens second = Tokens(2, 1, 5);
  second.worker = 0;
  ExpertTokens other = Tokens(2, 1, 2);
  other.worker = 1;
  AddWorkerTokens(metrics, [=] { return std::vector{first, second, other}; });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("moe_worker_tokens_total{worker=\"0\"} 12\n"));
  EXPECT_THAT(page, HasSubstr("moe_worker_tokens_total{worker=\"1\"} 2\n"));
}

TEST(ExpertTokensTest, LayerFiguresAreMaxMeanAndTheirQuotient) {
  Metrics metrics;
  AddExpertTokens(metrics, [] { return std::vector{Tokens(1, 0, 30), Tokens(1, 1, 10)}; });
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("moe_layer_expert_tokens_max_total{layer=\"1\"} 30\n"));
  EXPECT_THAT(page, HasSubstr("moe_layer_expert_tokens_mean_total{layer=\"1\"} 20\n"));
  EXPECT_THAT(page, HasSubstr("moe_layer_imbalance_ratio{layer=\"1\"} 1.5\n"));
}

TEST(ExpertTokensTest, LayerWithoutTokensIsBalanced) {
  Metrics metrics;
  AddExpertTokens(metrics, [] { return std::vector{Tokens(1, 0, 0)}; });
  EXPECT_THAT(metrics.Text(), HasSubstr("moe_layer_imbalance_ratio{layer=\"1\"} 1\n"));
}

TEST(ExpertTokensTest, SR25BeyondTheLimitTheMostLoadedExpertsStay) {
  std::vector<ExpertTokens> all;
  for (int expert = 0; expert < 10; ++expert) {
    for (const Phase phase : {Phase::kPrefill, Phase::kDecode}) {
      all.push_back(Tokens(0, expert, static_cast<uint64_t>(expert)));
      all.back().phase = phase;
    }
  }
  const std::vector<ExpertTokens> kept = MostLoaded(all, 5);
  // Whole experts only: two with two series each.
  std::set<int32_t> experts;
  for (const ExpertTokens& entry : kept) {
    experts.insert(entry.expert);
  }
  EXPECT_EQ(kept.size(), 4U);
  EXPECT_THAT(experts, ElementsAre(8, 9));
  EXPECT_EQ(MostLoaded(all, 20).size(), 20U);
}

TEST(HttpMetricsTest, I04MislabelledImagesAreOnThePageFromTheStart) {
  Metrics metrics;
  const HttpMetrics http(metrics);
  EXPECT_THAT(metrics.Text(), HasSubstr("\nconclave_image_mime_mismatch_total 0\n"));
  http.image_mime_mismatch.Add(2);
  EXPECT_THAT(metrics.Text(), HasSubstr("\nconclave_image_mime_mismatch_total 2\n"));
}

TEST(HttpMetricsTest, RequestsAreCountedPerRouteAndStatus) {
  Metrics metrics;
  HttpMetrics http(metrics);
  http.Observe("/v1/models", 200, 0.02);
  http.Observe("/v1/models", 200, 0.02);
  http.Observe("other", 404, 0.001);
  const std::string page = metrics.Text();
  EXPECT_THAT(page,
              HasSubstr("conclave_http_requests_total{handler=\"/v1/models\",status=\"200\"} 2\n"));
  EXPECT_THAT(page,
              HasSubstr("conclave_http_requests_total{handler=\"other\",status=\"404\"} 1\n"));
  EXPECT_THAT(
      page, HasSubstr("conclave_http_request_duration_seconds_count{handler=\"/v1/models\"} 2\n"));
}

TEST(GrpcMetricsTest, CallsAreCountedPerMethodAndCode) {
  Metrics metrics;
  GrpcMetrics grpc(metrics);
  grpc.Observe("Chat", "OK", 0.02);
  grpc.Observe("Chat", "UNAVAILABLE", 0.001);
  const std::string page = metrics.Text();
  EXPECT_THAT(page, HasSubstr("conclave_grpc_requests_total{code=\"OK\",method=\"Chat\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("conclave_grpc_request_duration_seconds_count{method=\"Chat\"} 2\n"));
}

}  // namespace
}  // namespace conclave::observability
