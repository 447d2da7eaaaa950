// Goal: what exactness_test proves on the demo holds for every decoder family and for what its
// config may ask for: one expert per token, a residual FFN, eight experts, grouped queries.
// Method: synthetic checkpoints of some MB, random prompts of tokens and pictures, greedy; every
// configuration of a covering set must give the logits of the first one byte for byte.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <random>

#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/synth.h"
#include "conclave/testing/temp_folder.h"
#include "conclave/text/prompt_template.h"
#include "exactness.h"

namespace conclave {
namespace {

using testing::Config;
using testing::Served;

struct Family {
  const char* name;
  const char* like;
  checkpoint::SynthVariant variant;
};

constexpr checkpoint::SynthVariant Variant(int32_t num_experts, int32_t top_k, int32_t num_kv_heads,
                                           bool use_residual) {
  checkpoint::SynthVariant variant;
  variant.num_experts = num_experts;
  variant.top_k = top_k;
  variant.num_kv_heads = num_kv_heads;
  variant.use_residual = use_residual;
  return variant;
}

constexpr Family kFamilies[] = {
    {"StablelmTop1", "tiny", Variant(0, 1, 0, false)},
    {"StablelmResidual", "tiny", Variant(0, 0, 0, true)},
    {"Qwen", "tiny-qwen", {}},
    {"PhiEightExperts", "tiny-phi", Variant(8, 0, 0, false)},
    {"Openchat", "tiny-openchat", {}},
    {"LlamaResidualTop1", "tiny-llama", Variant(4, 1, 0, true)},
    {"Qwen15", "tiny-qwen1.5", {}},
    {"Minicpm", "tiny-minicpm", {}},
};

constexpr int kRequests = 8;
constexpr int32_t kTokens = 6;
constexpr int kRequestsInQ8 = 4;
constexpr int32_t kTokensInQ8 = 4;
// The scalar path is for reference, not for speed.
constexpr int kRequestsOnScalar = 3;
constexpr int32_t kTokensOnScalar = 2;

// Prompts of 3 to 90 tokens, every other one with a picture of noise.
std::vector<frontend::SequenceRequest> Requests(cli::Assembly& model, int count,
                                                int32_t num_tokens) {
  std::mt19937_64 random(17);
  const auto size = static_cast<size_t>(model.desc().vision.image_size);
  std::uniform_real_distribution<float> pixel(-1.5f, 1.5f);
  std::vector<frontend::SequenceRequest> requests;
  for (int r = 0; r < count; ++r) {
    frontend::SequenceRequest request;
    const auto length = static_cast<int>(3 + random() % 88);
    for (int i = 0; i < length; ++i) {
      request.tokens.push_back(
          static_cast<int32_t>(random() % static_cast<uint64_t>(model.tokenizer->size())));
    }
    if (r % 2 == 0) {
      request.tokens[static_cast<size_t>(length) / 2] = text::kImageToken;
      std::vector<float> pixels(3 * size * size);
      std::generate(pixels.begin(), pixels.end(), [&] { return pixel(random); });
      auto features = std::make_shared<frontend::ImageFeatures>();
      features->digest = static_cast<uint64_t>(r) + 1;
      features->num_rows = model.tower->num_features();
      model.tower->Encode(pixels, features->rows, nullptr);
      request.images.push_back(std::move(features));
    }
    request.max_tokens = num_tokens;
    requests.push_back(std::move(request));
  }
  return requests;
}

class FamilyExactnessTest : public ::testing::TestWithParam<Family> {
 protected:
  void SetUp() override {
    ThreadPool pool(2);
    checkpoint::SynthOptions options;
    options.like = GetParam().like;
    options.variant = GetParam().variant;
    options.folder = temp_.path() + "/model";
    const absl::Status status = checkpoint::Synthesize(options, pool);
    ASSERT_TRUE(status.ok()) << status;
  }

  Served Serve(DType dtype, kernels::Isa isa, const Config& config, bool again, int count,
               int32_t num_tokens) const {
    return testing::Serve(
        {temp_.path() + "/model", dtype, isa, config, again},
        [count, num_tokens](cli::Assembly& model) { return Requests(model, count, num_tokens); });
  }

  testing::TempFolder temp_;
};

TEST_P(FamilyExactnessTest, LogitsDoNotDependOnHowTheyAreServed) {
  const kernels::Isa isa = kernels::SupportedIsas().back();
  int total = 0;
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kQ8}) {
    // q8 goes the ways of bf16 but for its products.
    const int count = dtype == DType::kQ8 ? kRequestsInQ8 : kRequests;
    const int32_t num_tokens = dtype == DType::kQ8 ? kTokensInQ8 : kTokens;
    const Served expected = Serve(dtype, isa, {}, false, count, num_tokens);
    ASSERT_EQ(expected.logits.size(), static_cast<size_t>(count));
    // Random weights still tell tokens apart: equal rows would be equal for no reason.
    ASSERT_NE(expected.logits[0][0], expected.logits[1][0]);
    total += expected.num_tokens;
    for (const Config& config : testing::CoveringConfigs()) {
      const bool again = config[3] == 1;
      const Served found = Serve(dtype, isa, config, again, count, num_tokens);
      total += found.num_tokens;
      testing::ExpectSame(expected, found,
                          std::string(NameOf(dtype)) + ", " + testing::Describe(config));
      if (HasFatalFailure()) {
        return;
      }
    }
  }
  RecordProperty("tokens", total);
  std::printf("%s: %d generated tokens with equal logits\n", GetParam().name, total);
}

TEST_P(FamilyExactnessTest, EveryPathGivesTheSameLogits) {
  const std::vector<kernels::Isa> paths = testing::PathsToServe();
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kQ8}) {
    const Served expected =
        Serve(dtype, paths.front(), {0, 1, 0, 0, 0}, false, kRequestsOnScalar, kTokensOnScalar);
    for (const kernels::Isa isa : paths) {
      testing::ExpectSame(
          expected, Serve(dtype, isa, {1, 1, 0, 1, 1}, false, kRequestsOnScalar, kTokensOnScalar),
          std::string(kernels::NameOf(isa)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyExactnessTest, ::testing::ValuesIn(kFamilies),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace conclave
