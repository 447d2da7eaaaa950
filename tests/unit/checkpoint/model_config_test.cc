// Goal: every config value that changes what is computed arrives in the ModelDesc.
// Method: the configs of a small model, one value changed at a time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/tensor_list.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

namespace fs = std::filesystem;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class ModelConfigTest : public ::testing::Test {
 protected:
  ModelDesc Read(const OpenOptions& options = {}) {
    model_.WriteConfigs(folder_.path());
    const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder_.path(), options);
    EXPECT_TRUE(desc.ok()) << desc.status();
    return desc.ok() ? *desc : ModelDesc();
  }

  // A folder with the model's tower in it, as the original's hub folders are: wrapped in
  // "vision_config".
  void WriteTower(const fs::path& path) {
    fs::create_directories(path);
    WriteFile(path / "config.json",
              "{\"model_type\":\"clip\",\"vision_config\":" + model_.vision.Text() + "}");
    WriteFile(path / "preprocessor_config.json", model_.preprocessor.Text());
  }

  // The same model with a SigLIP tower of 3 x 3 patches and an ignored border.
  void UseSiglip() {
    model_.config.Set("mm_image_tower", "\"google/siglip-small-patch14-48\"");
    model_.vision.Set("model_type", "\"siglip_vision_model\"");
    model_.vision.Set("image_size", "48");
    model_.vision.Remove("hidden_act");
    model_.vision.Remove("layer_norm_eps");
    model_.preprocessor.Set("size", "{\"height\": 48, \"width\": 48}");
    model_.preprocessor.Remove("crop_size");
    model_.preprocessor.Set("image_mean", "[0.5, 0.5, 0.5]");
  }

  TemporaryFolder folder_;
  SmallModel model_;
};

TEST_F(ModelConfigTest, DecoderOfTheStablelmType) {
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.model_type, "moe_llava_stablelm");
  EXPECT_EQ(desc.served_name, fs::path(folder_.path()).filename());
  EXPECT_EQ(desc.hidden_dim, 16);
  EXPECT_EQ(desc.num_layers, 2);
  EXPECT_EQ(desc.mixers.size(), 2u);
  EXPECT_EQ(desc.vocab_rows, 24);
  EXPECT_EQ(desc.max_positions, 64);
  EXPECT_EQ(desc.topology, BlockTopology::kSequential);
  EXPECT_EQ(desc.norm.kind, NormKind::kLayerNorm);
  EXPECT_FLOAT_EQ(desc.norm.eps, 1e-5f);
  EXPECT_EQ(desc.attention.head_dim, 8);
  EXPECT_TRUE(desc.attention.has_qkv_bias);
  EXPECT_FALSE(desc.attention.has_output_bias);
  EXPECT_EQ(desc.attention.rope.rotary_dim, 2);
  EXPECT_EQ(desc.attention.rope.theta, 10000.0f);
  EXPECT_EQ(desc.ffn.inner_dim, 12);
  EXPECT_EQ(desc.bos_token, 17);
  EXPECT_EQ(desc.eos_token, 17);
  EXPECT_EQ(desc.prompt_template, "stablelm");
  EXPECT_EQ(desc.tokenizer.kind, TokenizerKind::kTiktoken);
  EXPECT_EQ(desc.tokenizer.file, "arcade100k.tiktoken");
  EXPECT_THAT(desc.warnings, IsEmpty());
}

TEST_F(ModelConfigTest, KvHeadsDefaultToHeads) {
  model_.config.Remove("num_key_value_heads");
  EXPECT_EQ(Read().attention.num_kv_heads, 2);
  model_.config.Set("num_key_value_heads", "null");
  EXPECT_EQ(Read().attention.num_kv_heads, 2);
  model_.config.Set("num_key_value_heads", "1");
  EXPECT_EQ(Read().attention.num_kv_heads, 1);
}

TEST_F(ModelConfigTest, TiedEmbeddingsHaveNoHeadTensor) {
  model_.config.Set("tie_word_embeddings", "true");
  const ModelDesc desc = Read();
  EXPECT_TRUE(desc.tie_embeddings);
  EXPECT_EQ(desc.names.lm_head, desc.names.embed);
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    EXPECT_NE(tensor.name, "lm_head.weight");
  }
}

TEST_F(ModelConfigTest, EosFromGenerationConfigWhenConfigHasNone) {
  model_.config.Set("eos_token_id", "null");
  model_.config.Remove("bos_token_id");
  WriteFile(folder_ / "generation_config.json", "{\"eos_token_id\": [5, 6]}");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.eos_token, 5);
  EXPECT_EQ(desc.bos_token, -1);
}

TEST_F(ModelConfigTest, ModelTypeFromArchitecturesWhenAbsent) {
  model_.config.Remove("model_type");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.model_type, "moe_llava_stablelm");
  EXPECT_THAT(desc.warnings, Contains(HasSubstr("model_type")));
}

TEST_F(ModelConfigTest, DenseTypeHasNoExperts) {
  model_.config.Set("model_type", "\"llava_stablelm\"");
  model_.has_moe = false;
  EXPECT_TRUE(Read().moe.layers.empty());
  model_.has_moe = true;
  const ModelDesc desc = Read();
  EXPECT_TRUE(desc.moe.layers.empty());
  EXPECT_THAT(desc.warnings, Contains(HasSubstr("moe: ignored")));
}

TEST_F(ModelConfigTest, MoeDictionary) {
  const ModelDesc desc = Read();
  ASSERT_EQ(desc.moe.layers.size(), 1u);
  EXPECT_EQ(desc.moe.layers[0].num_experts, 2);
  EXPECT_EQ(desc.moe.top_k, 2);
  EXPECT_TRUE(desc.moe.is_renormalized);
  EXPECT_EQ(desc.moe.io_dim, 16);
  EXPECT_EQ(desc.FindMoe(1), nullptr);
}

TEST_F(ModelConfigTest, TopOneIsNotRenormalised) {
  model_.moe.Set("top_k_experts", "1");
  EXPECT_FALSE(Read().moe.is_renormalized);
}

// num_experts[i] belongs to moe_layers_idx[i] as listed, in whatever order.
TEST_F(ModelConfigTest, UnequalExpertsFollowTheirLayers) {
  model_.moe.Set("moe_layers_idx", "[1, 0]");
  model_.moe.Set("num_experts", "[3, 5]");
  const ModelDesc desc = Read();
  ASSERT_EQ(desc.moe.layers.size(), 2u);
  EXPECT_EQ(desc.FindMoe(0)->num_experts, 5);
  EXPECT_EQ(desc.FindMoe(1)->num_experts, 3);
  EXPECT_EQ(desc.moe.layers[0].layer, 0);
}

TEST_F(ModelConfigTest, OneNumberOfExpertsIsForEveryLayer) {
  model_.moe.Set("moe_layers_idx", "[0, 1]");
  model_.moe.Set("num_experts", "4");
  EXPECT_EQ(Read().FindMoe(1)->num_experts, 4);
}

TEST_F(ModelConfigTest, LayersFollowTheModeOnlyWithoutAList) {
  model_.moe.Set("moe_mode", "\"second_half\"");
  EXPECT_EQ(Read().moe.layers[0].layer, 0) << "the list is authoritative";
  model_.moe.Set("moe_layers_idx", "null");
  const ModelDesc desc = Read();
  ASSERT_EQ(desc.moe.layers.size(), 1u);
  EXPECT_EQ(desc.moe.layers[0].layer, 1);
  EXPECT_THAT(desc.warnings, Contains(HasSubstr("moe_mode")));
}

TEST_F(ModelConfigTest, CapacityAtWhichTheOriginalDropsIsAWarning) {
  model_.moe.Set("num_experts", "[4]");
  model_.moe.Set("eval_capacity_factor", "1.5");
  EXPECT_THAT(Read().warnings, Contains(HasSubstr("eval_capacity_factor")));
  model_.moe.Set("eval_capacity_factor", "2.0");
  EXPECT_THAT(Read().warnings, IsEmpty());
}

TEST_F(ModelConfigTest, ClipTower) {
  const VisionSpec vision = Read().vision;
  EXPECT_EQ(vision.kind, TowerKind::kClip);
  EXPECT_EQ(vision.num_patches(), 4);
  EXPECT_EQ(vision.num_positions(), 5);
  EXPECT_EQ(vision.num_features(), 4);
  EXPECT_EQ(vision.num_layers_run, 2);
  EXPECT_TRUE(vision.has_class_token && vision.has_pre_norm && !vision.has_patch_bias);
  EXPECT_EQ(vision.activation, ActivationKind::kQuickGelu);
  EXPECT_EQ(vision.fit, ImageFit::kPad);
  EXPECT_FLOAT_EQ(vision.mean[1], 0.4578275f);
  EXPECT_FLOAT_EQ(vision.std[2], 0.27577711f);
}

TEST_F(ModelConfigTest, SiglipTowerLosesItsFirstPatch) {
  UseSiglip();
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.vision.kind, TowerKind::kSiglip);
  EXPECT_EQ(desc.vision.num_patches(), 9) << "48 px of patch 14: 6 pixels are ignored";
  EXPECT_EQ(desc.splice.tokens_per_image, 8);
  EXPECT_TRUE(!desc.vision.has_class_token && !desc.vision.has_pre_norm &&
              desc.vision.has_patch_bias);
  EXPECT_EQ(desc.vision.activation, ActivationKind::kGeluTanh) << "the kind's default";
  EXPECT_FLOAT_EQ(desc.vision.norm_eps, 1e-6f) << "the kind's default";
  model_.config.Set("mm_vision_select_feature", "\"cls_patch\"");
  EXPECT_EQ(Read().splice.tokens_per_image, 9);
}

TEST_F(ModelConfigTest, SelectLayerCountsFromEitherEnd) {
  const std::pair<const char*, int32_t> cases[] = {{"-1", 3}, {"-2", 2}, {"-4", 0},
                                                   {"0", 0},  {"2", 2},  {"3", 3}};
  for (const auto& [value, run] : cases) {
    model_.config.Set("mm_vision_select_layer", value);
    EXPECT_EQ(Read().vision.num_layers_run, run) << value;
  }
}

TEST_F(ModelConfigTest, ImageFitWithoutPadIsTheTowersOwn) {
  model_.config.Set("image_aspect_ratio", "\"square\"");
  EXPECT_EQ(Read().vision.fit, ImageFit::kCrop);
  model_.config.Remove("image_aspect_ratio");
  EXPECT_EQ(Read().vision.fit, ImageFit::kCrop);
  UseSiglip();
  EXPECT_EQ(Read().vision.fit, ImageFit::kStretch);
}

TEST_F(ModelConfigTest, Projectors) {
  struct Case {
    const char* type;
    ProjectorKind kind;
    int32_t num_linears;
    bool pools;
    int32_t tokens;
    const char* tensor;
  };
  const std::string root = "model.mm_projector.image_spatial_proj";
  for (const Case& c :
       {Case{"linear", ProjectorKind::kLinear, 1, false, 4, ".weight"},
        Case{"mlp1x_gelu", ProjectorKind::kMlpGelu, 1, false, 4, ".0.weight"},
        Case{"mlp3x_gelu", ProjectorKind::kMlpGelu, 3, false, 4, ".4.bias"},
        Case{"pool_mlp2x_gelu", ProjectorKind::kMlpGelu, 2, true, 1, ".block.2.weight"}}) {
    model_.config.Set("image_projector_type", "\"" + std::string(c.type) + "\"");
    const ModelDesc desc = Read();
    EXPECT_EQ(desc.projector.kind, c.kind) << c.type;
    EXPECT_EQ(desc.projector.num_linears, c.num_linears) << c.type;
    EXPECT_EQ(desc.projector.pools_2x2, c.pools) << c.type;
    EXPECT_EQ(desc.splice.tokens_per_image, c.tokens) << c.type;
    std::vector<std::string> names;
    for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
      names.push_back(tensor.name);
    }
    EXPECT_THAT(names, Contains(root + c.tensor)) << c.type;
  }
}

TEST_F(ModelConfigTest, LlavaKeyNamesAreFallbacks) {
  model_.config.Remove("mm_image_tower");
  model_.config.Set("mm_vision_tower", "\"openai/clip-small-patch14-28\"");
  model_.config.Remove("image_projector_type");
  model_.config.Set("mm_projector_type", "\"mlp3x_gelu\"");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.vision.kind, TowerKind::kClip);
  EXPECT_EQ(desc.projector.num_linears, 3);
}

TEST_F(ModelConfigTest, NoTowerIsATextModel) {
  model_.config.Set("mm_image_tower", "null");
  model_.has_vision_config = false;
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.vision.kind, TowerKind::kNone);
  EXPECT_EQ(desc.projector.kind, ProjectorKind::kNone);
  EXPECT_THAT(desc.warnings, Contains(HasSubstr("without images")));
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    EXPECT_NE(tensor.part, TensorPart::kTower);
    EXPECT_NE(tensor.part, TensorPart::kProjector);
  }
}

// The order of spec 2.6: each way that is added takes precedence over those after it.
TEST_F(ModelConfigTest, TowerGeometryByItsFirstSource) {
  const TemporaryFolder work;
  const fs::path parent = work / "case";
  const fs::path folder = parent / "checkpoint";
  fs::create_directories(folder);
  const auto heads = [&](const OpenOptions& options = {}) {
    model_.WriteConfigs(folder.string());
    const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder.string(), options);
    EXPECT_TRUE(desc.ok()) << desc.status();
    return desc.ok() ? desc->vision.num_heads : -1;
  };
  model_.has_vision_config = false;
  model_.config.Set("mm_image_tower", "\"openai/clip-vit-large-patch14-336\"");
  model_.config.Set("mm_hidden_size", "1024");
  model_.config.Set("max_position_embeddings", "4096");
  EXPECT_EQ(heads(), 16) << "by its published name";

  model_.config.Set("mm_hidden_size", "8");
  model_.vision.Set("num_attention_heads", "4");
  WriteTower(parent / "openai/clip-vit-large-patch14-336");
  EXPECT_EQ(heads(), 4) << "by the folder in the parent";

  model_.vision.Set("num_attention_heads", "8");
  WriteTower(folder / "openai/clip-vit-large-patch14-336");
  EXPECT_EQ(heads(), 8) << "by the folder in the checkpoint";

  model_.vision.Set("num_attention_heads", "1");
  model_.has_vision_config = true;
  EXPECT_EQ(heads(), 1) << "by vision_config";

  model_.vision.Set("num_attention_heads", "2");
  WriteTower(work / "tower");
  model_.vision.Set("num_attention_heads", "1");
  EXPECT_EQ(heads({.vision_tower = (work / "tower").string()}), 2) << "by the explicit folder";

  model_.has_vision_config = false;
  model_.config.Set("mm_image_tower", "\"" + (work / "tower").string() + "\"");
  EXPECT_EQ(heads(), 2) << "by an absolute path";
}

TEST_F(ModelConfigTest, TowerNameCannotClimbOut) {
  const TemporaryFolder work;
  fs::create_directories(work / "checkpoint");
  WriteTower(work / "secret");
  model_.has_vision_config = false;
  model_.config.Set("mm_image_tower", "\"../secret\"");
  model_.WriteConfigs((work / "checkpoint").string());
  EXPECT_EQ(ReasonOf(ReadModelDesc((work / "checkpoint").string()).status()), "config_vision");
}

TEST_F(ModelConfigTest, MissingExplicitTowerIsAnError) {
  model_.WriteConfigs(folder_.path());
  const absl::Status status =
      ReadModelDesc(folder_.path(), {.vision_tower = folder_.path() + "/gone"}).status();
  EXPECT_EQ(ReasonOf(status), "model_file_missing");
  EXPECT_THAT(MessageOf(status), HasSubstr("gone"));
}

TEST_F(ModelConfigTest, TokenizerKindFollowsTheFiles) {
  model_.WriteConfigs(folder_.path());
  fs::remove(folder_ / "arcade100k.tiktoken");
  absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder_.path());
  ASSERT_TRUE(desc.ok());
  EXPECT_EQ(desc->tokenizer.file, "");
  EXPECT_THAT(desc->warnings, Contains(HasSubstr("no tokenizer file")));
  const std::pair<const char*, TokenizerKind> kinds[] = {
      {"tokenizer.json", TokenizerKind::kTokenizerJson},
      {"vocab.json", TokenizerKind::kByteLevelBpe},
      {"tokenizer.model", TokenizerKind::kSentencePiece},
      {"other.tiktoken", TokenizerKind::kTiktoken}};
  for (const auto& [file, kind] : kinds) {
    WriteFile(folder_ / file, "x");
    WriteFile(folder_ / "merges.txt", "x");
    desc = ReadModelDesc(folder_.path());
    ASSERT_TRUE(desc.ok());
    EXPECT_EQ(desc->tokenizer.kind, kind);
    EXPECT_EQ(desc->tokenizer.file, file);
  }
}

}  // namespace
}  // namespace conclave::checkpoint
