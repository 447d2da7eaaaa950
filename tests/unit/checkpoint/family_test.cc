// Goal: every decoder family's config becomes what the original computes: sizes, norms, attention,
// rotary, FFN, scales, tensor names, template. Method: the published configs of tests/golden/data,
// whole or with one value changed; the expected values are those of the specification's tables.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <filesystem>
#include <set>
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
using ::testing::Not;

class FamilyTest : public ::testing::Test {
 protected:
  // Takes a published config, by its file's name.
  void Use(const std::string& name) {
    text_ =
        ReadFile(fs::path(CONCLAVE_SOURCE_DIR) / "tests/golden/data/configs" / (name + ".json"));
  }
  // Replaces `"key": <old>` by `"key": <raw>`, or takes the key out when `raw` is empty.
  void Set(const std::string& key, const std::string& old, const std::string& raw) {
    const std::string member = "\"" + key + "\": " + old;
    const size_t at = text_.find(member);
    ASSERT_NE(at, std::string::npos) << key;
    if (raw.empty()) {
      text_.erase(at, member.size() + 1);  // And the comma.
    } else {
      text_.replace(at, member.size(), "\"" + key + "\": " + raw);
    }
  }
  absl::StatusOr<ModelDesc> TryRead(const std::string& sub = "") {
    const fs::path folder = folder_ / (sub.empty() ? "m" : sub);
    fs::create_directories(folder);
    WriteFile(folder / "config.json", text_);
    return ReadModelDesc(folder.string());
  }
  ModelDesc Read(const std::string& sub = "") {
    const absl::StatusOr<ModelDesc> desc = TryRead(sub);
    EXPECT_TRUE(desc.ok()) << desc.status();
    return desc.ok() ? *desc : ModelDesc();
  }
  void ExpectRefused(const std::string& reason, const std::string& words) {
    const absl::Status status = TryRead().status();
    EXPECT_EQ(ReasonOf(status), reason) << status;
    EXPECT_THAT(MessageOf(status), HasSubstr(words));
  }

  TemporaryFolder folder_;
  std::string text_;
};

std::set<std::string> Names(const ModelDesc& desc) {
  std::set<std::string> names;
  for (const ExpectedTensor& tensor : ExpectedTensors(desc)) {
    names.insert(tensor.name);
  }
  return names;
}

TEST_F(FamilyTest, Phi) {
  Use("MoE-LLaVA-Phi2-2.7B-4e");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.topology, BlockTopology::kParallel);
  EXPECT_EQ(desc.norm.kind, NormKind::kLayerNorm);
  EXPECT_TRUE(desc.names.norm2.empty());
  EXPECT_EQ(desc.attention.head_dim, 80);
  EXPECT_EQ(desc.attention.rope.rotary_dim, 32);
  EXPECT_TRUE(desc.attention.has_qkv_bias && desc.attention.has_output_bias);
  EXPECT_FALSE(desc.ffn.is_gated);
  EXPECT_TRUE(desc.ffn.has_bias);
  EXPECT_EQ(desc.ffn.activation, ActivationKind::kGeluTanh);
  EXPECT_EQ(desc.ffn.inner_dim, 10240);
  EXPECT_EQ(desc.eos_token, -1);
  EXPECT_EQ(desc.prompt_template, "phi");
  EXPECT_EQ(desc.moe.layers.size(), 16u);
  Set("hidden_act", "\"gelu_new\"", "\"gelu\"");
  EXPECT_EQ(Read().ffn.activation, ActivationKind::kGeluErf);
  Set("num_key_value_heads", "32", "null");
  EXPECT_EQ(Read().attention.num_kv_heads, 32);
}

TEST_F(FamilyTest, QwenStoresHalvesAndThirds) {
  Use("MoE-LLaVA-Qwen-1.8B-4e");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.ffn.inner_dim, 5504) << "half of the config's";
  EXPECT_EQ(desc.names.ffn_gate, "w2") << "the silu branch";
  EXPECT_EQ(desc.names.ffn_up, "w1");
  EXPECT_TRUE(desc.attention.is_fused_qkv);
  EXPECT_TRUE(desc.attention.has_qkv_bias && !desc.attention.has_output_bias);
  EXPECT_EQ(desc.attention.head_dim, 128);
  EXPECT_EQ(desc.attention.rope.rotary_dim, 128);
  EXPECT_EQ(desc.attention.rope.ntk_length, 8192);
  EXPECT_EQ(desc.attention.logn_length, 8192);
  EXPECT_EQ(desc.norm.kind, NormKind::kRmsNorm);
  EXPECT_FLOAT_EQ(desc.norm.eps, 1e-6f);
  EXPECT_EQ(desc.stored_dtype, DType::kF32);
  EXPECT_EQ(desc.names.projector, "transformer.mm_projector.image_spatial_proj");
  EXPECT_EQ(desc.names.tower, "transformer.image_tower.image_tower.vision_model.");
  Set("use_dynamic_ntk", "true", "false");
  EXPECT_EQ(Read().attention.rope.ntk_length, 0);
  EXPECT_EQ(Read().attention.logn_length, 8192);
  Set("rotary_pct", "1.0", "0.5");
  EXPECT_EQ(Read().attention.rope.rotary_dim, 64);
  Set("no_bias", "true", "false");
  EXPECT_TRUE(Read().ffn.has_bias && Read().attention.has_output_bias);
}

TEST_F(FamilyTest, QwenRefusesWhatItsTensorsCannotSay) {
  Use("MoE-LLaVA-Qwen-1.8B-4e");
  Set("intermediate_size", "11008", "11007");
  ExpectRefused("config_range", "intermediate_size: twice the FFN's width");
  Use("MoE-LLaVA-Qwen-1.8B-4e");
  Set("kv_channels", "128", "64");
  ExpectRefused("config_range", "kv_channels: not hidden_size / num_attention_heads");
  Use("MoE-LLaVA-Qwen-1.8B-4e");
  Set("seq_length", "8192", "");
  ExpectRefused("config_key", "seq_length: missing");
}

TEST_F(FamilyTest, MistralHasGroupedHeadsAndAWindow) {
  Use("MoE-LLaVA-OpenChat-7B-4e");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.attention.num_kv_heads, 8);
  EXPECT_EQ(desc.attention.head_dim, 128);
  EXPECT_FALSE(desc.attention.has_qkv_bias);
  EXPECT_EQ(desc.attention.sliding_window, 4096);
  EXPECT_EQ(desc.eos_token, 32000);
  Set("sliding_window", "4096", "null");
  EXPECT_EQ(Read().attention.sliding_window, 0);
  Set("sliding_window", "null", "");
  EXPECT_EQ(Read().attention.sliding_window, 4096) << "the original's default";
}

// The one-of-a-kind token of OpenChat decides, in whichever file it is declared.
TEST_F(FamilyTest, MistralTemplateFollowsTheTokenizer) {
  Use("MoE-LLaVA-OpenChat-7B-4e");
  const fs::path folder = folder_ / "m";
  EXPECT_EQ(Read().prompt_template, "mistral");
  WriteFile(folder / "added_tokens.json", R"({"<|end_of_turn|>": 32000})");
  EXPECT_EQ(Read().prompt_template, "openchat");
  WriteFile(folder / "added_tokens.json", R"({"<|other|>": 32000})");
  EXPECT_EQ(Read().prompt_template, "mistral");
  WriteFile(folder / "tokenizer_config.json",
            R"({"added_tokens_decoder": {"32000": {"content": "<|end_of_turn|>"}}})");
  EXPECT_EQ(Read().prompt_template, "openchat");
  fs::remove(folder / "tokenizer_config.json");
  WriteFile(folder / "tokenizer.json", R"({"added_tokens": [{"content": "<|end_of_turn|>"}]})");
  EXPECT_EQ(Read().prompt_template, "openchat");
}

TEST_F(FamilyTest, Qwen15IsLlamaWithBiasesAndNoWindow) {
  Use("code-only-Qwen1.5-1.8B");
  const ModelDesc desc = Read();
  EXPECT_TRUE(desc.attention.has_qkv_bias && !desc.attention.has_output_bias);
  EXPECT_EQ(desc.attention.sliding_window, 0);
  EXPECT_EQ(desc.attention.rope.theta, 1e6f);
  EXPECT_EQ(desc.prompt_template, "qwen");
  EXPECT_EQ(desc.splice.tokens_per_image, 728);
  Set("use_sliding_window", "false", "true");
  ExpectRefused("config_range", "use_sliding_window");
}

TEST_F(FamilyTest, MiniCpmHasThreeScalesAndOneMatrixForEmbeddingAndHead) {
  Use("code-only-MiniCPM-2B");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.embedding_scale, 12.0f);
  EXPECT_NEAR(desc.residual_scale, 0.2213594f, 1e-7);
  EXPECT_FLOAT_EQ(desc.head_scale, 1.0f / 9);
  EXPECT_TRUE(desc.tie_embeddings);
  EXPECT_EQ(desc.names.lm_head, "model.embed_tokens.weight");
  EXPECT_THAT(Names(desc), Not(Contains("lm_head.weight")));
  EXPECT_EQ(desc.prompt_template, "minicpm");
  Set("use_cache", "true", "true, \"tie_word_embeddings\": false");
  EXPECT_THAT(Names(Read()), Contains("lm_head.weight"));
  Set("scale_depth", "1.4", "");
  ExpectRefused("config_key", "scale_depth: missing");
}

TEST_F(FamilyTest, LlamaTakesEverythingFromTheConfig) {
  Use("MoE-LLaVA-OpenChat-7B-4e");
  Set("model_type", "\"moe_llava_mistral\"", "\"moe_llava_llama\"");
  const ModelDesc desc = Read();
  EXPECT_EQ(desc.attention.sliding_window, 0) << "not a key of Llama's";
  EXPECT_EQ(desc.prompt_template, "vicuna_v1");
  EXPECT_FALSE(desc.tie_embeddings);
  Set("use_cache", "true", "true, \"attention_bias\": true");
  EXPECT_TRUE(Read().attention.has_qkv_bias && Read().attention.has_output_bias);
  Set("rope_theta", "10000.0", R"(10000.0, "rope_scaling": {"type": "linear", "factor": 2})");
  ExpectRefused("config_range", "rope_scaling");
}

TEST_F(FamilyTest, DenseParentsAreTheSameDecodersWithoutExperts) {
  for (const std::string name :
       {"MoE-LLaVA-Phi2-2.7B-4e", "MoE-LLaVA-Qwen-1.8B-4e", "MoE-LLaVA-OpenChat-7B-4e",
        "code-only-MiniCPM-2B", "code-only-Qwen1.5-1.8B", "MoE-LLaVA-StableLM-1.6B-4e"}) {
    Use(name);
    const size_t at = text_.find("moe_llava_");
    text_.erase(at, 4);
    const ModelDesc desc = Read();
    EXPECT_TRUE(desc.moe.layers.empty()) << name;
    for (const std::string& tensor : Names(desc)) {
      ASSERT_THAT(tensor, Not(HasSubstr("deepspeed")));
    }
  }
}

TEST_F(FamilyTest, ResidualExpertsAddAnFfnAndItsMixer) {
  Use("MoE-LLaVA-Qwen-1.8B-4e");
  Set("use_residual", "false", "true");
  Set("top_k_experts", "2", "1");
  const ModelDesc desc = Read();
  EXPECT_TRUE(desc.moe.use_residual && !desc.moe.is_renormalized);
  const std::set<std::string> names = Names(desc);
  for (const std::string tail : {"mlp.mlp.w1.weight", "mlp.mlp.w2.weight", "mlp.mlp.c_proj.weight",
                                 "mlp.coefficient.weight", "mlp.coefficient.bias"}) {
    EXPECT_THAT(names, Contains("transformer.h.2." + tail));
  }
}

// Rows C16 and C17 of the bad-input catalogue for the keys of every family: each is needed, and
// none may be zero.
TEST_F(FamilyTest, SizesOfEveryFamilyAreNeededAndChecked) {
  const std::pair<const char*, const char*> families[] = {
      {"MoE-LLaVA-StableLM-1.6B-4e", "norm_eps"},
      {"MoE-LLaVA-Phi2-2.7B-4e", "layer_norm_eps"},
      {"MoE-LLaVA-Qwen-1.8B-4e", "layer_norm_epsilon"},
      {"MoE-LLaVA-OpenChat-7B-4e", "rms_norm_eps"},
      {"code-only-MiniCPM-2B", "rms_norm_eps"},
      {"code-only-Qwen1.5-1.8B", "rms_norm_eps"}};
  for (const auto& [name, eps] : families) {
    Use(name);
    boost::json::object good = boost::json::parse(text_).as_object();
    good.erase("num_heads");  // StableLM's other word for num_attention_heads.
    for (const std::string key :
         {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "vocab_size", "max_position_embeddings", eps}) {
      SCOPED_TRACE(name + (": " + key));
      boost::json::object bad = good;
      bad[key] = 0;
      text_ = boost::json::serialize(bad);
      ExpectRefused("config_range", "config.json: " + key);
      bad[key] = "1";
      text_ = boost::json::serialize(bad);
      ExpectRefused("config_key", "config.json: " + key);
      bad.erase(key);
      text_ = boost::json::serialize(bad);
      ExpectRefused("config_key", "config.json: " + key);
    }
  }
}

TEST_F(FamilyTest, ExpertsOfAllLayersAreBounded) {
  Use("MoE-LLaVA-OpenChat-7B-4e");
  boost::json::object config = boost::json::parse(text_).as_object();
  config["num_hidden_layers"] = 256;
  boost::json::array layers;
  boost::json::array experts;
  for (int layer = 0; layer < 256; ++layer) {
    layers.push_back(layer);
    experts.push_back(layer == 0 ? 257 : 256);
  }
  config["moe"].as_object()["moe_layers_idx"] = layers;
  config["moe"].as_object()["num_experts"] = experts;
  text_ = boost::json::serialize(config);
  ExpectRefused("config_moe", "too many in all layers; expected at most 65536, found 65537");
  config["moe"].as_object()["num_experts"] = 257;
  text_ = boost::json::serialize(config);
  ExpectRefused("config_moe", "moe.num_experts: out of range");
  config["moe"].as_object()["num_experts"] = 256;
  text_ = boost::json::serialize(config);
  EXPECT_EQ(Read().moe.layers.size(), 256u);
}

// Spec 2.3: the original looks at the folder's name alone; here only when nothing else is there.
TEST_F(FamilyTest, FolderNameDecidesWithoutModelTypeAndArchitectures) {
  struct Row {
    const char* config;
    const char* folder;
    const char* type;
  };
  for (const Row& row :
       {Row{"MoE-LLaVA-Qwen-1.8B-4e", "MoE-LLaVA-Qwen-1.8B", "moe_llava_qwen"},
        Row{"code-only-Qwen1.5-1.8B", "moellavaqwen1.5-1.8b-ft", "moe_llava_qwen1_5"},
        Row{"MoE-LLaVA-OpenChat-7B-4e", "llava-openchat", "llava_mistral"},
        Row{"MoE-LLaVA-Phi2-2.7B-4e", "llava-phi-moe", "moe_llava_phi"},
        Row{"code-only-MiniCPM-2B", "llavaMiniCPM-moe/checkpoint-20", "moe_llava_minicpm"},
        Row{"MoE-LLaVA-OpenChat-7B-4e", "llava-7b", "llava_llama"}}) {
    Use(row.config);
    text_ = text_.substr(0, 2) + text_.substr(text_.find("\"vocab_size\""));
    ASSERT_EQ(text_.find("model_type"), std::string::npos);
    const ModelDesc desc = Read(row.folder);
    EXPECT_EQ(desc.model_type, row.type);
    EXPECT_THAT(desc.warnings, Contains(HasSubstr("taken from the folder's name")));
  }
}

TEST_F(FamilyTest, ModelTypeWinsOverTheFolderName) {
  Use("MoE-LLaVA-Qwen-1.8B-4e");
  EXPECT_EQ(Read("MoE-LLaVA-Phi2-2.7B-4e").model_type, "moe_llava_qwen");
}

}  // namespace
}  // namespace conclave::checkpoint
