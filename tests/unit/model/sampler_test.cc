// Goal: the next token is a function of logits, parameters, seed and step, and follows the order
// penalties, temperature, top-k, top-p, min-p. Method: small logit tables with known answers;
// frequencies over many steps of a fixed seed.
#include "conclave/model/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace conclave::model {
namespace {

std::vector<std::pair<float, int32_t>> scratch;

TokenChoice Choose(const std::vector<float>& logits, const SamplerParams& params, uint64_t step = 0,
                   const std::vector<int32_t>& prompt = {},
                   const std::vector<int32_t>& generated = {}) {
  return Sample(logits, static_cast<int32_t>(logits.size()), params, prompt, generated, step,
                scratch);
}

// Share of each id over `steps` draws.
std::map<int32_t, double> Shares(const std::vector<float>& logits, SamplerParams params,
                                 int steps = 20000) {
  params.seed = 5;
  std::map<int32_t, double> shares;
  for (int step = 0; step < steps; ++step) {
    shares[Choose(logits, params, static_cast<uint64_t>(step)).token] += 1.0 / steps;
  }
  return shares;
}

TEST(SamplerTest, GreedyTakesTheLargestAndTiesGoToTheLowestId) {
  EXPECT_EQ(Choose({1, 3, 2}, {}).token, 1);
  EXPECT_EQ(Choose({2, 5, 5, 5}, {}).token, 1);
  // The general path (a penalty in use) agrees on ties.
  SamplerParams params;
  params.logit_bias = {{0, 0.5f}};
  EXPECT_EQ(Choose({2, 5, 5, 5}, params).token, 1);
}

TEST(SamplerTest, IdsBeyondTheVocabularyAreNeverChosen) {
  const std::vector<float> logits = {1, 2, 100};
  SamplerParams hot;
  hot.temperature = 2.0f;
  EXPECT_EQ(Sample(logits, 2, {}, {}, {}, 0, scratch).token, 1);
  for (uint64_t step = 0; step < 200; ++step) {
    EXPECT_LT(Sample(logits, 2, hot, {}, {}, step, scratch).token, 2);
  }
}

TEST(SamplerTest, DrawsFollowTheSoftmaxAtTheTemperature) {
  SamplerParams params;
  params.temperature = 2.0f;
  const std::vector<float> logits = {0, 2, 4};
  const auto shares = Shares(logits, params);
  const double sum = 1 + std::exp(1.0) + std::exp(2.0);
  // Four standard deviations of 20,000 draws are below 0.015.
  EXPECT_NEAR(shares.at(0), 1 / sum, 0.015);
  EXPECT_NEAR(shares.at(1), std::exp(1.0) / sum, 0.015);
  EXPECT_NEAR(shares.at(2), std::exp(2.0) / sum, 0.015);
}

TEST(SamplerTest, TopKAndTopPAndMinPKeepTheBest) {
  const std::vector<float> logits = {3, 2.9f, 1, 0, -5};
  SamplerParams params;
  params.temperature = 1.0f;
  params.top_k = 2;
  EXPECT_EQ(Shares(logits, params, 2000).size(), 2u);
  params.top_k = 0;
  params.top_p = 0.5f;  // the first has 0.47 of the mass, so the second is kept too
  EXPECT_EQ(Shares(logits, params, 2000).size(), 2u);
  params.top_p = 0.01f;  // at least one
  EXPECT_EQ(Shares(logits, params, 2000).size(), 1u);
  params.top_p = 1.0f;
  params.min_p = 0.5f;
  EXPECT_EQ(Shares(logits, params, 2000).size(), 2u);
}

TEST(SamplerTest, TheSameSeedAndStepGiveTheSameTokenAndOthersDiffer) {
  const std::vector<float> logits(50, 1.0f);
  SamplerParams params;
  params.temperature = 1.0f;
  params.seed = 42;
  const int32_t first = Choose(logits, params, 3).token;
  EXPECT_EQ(Choose(logits, params, 3).token, first);
  int num_same = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    params.seed = 1000 + seed;
    num_same += Choose(logits, params, 3).token == first ? 1 : 0;
  }
  EXPECT_LT(num_same, 20);
}

TEST(SamplerTest, RepetitionPenaltyWeakensWhatWasSaid) {
  SamplerParams params;
  params.repetition_penalty = 2.0f;
  EXPECT_EQ(Choose({4, 3}, params, 0, {}, {0}).token, 1);       // 4 / 2 < 3
  EXPECT_EQ(Choose({4, 3}, params, 0, {0}, {}).token, 1);       // the prompt counts
  EXPECT_EQ(Choose({-1, -1.5f}, params, 0, {}, {0}).token, 1);  // -1 · 2 < -1.5
}

TEST(SamplerTest, PresenceCountsOnceAndFrequencyEveryTime) {
  SamplerParams presence;
  presence.presence_penalty = 1.0f;
  EXPECT_EQ(Choose({2.5f, 2}, presence, 0, {}, {0, 0, 0}).token, 1);
  EXPECT_EQ(Choose({3.5f, 2}, presence, 0, {}, {0, 0, 0}).token, 0);
  EXPECT_EQ(Choose({2.5f, 2}, presence, 0, {0}, {}).token, 0) << "the prompt does not count";
  SamplerParams frequency;
  frequency.frequency_penalty = 1.0f;
  EXPECT_EQ(Choose({3.5f, 2}, frequency, 0, {}, {0, 0, 0}).token, 1);
}

TEST(SamplerTest, BiasAndBans) {
  SamplerParams params;
  params.logit_bias = {{0, 10.0f}};
  EXPECT_EQ(Choose({1, 5}, params).token, 0);
  params.banned = {0};
  EXPECT_EQ(Choose({1, 5}, params).token, 1);
}

TEST(SamplerTest, LogprobsAreOfTheRawLogitsBestFirst) {
  SamplerParams params;
  params.num_top_logprobs = 2;
  params.logit_bias = {{0, 100.0f}};
  const TokenChoice choice = Choose({0, 2, 1}, params);
  const double sum = 1 + std::exp(2.0) + std::exp(1.0);
  EXPECT_EQ(choice.token, 0);
  EXPECT_NEAR(choice.logprob, -std::log(sum), 1e-6);
  ASSERT_EQ(choice.top_logprobs.size(), 2u);
  EXPECT_EQ(choice.top_logprobs[0].first, 1);
  EXPECT_NEAR(choice.top_logprobs[0].second, 2 - std::log(sum), 1e-6);
  EXPECT_EQ(choice.top_logprobs[1].first, 2);
}

}  // namespace
}  // namespace conclave::model
