// Goal: the list of tensors is exactly the original's, and the figures drawn from it are the
// published ones. Method: configs at the published sizes (spec 1.2) without weights; names and
// shapes are compared with the recording of the original classes in tests/golden/data/shapes,
// totals with spec 1.3 and 11.4.
#include "conclave/checkpoint/model_summary.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cctype>
#include <filesystem>
#include <map>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

using ::testing::HasSubstr;

// config.json alone, with the published tower known by its name.
SmallModel Stablelm4e(bool is_siglip) {
  SmallModel model;
  model.has_vision_config = false;
  model.config.Set("vocab_size", "100352");
  model.config.Set("hidden_size", "2048");
  model.config.Set("intermediate_size", "5632");
  model.config.Set("num_hidden_layers", "24");
  model.config.Set("num_attention_heads", "32");
  model.config.Set("num_key_value_heads", "32");
  model.config.Set("max_position_embeddings", "4096");
  model.config.Set("mm_image_tower", is_siglip ? "\"google/siglip-so400m-patch14-384\""
                                               : "\"openai/clip-vit-large-patch14-336\"");
  model.config.Set("mm_hidden_size", is_siglip ? "1152" : "1024");
  model.moe.Set("moe_layers_idx", "[0,2,4,6,8,10,12,14,16,18,20,22]");
  model.moe.Set("num_experts", "[4,4,4,4,4,4,4,4,4,4,4,4]");
  return model;
}

ModelSummary Of(const SmallModel& model, int32_t num_workers = 1) {
  const TemporaryFolder folder;
  WriteFile(folder / "config.json", model.ConfigText());
  const absl::StatusOr<ModelSummary> summary = Inspect(folder.path(), num_workers);
  EXPECT_TRUE(summary.ok()) << summary.status();
  return summary.ok() ? *summary : ModelSummary();
}

void ExpectRecordedShapes(const ModelDesc& desc, const std::string& file) {
  const std::string text =
      ReadFile(std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/data/shapes/" + file);
  const boost::json::value recorded = boost::json::parse(text);
  std::map<std::string, std::vector<int64_t>> wanted;
  for (const auto& member : recorded.at("shapes").as_object()) {
    wanted[std::string(std::string_view(member.key()))] =
        boost::json::value_to<std::vector<int64_t>>(member.value());
  }
  std::map<std::string, std::vector<int64_t>> listed;
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    EXPECT_TRUE(listed.emplace(tensor.name, tensor.shape).second) << tensor.name << " twice";
  }
  ASSERT_GT(wanted.size(), 700u);
  EXPECT_EQ(listed, wanted);
}

TEST(TensorListTest, PrefixesOfLayersAndExperts) {
  const TensorNames names = Of(SmallModel(Stablelm4e(false))).desc.names;
  EXPECT_EQ(LayerPrefix(names, 13), "model.layers.13.");
  EXPECT_EQ(ExpertPrefix(names, 22, 3),
            "model.layers.22.mlp.deepspeed_moe.experts.deepspeed_experts.3.");
}

TEST(ModelSummaryTest, Stablelm4e) {
  const ModelSummary summary = Of(Stablelm4e(false));
  EXPECT_FALSE(summary.has_weights);
  EXPECT_EQ(summary.num_tensors, 855);
  EXPECT_EQ(summary.parameters.total, 3'200'124'928);
  EXPECT_EQ(summary.parameters.language, 2'890'321'920);
  EXPECT_EQ(summary.parameters.activated, 2'059'849'728);
  EXPECT_EQ(summary.parameters.per_expert, 34'603'008);
  EXPECT_EQ(summary.parameters.vision, 303'507'456);
  EXPECT_EQ(summary.parameters.projector, 3'200'124'928 - 2'890'321'920 - 303'507'456);
  EXPECT_EQ(summary.bytes.total, 6'400'249'856);
  EXPECT_EQ(summary.bytes.experts, 2LL * 48 * 34'603'008);
  EXPECT_EQ(summary.bytes.embeddings, 2LL * 2 * 100'352 * 2048);
  EXPECT_EQ(summary.bytes.attention, 2LL * 24 * (4LL * 2048 * 2048 + 3 * 2048));
  EXPECT_EQ(summary.bytes.vision, 2LL * 303'507'456);
  EXPECT_EQ(summary.kv_bytes_per_token, 196'608);
  EXPECT_EQ(summary.desc.splice.tokens_per_image, 576);
}

// Spec 1.2 and 1.3: the six published checkpoints, from their configs alone.
struct Published {
  const char* name;
  int64_t total, language, activated, per_expert, dense;  // parameters
  int64_t bytes;
  int64_t kv_bytes_per_token;
  int64_t tensors;
};

void PrintTo(const Published& row, std::ostream* out) { *out << row.name; }

class PublishedTest : public ::testing::TestWithParam<Published> {
 protected:
  static std::string Config() {
    return ReadFile(std::string(CONCLAVE_SOURCE_DIR) + "/tests/golden/data/configs/" +
                    GetParam().name + ".json");
  }
};

TEST_P(PublishedTest, TotalsAreThePublishedOnes) {
  const Published& row = GetParam();
  const TemporaryFolder folder;
  std::string config = Config();
  WriteFile(folder / "config.json", config);
  const absl::StatusOr<ModelSummary> summary = Inspect(folder.path(), 4);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_EQ(summary->num_tensors, row.tensors);
  EXPECT_EQ(summary->parameters.total, row.total);
  EXPECT_EQ(summary->parameters.language, row.language);
  EXPECT_EQ(summary->parameters.activated, row.activated);
  EXPECT_EQ(summary->parameters.per_expert, row.per_expert);
  EXPECT_EQ(summary->bytes.total, row.bytes);
  EXPECT_EQ(summary->kv_bytes_per_token, row.kv_bytes_per_token);
  ASSERT_EQ(summary->workers.size(), 4u);
  const auto num_experts = static_cast<int64_t>(4 * summary->desc.moe.layers.size());
  for (const WorkerShare& share : summary->workers) {
    EXPECT_EQ(share.num_experts, num_experts / 4);
    EXPECT_EQ(share.bytes, num_experts / 4 * row.per_expert * (row.bytes / row.total));
  }
  // The dense parent: the same config without experts.
  config.replace(config.find("moe_llava_"), 10, "llava_");
  WriteFile(folder / "config.json", config);
  const absl::StatusOr<ModelSummary> dense = Inspect(folder.path(), 4);
  ASSERT_TRUE(dense.ok()) << dense.status();
  EXPECT_EQ(dense->parameters.language, row.dense);
}

INSTANTIATE_TEST_SUITE_P(
    Spec13, PublishedTest,
    ::testing::Values(
        Published{"MoE-LLaVA-StableLM-1.6B-4e", 3'200'124'928, 2'890'321'920, 2'059'849'728,
                  34'603'008, 1'644'515'328, 6'400'249'856, 196'608, 855},
        Published{"MoE-LLaVA-StableLM-1.6B-4e-384", 3'325'105'216, 2'890'321'920, 2'059'849'728,
                  34'603'008, 1'644'515'328, 6'650'210'432, 196'608, 912},
        Published{"MoE-LLaVA-Qwen-1.8B-4e", 3'364'126'720, 3'054'323'712, 2'242'725'888, 33'816'576,
                  1'836'828'672, 13'456'506'880, 196'608, 710},
        Published{"MoE-LLaVA-Phi2-2.7B-4e", 5'609'680'896, 5'296'993'280, 3'618'862'080, 52'441'600,
                  2'779'632'640, 11'219'361'792, 327'680, 1055},
        Published{"MoE-LLaVA-Phi2-2.7B-4e-384", 5'734'726'720, 5'296'993'280, 3'618'862'080,
                  52'441'600, 2'779'632'640, 11'469'453'440, 327'680, 1112},
        Published{"MoE-LLaVA-OpenChat-7B-4e", 16'022'214'656, 15'697'727'488, 10'060'582'912,
                  176'160'768, 7'241'748'480, 32'044'429'312, 131'072, 846}),
    [](const ::testing::TestParamInfo<Published>& row) {
      std::string name = row.param.name;
      std::erase_if(name, [](unsigned char c) { return std::isalnum(c) == 0; });
      return name;
    });

// The files of recorded shapes, by the configs of the same names.
TEST_P(PublishedTest, ShapesAreTheOriginals) {
  const TemporaryFolder folder;
  WriteFile(folder / "config.json", Config());
  const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder.path());
  ASSERT_TRUE(desc.ok()) << desc.status();
  ExpectRecordedShapes(*desc, std::string(GetParam().name) + ".json");
}

TEST(TensorListTest, TypesThatExistInCodeAloneAreTheOriginals) {
  for (const std::string name : {"code-only-MiniCPM-2B", "code-only-Qwen1.5-1.8B"}) {
    const TemporaryFolder folder;
    WriteFile(folder / "config.json", ReadFile(std::string(CONCLAVE_SOURCE_DIR) +
                                               "/tests/golden/data/configs/" + name + ".json"));
    const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder.path());
    ASSERT_TRUE(desc.ok()) << desc.status();
    ExpectRecordedShapes(*desc, name + ".json");
  }
}

TEST(ModelSummaryTest, ResidualFfnWorksForEveryToken) {
  SmallModel model = Stablelm4e(false);
  model.moe.Set("use_residual", "true");
  const ModelSummary summary = Of(model);
  EXPECT_EQ(summary.parameters.activated, 2'059'849'728 + 12LL * (34'603'008 + 2 * 2048 + 2));
  EXPECT_THAT(ToText(summary), HasSubstr("beside an FFN for every token"));
}

TEST(ModelSummaryTest, DenseModelOfTheSameSizes) {
  SmallModel model = Stablelm4e(false);
  model.config.Set("model_type", "\"llava_stablelm\"");
  model.has_moe = false;
  const ModelSummary summary = Of(model, 4);
  EXPECT_EQ(summary.parameters.language, 1'644'515'328);
  EXPECT_EQ(summary.parameters.activated, summary.parameters.language);
  EXPECT_EQ(summary.parameters.per_expert, 0);
  EXPECT_TRUE(summary.workers.empty());
}

// 12 layers of 4 experts over 3 workers: the rotation by layer gives each 16.
TEST(ModelSummaryTest, ExpertsSpreadOverWorkersWithoutRemainder) {
  const ModelSummary summary = Of(Stablelm4e(false), 3);
  ASSERT_EQ(summary.workers.size(), 3u);
  int64_t bytes = 0;
  for (const WorkerShare& share : summary.workers) {
    EXPECT_EQ(share.num_experts, 16);
    bytes += share.bytes;
  }
  EXPECT_EQ(bytes, summary.bytes.experts);
  EXPECT_EQ(summary.frontend_bytes + bytes, summary.bytes.total);
}

TEST(ModelSummaryTest, MoreWorkersThanExpertsLeavesSomeIdle) {
  SmallModel model;  // one MoE layer of two experts
  model.config.Set("mm_image_tower", "null");
  model.has_vision_config = false;
  const ModelSummary summary = Of(model, 5);
  ASSERT_EQ(summary.workers.size(), 5u);
  int32_t experts = 0;
  for (const WorkerShare& share : summary.workers) {
    experts += share.num_experts;
  }
  EXPECT_EQ(experts, 2);
}

TEST(ModelSummaryTest, Float32ConfigDoublesTheBytes) {
  SmallModel model = Stablelm4e(false);
  model.config.Set("torch_dtype", "\"float32\"");
  EXPECT_EQ(Of(model).bytes.total, 2 * 6'400'249'856);
}

TEST(ModelSummaryTest, StoredWeightsCountWithTheirOwnDtypes) {
  const TemporaryFolder folder;
  SmallModel().Write(folder.path());
  const absl::StatusOr<ModelSummary> summary = Inspect(folder.path(), 1);
  ASSERT_TRUE(summary.ok()) << summary.status();
  EXPECT_TRUE(summary->has_weights);
  int64_t bytes = 0;
  for (const TensorValues& tensor : SmallModel::Tensors(folder.path())) {
    bytes += tensor.spec.size_bytes();
  }
  EXPECT_EQ(summary->bytes.total, bytes);
  EXPECT_EQ(summary->bytes.total, 2 * summary->parameters.total + 2 * 2 * 16) << "the gate is f32";
}

TEST(ModelSummaryTest, LoadedBytesFollowTheDtypeOfMatrices) {
  const ModelDesc desc = Of(Stablelm4e(false)).desc;
  const int64_t bf16 = LoadedBytes(desc, DType::kBf16);
  const int64_t f32 = LoadedBytes(desc, DType::kF32);
  // One of 24 tower layers and the last norm are not loaded; vectors are f32 in both.
  int64_t loaded = 0;
  int64_t unloaded = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    (tensor.is_needed ? loaded : unloaded) += tensor.num_elements();
  }
  EXPECT_EQ(unloaded, 4 * (1024 * 1024 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 3 * 2 * 1024);
  EXPECT_EQ(f32, 4 * loaded);
  EXPECT_GT(bf16, 2 * loaded);
  EXPECT_LT(bf16, 2 * loaded + 10'000'000);
  // int8 for the linears of decoder and experts, 2 bytes for embedding, tower and projector.
  int64_t quantized = 0;
  int64_t experts = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    const bool is_wide = tensor.part == TensorPart::kEmbedding ||
                         tensor.part == TensorPart::kTower || tensor.part == TensorPart::kProjector;
    quantized += tensor.is_needed && !is_wide ? tensor.num_elements() : 0;
    experts += tensor.part == TensorPart::kExpert ? tensor.num_elements() : 0;
  }
  const int64_t q8 = LoadedBytes(desc, DType::kQ8);
  EXPECT_NEAR(
      static_cast<double>(q8),
      1.0625 * static_cast<double>(quantized) + 2.0 * static_cast<double>(loaded - quantized), 1e7);
  EXPECT_EQ(q8 - LoadedBytes(desc, DType::kQ8, false), experts / 32 * 34);
}

TEST(ModelSummaryTest, AHeadThatIsTheEmbeddingIsLoadedTwice) {
  ModelDesc desc = Of(Stablelm4e(false)).desc;
  ASSERT_FALSE(desc.tie_embeddings);
  const int64_t apart = LoadedBytes(desc, DType::kQ8);
  desc.tie_embeddings = true;
  EXPECT_EQ(LoadedBytes(desc, DType::kQ8), apart);
}

TEST(ModelSummaryTest, JsonHasTheKeysOfTheContract) {
  const std::string text = ToJson(Of(Stablelm4e(false), 2));
  const boost::json::value json = boost::json::parse(text);
  EXPECT_EQ(json.at("model_type").as_string(), "moe_llava_stablelm");
  EXPECT_EQ(json.at("weights").as_string(), "absent");
  EXPECT_EQ(json.at("parameters").at("total").to_number<int64_t>(), 3'200'124'928);
  for (const char* key : {"language", "activated", "vision", "projector", "per_expert"}) {
    EXPECT_GT(json.at("parameters").at(key).to_number<int64_t>(), 0) << key;
  }
  EXPECT_EQ(json.at("bytes").at("total").to_number<int64_t>(), 6'400'249'856);
  for (const char* key : {"experts", "attention", "embeddings", "vision"}) {
    EXPECT_GT(json.at("bytes").at(key).to_number<int64_t>(), 0) << key;
  }
  EXPECT_EQ(json.at("moe").at("layers").as_array().size(), 12u);
  EXPECT_EQ(json.at("moe").at("experts").as_array()[11].to_number<int>(), 4);
  EXPECT_EQ(json.at("moe").at("top_k").to_number<int>(), 2);
  EXPECT_EQ(json.at("kv_bytes_per_token").to_number<int>(), 196'608);
  EXPECT_TRUE(json.at("tokenizer").is_null()) << "no tokenizer file in the folder";
  EXPECT_EQ(json.at("template").as_string(), "stablelm");
  EXPECT_EQ(json.at("image").at("size").to_number<int>(), 336);
  EXPECT_EQ(json.at("image").at("patches").to_number<int>(), 576);
  EXPECT_EQ(json.at("image").at("tokens").to_number<int>(), 576);
  EXPECT_EQ(json.at("workers").as_array().size(), 2u);
  EXPECT_EQ(json.at("warnings").as_array().size(), 1u);
}

TEST(ModelSummaryTest, TextShowsTheSameFigures) {
  const std::string text = ToText(Of(Stablelm4e(false), 4));
  for (const char* word :
       {"24 layers of 2048, sequential; 32 heads of 64; FFN 5632, gated SiLU; LayerNorm",
        "mlp2x_gelu", "3,200,124,928", "2,890,321,920", "2,059,849,728", "34,603,008", "6.400 GB",
        "855 tensors", "196,608", "336 px, 576 patches, 576 tokens", "worker 3", "absent",
        "top 2"}) {
    EXPECT_THAT(text, HasSubstr(word));
  }
}

TEST(ModelSummaryTest, BrokenWeightsAreAnErrorAndNotAbsent) {
  const TemporaryFolder folder;
  SmallModel().Write(folder.path());
  WriteFile(folder / "model.safetensors", "1234");
  EXPECT_EQ(ReasonOf(Inspect(folder.path(), 1).status()), "safetensors_truncated");
}

}  // namespace
}  // namespace conclave::checkpoint
