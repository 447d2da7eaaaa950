// Goal: the figures of `conclave bench` are right: bytes and operations of a step, shares of the
// bounds, medians and spreads, and both forms of the report.
// Method: models and rounds small enough to be counted by hand; for the bytes also the demo's
// loaded weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "assembly.h"
#include "bench_cost.h"
#include "bench_report.h"
#include "conclave/base/thread_pool.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;

// Two layers of width 64, the second with four gated experts, of which a row takes two.
checkpoint::ModelDesc SmallModel() {
  checkpoint::ModelDesc desc;
  desc.hidden_dim = 64;
  desc.num_layers = 2;
  desc.vocab_rows = 128;
  desc.max_positions = 100;
  desc.norm = {checkpoint::NormKind::kRmsNorm, 1e-5f, false};
  desc.attention.num_heads = 4;
  desc.attention.num_kv_heads = 2;
  desc.attention.head_dim = 16;
  desc.ffn = {.is_gated = true, .has_bias = false, .inner_dim = 192};
  desc.moe.layers = {{1, 4}};
  desc.moe.top_k = 2;
  desc.moe.io_dim = 64;
  return desc;
}

constexpr double kAttentionWeights = 128 * 64 + 64 * 64;  // q | k | v, and the output
constexpr double kFfnWeights = 3 * 64 * 192;
constexpr double kGateWeights = 4 * 64;
constexpr double kHeadWeights = 128 * 64;

TEST(BenchCostTest, OperationsAreTwoPerMultiplyAdd) {
  const CostModel cost(SmallModel(), DType::kBf16);
  // Layer 0 has a network, layer 1 a gate and two experts.
  const double row = 2 * (2 * kAttentionWeights + kFfnWeights + kGateWeights + 2 * kFfnWeights);
  EXPECT_EQ(cost.operations_per_row(), row);
  // q · k and p · v over 64 elements of all heads, in two layers.
  const double attention = 2 * 2 * 2 * 64;
  EXPECT_EQ(cost.Of({.num_rows = 3, .num_logit_rows = 2, .positions_attended = 10}).operations,
            3 * row + 2 * 2 * kHeadWeights + 10 * attention);
}

TEST(BenchCostTest, BytesCountWhatIsUsedOnceAndOnlyUsedExperts) {
  const CostModel cost(SmallModel(), DType::kBf16);
  const double norms = 4 * 64 * 4;  // two of each layer, in f32
  EXPECT_EQ(cost.shared_bytes(),
            2 * (2 * kAttentionWeights + kFfnWeights) + 4 * kGateWeights + norms);
  EXPECT_EQ(cost.expert_bytes(), 2 * kFfnWeights);
  EXPECT_EQ(cost.head_bytes(), 2 * kHeadWeights + 64 * 4);
  // K and V of two heads of 16, in bf16, in two layers.
  EXPECT_EQ(cost.kv_bytes_per_position(), 2 * 2 * 16 * 2 * 2);
  const StepWork work{.num_rows = 8,
                      .num_logit_rows = 8,
                      .positions_attended = 80,
                      .positions_read = 80,
                      .experts_used = 3};
  EXPECT_EQ(cost.Of(work).bytes, cost.shared_bytes() + cost.head_bytes() + 3 * cost.expert_bytes() +
                                     80 * cost.kv_bytes_per_position() + 8 * 64 * 2);
  // A chunk of a prompt that wants no logits does not read the head.
  EXPECT_EQ(cost.Of({}).bytes, cost.shared_bytes());
}

TEST(BenchCostTest, ModesDifferInBytesAlone) {
  const CostModel bf16(SmallModel(), DType::kBf16);
  const CostModel f32(SmallModel(), DType::kF32);
  EXPECT_EQ(f32.expert_bytes(), 2 * bf16.expert_bytes());
  EXPECT_EQ(f32.kv_bytes_per_position(), 2 * bf16.kv_bytes_per_position());
  EXPECT_EQ(f32.operations_per_row(), bf16.operations_per_row());
}

TEST(BenchCostTest, ASlidingWindowLimitsWhatARowSees) {
  checkpoint::ModelDesc desc = SmallModel();
  EXPECT_EQ(CostModel(desc, DType::kBf16).SeenBy(99), 100);
  desc.attention.sliding_window = 10;
  EXPECT_EQ(CostModel(desc, DType::kBf16).SeenBy(5), 6);
  EXPECT_EQ(CostModel(desc, DType::kBf16).SeenBy(99), 11);
}

TEST(BenchCostTest, ResidualExpertsAndBiasesCount) {
  checkpoint::ModelDesc desc = SmallModel();
  const CostModel plain(desc, DType::kBf16);
  desc.moe.use_residual = true;
  desc.attention.has_qkv_bias = true;
  const CostModel more(desc, DType::kBf16);
  EXPECT_EQ(more.shared_bytes() - plain.shared_bytes(),
            2 * kFfnWeights + 4 * 2 * (64 + 1) + 2 * 4 * 128);
  EXPECT_EQ(more.operations_per_row() - plain.operations_per_row(), 2 * kFfnWeights + 2 * 2 * 64);
}

TEST(BenchCostTest, ClipLargeIsKnownToTake372GigaOperations) {
  checkpoint::ModelDesc desc = SmallModel();
  EXPECT_EQ(ImageOperations(desc), 0);
  desc.hidden_dim = 2048;
  desc.vision.kind = checkpoint::TowerKind::kClip;
  desc.vision.image_size = 336;
  desc.vision.patch_size = 14;
  desc.vision.hidden_dim = 1024;
  desc.vision.inner_dim = 4096;
  desc.vision.num_layers_run = 23;
  desc.projector = {checkpoint::ProjectorKind::kMlpGelu, 2, false};
  desc.splice.tokens_per_image = 576;
  EXPECT_NEAR(ImageOperations(desc) * 1e-9, 372, 2);
}

// The counted bytes are those of the weights that were loaded, to the byte.
TEST(BenchCostTest, TheDemosBytesAreThoseOfItsLoadedWeights) {
  ThreadPool pool(2);
  auto model = Assembly::Open(CONCLAVE_SOURCE_DIR "/models/demo", "");
  ASSERT_TRUE(model.ok()) << model.status();
  AssemblyOptions load;
  load.compute = kernels::Context(kernels::SupportedIsas().back(), pool);
  load.max_rows = 1;
  load.max_logit_rows = 1;
  ASSERT_TRUE((*model)->Load(load, nullptr).ok());
  const checkpoint::ModelDesc& desc = (*model)->desc();
  const CostModel cost(desc, DType::kBf16);
  EXPECT_EQ(cost.expert_bytes(), static_cast<double>((*model)->workers[0]->expert_bytes()));
  // weight_bytes holds the whole embedding, of which a step reads its rows alone, and no norms.
  const double embedding = 2.0 * desc.vocab_rows * desc.hidden_dim;
  const double norm = 4.0 * desc.hidden_dim * (desc.norm.has_bias ? 2 : 1);
  EXPECT_EQ(cost.shared_bytes() + cost.head_bytes() - (2 * desc.num_layers + 1) * norm,
            static_cast<double>((*model)->decoder->weight_bytes()) - embedding);
  EXPECT_EQ(cost.kv_bytes_per_position() * kernels::kKvBlockTokens,
            static_cast<double>(
                model::KvPool::BlockBytes((*model)->decoder->kv_layout(), desc.num_layers)));
}

TEST(BenchSpreadTest, MedianOfOddAndEvenCounts) {
  EXPECT_EQ(SpreadOf({3, 1, 2}).median, 2);
  EXPECT_EQ(SpreadOf({4, 1, 2, 3}).median, 2.5);
  EXPECT_EQ(SpreadOf({3, 1, 2}).min, 1);
  EXPECT_EQ(SpreadOf({3, 1, 2}).max, 3);
  EXPECT_EQ(SpreadOf({}).median, 0);
}

TEST(BenchShareTest, IsTheLeastTimeOverTheTimeTaken) {
  // Its bytes take a second at least, its operations half of one.
  const Round round{.seconds = 2, .bytes = 10, .operations = 50, .read = 10, .peak = 100};
  EXPECT_EQ(ShareOf(round, Against::kMemory), 0.5);
  EXPECT_EQ(ShareOf(round, Against::kArithmetic), 0.25);
  EXPECT_EQ(ShareOf(round, Against::kBoth), 0.5);
  EXPECT_EQ(ShareOf(round, Against::kNothing), 0);
  EXPECT_EQ(LimitOf(round), Limit::kMemory);
  Round computing = round;
  computing.operations = 150;
  EXPECT_EQ(ShareOf(computing, Against::kBoth), 0.75);
  EXPECT_EQ(LimitOf(computing), Limit::kArithmetic);
}

TEST(BenchShareTest, IsNoneWithoutABoundOrATime) {
  EXPECT_EQ(ShareOf({.seconds = 1, .bytes = 10, .operations = 10}, Against::kBoth), 0);
  EXPECT_EQ(ShareOf({.seconds = 0, .bytes = 10, .read = 1}, Against::kMemory), 0);
}

TEST(BenchShareTest, ABoundThatWasDisturbedOnOneSideIsTheOtherSides) {
  const BoundsSample before{10, {.f32_fma = 1.0, .bf16_dot = std::nullopt, .int8_dot = 5.0}};
  const BoundsSample after{8, {.f32_fma = 3.0, .bf16_dot = std::nullopt, .int8_dot = 4.0}};
  const BoundsSample larger = Larger(before, after);
  EXPECT_EQ(larger.read, 10);
  EXPECT_EQ(larger.peaks.f32_fma, 3.0);
  EXPECT_EQ(larger.peaks.int8_dot, 5.0);
  EXPECT_FALSE(larger.peaks.bf16_dot.has_value());
}

BenchReport SmallReport() {
  BenchReport report;
  report.bench = "decode";
  report.model = "a \"model\"";
  report.model_type = "kind";
  report.isa = kernels::Isa::kAvx2;
  report.threads = 2;
  report.repeat = 2;
  report.cpu_model = "Some CPU";
  report.version = "1.2.3";
  report.compiler = "cc 1";
  report.build_flags = "Release -O3";
  report.probe_bytes = 1000;
  report.bounds = {{10e9, {.f32_fma = 1e12, .bf16_dot = std::nullopt, .int8_dot = 4e12}},
                   {12e9, {.f32_fma = 1e12, .bf16_dot = std::nullopt, .int8_dot = 4e12}}};
  const Round round{.seconds = 2, .bytes = 12e9, .operations = 1e9, .read = 12e9, .peak = 1e12};
  Round slower = round;
  slower.seconds = 4;
  report.cases = {{"decode", 1, 20, 512, Against::kMemory, {round, slower}},
                  {"preprocess", 0, 0, 0, Against::kNothing, {{.seconds = 0.5}}}};
  report.extras = {{"disk_bytes", 7}};
  return report;
}

TEST(BenchReportTest, JsonHasEveryFigureWithItsSpread) {
  const auto json = boost::json::parse(ToJson(SmallReport()));
  const auto number = [&json](const char* path) {
    return json.at_pointer(path).to_number<double>();
  };
  EXPECT_EQ(json.at_pointer("/bench").as_string(), "decode");
  EXPECT_EQ(json.at_pointer("/model/name").as_string(), "a \"model\"");
  EXPECT_EQ(json.at_pointer("/run/isa").as_string(), "avx2");
  EXPECT_EQ(json.at_pointer("/run/dtype").as_string(), "bf16");
  EXPECT_EQ(json.at_pointer("/build/flags").as_string(), "Release -O3");
  EXPECT_EQ(number("/bounds/read_bytes_per_second/median"), 11e9);
  EXPECT_TRUE(json.at_pointer("/bounds/bf16_dot_operations_per_second").is_null());
  EXPECT_EQ(number("/bounds/bf16_gemm_operations_per_second/max"), 1e12);
  EXPECT_EQ(number("/cases/0/tokens_per_second/median"), 7.5);
  EXPECT_EQ(number("/cases/0/share/max"), 0.5);
  EXPECT_EQ(number("/cases/0/share/samples/1"), 0.25);
  EXPECT_EQ(json.at_pointer("/cases/0/bound").as_string(), "memory");
  EXPECT_EQ(number("/cases/1/seconds/median"), 0.5);
  EXPECT_EQ(json.at_pointer("/cases/1").as_object().count("share"), 0U);
  EXPECT_EQ(number("/extras/disk_bytes"), 7);
}

TEST(BenchReportTest, AShareWithoutABoundIsNull) {
  BenchReport report = SmallReport();
  for (Round& round : report.cases[0].rounds) {
    round.read = 0;
  }
  EXPECT_TRUE(boost::json::parse(ToJson(report)).at_pointer("/cases/0/share").is_null());
}

TEST(BenchReportTest, WithoutBoundsThereAreRatesAlone) {
  BenchReport report = SmallReport();
  report.bounds.clear();
  const auto json = boost::json::parse(ToJson(report));
  EXPECT_TRUE(json.at_pointer("/bounds/read_bytes_per_second").is_null());
  EXPECT_EQ(json.at_pointer("/cases/0/tokens_per_second/max").to_number<double>(), 10);
  EXPECT_THAT(ToText(report), HasSubstr("not measured"));
}

TEST(BenchReportTest, TextSaysConditionsBoundsAndShares) {
  const std::string text = ToText(SmallReport());
  for (const char* expected :
       {"2 threads, isa avx2, 2 rounds", "Release -O3", "11.0 (10.0 .. 12.0) GB/s",
        "no such instructions", "37.5 (25.0 .. 50.0) % of memory", "7.50 (5.00 .. 10.00)"}) {
    EXPECT_THAT(text, HasSubstr(expected));
  }
}

}  // namespace
}  // namespace conclave::cli
