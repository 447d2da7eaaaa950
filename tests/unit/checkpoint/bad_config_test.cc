// Goal: no wrong value in a config file gets past the reader, and the message names file, key path
// and what was expected. Method: the rows C16 to C21 and C23 of the bad-input catalogue as one
// changed value each in the configs of a small model; the table says which reason and which words
// must come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

enum class Section { kConfig, kMoe, kVision, kPreprocessor };

struct Row {
  std::string id;
  Section section;
  std::string key;
  std::string raw;  // raw JSON; empty: the key is left out
  std::string reason;
  std::string word;  // in the message, besides the key
};

std::string NameOfRow(const ::testing::TestParamInfo<Row>& info) { return info.param.id; }
void PrintTo(const Row& row, std::ostream* out) { *out << row.id; }

class BadConfig : public ::testing::TestWithParam<Row> {};

TEST_P(BadConfig, IsRefused) {
  const Row& row = GetParam();
  const TemporaryFolder folder;
  SmallModel model;
  model.WriteConfigs(folder.path());
  ASSERT_TRUE(ReadModelDesc(folder.path()).ok()) << ReadModelDesc(folder.path()).status();

  JsonText* sections[] = {&model.config, &model.moe, &model.vision, &model.preprocessor};
  JsonText& section = *sections[static_cast<int>(row.section)];
  if (row.raw.empty()) {
    section.Remove(row.key);
  } else {
    section.Set(row.key, row.raw);
  }
  model.WriteConfigs(folder.path());
  const absl::Status status = ReadModelDesc(folder.path()).status();
  ASSERT_FALSE(status.ok()) << "was taken for good";
  EXPECT_EQ(ReasonOf(status), row.reason) << MessageOf(status);
  const char* file =
      row.section == Section::kPreprocessor ? "preprocessor_config.json: " : "config.json: ";
  const std::string prefix = row.section == Section::kMoe      ? "moe."
                             : row.section == Section::kVision ? "vision_config."
                                                               : "";
  EXPECT_THAT(MessageOf(status), HasSubstr(file + prefix + row.key));
  EXPECT_THAT(MessageOf(status), HasSubstr(row.word));
  EXPECT_EQ(MessageOf(status).find('\n'), std::string::npos);

  SmallModel().WriteConfigs(folder.path());
  EXPECT_TRUE(ReadModelDesc(folder.path()).ok());
}

constexpr Section kC = Section::kConfig;
constexpr Section kM = Section::kMoe;
constexpr Section kV = Section::kVision;
constexpr Section kP = Section::kPreprocessor;

INSTANTIATE_TEST_SUITE_P(
    Keys, BadConfig,
    ::testing::Values(
        Row{"C16_hidden_missing", kC, "hidden_size", "", "config_key", "missing"},
        Row{"C16_hidden_null", kC, "hidden_size", "null", "config_key", "null"},
        Row{"C16_hidden_string", kC, "hidden_size", "\"16\"", "config_key", "whole number"},
        Row{"C16_hidden_float", kC, "hidden_size", "16.0", "config_key", "whole number"},
        Row{"C16_hidden_bool", kC, "hidden_size", "true", "config_key", "whole number"},
        Row{"C16_hidden_list", kC, "hidden_size", "[16]", "config_key", "whole number"},
        Row{"C16_model_type_number", kC, "model_type", "7", "config_key", "a string"},
        Row{"C16_layers_missing", kC, "num_hidden_layers", "", "config_key", "missing"},
        Row{"C16_heads_missing", kC, "num_attention_heads", "", "config_key", "missing"},
        Row{"C16_vocab_missing", kC, "vocab_size", "", "config_key", "missing"},
        Row{"C16_context_missing", kC, "max_position_embeddings", "", "config_key", "missing"},
        Row{"C16_eps_missing", kC, "norm_eps", "", "config_key", "missing"},
        Row{"C16_rope_pct_missing", kC, "rope_pct", "", "config_key", "missing"},
        Row{"C16_qkv_bias_number", kC, "use_qkv_bias", "1", "config_key", "true or false"},
        Row{"C16_qkv_bias_missing", kC, "use_qkv_bias", "", "config_key", "missing"},
        Row{"C16_tie_string", kC, "tie_word_embeddings", "\"no\"", "config_key", "true or false"},
        Row{"C16_theta_string", kC, "rope_theta", "\"1e4\"", "config_key", "a number"},
        Row{"C16_eos_string", kC, "eos_token_id", "\"x\"", "config_key", "whole number"},
        Row{"C16_eos_list_of_strings", kC, "eos_token_id", "[\"x\"]", "config_key", "[0]"},
        Row{"C16_tower_number", kC, "mm_image_tower", "3", "config_key", "a string"},
        Row{"C16_tower_missing_beside_vision_config", kC, "mm_image_tower", "", "config_key",
            "missing"},
        Row{"C16_select_layer_missing", kC, "mm_vision_select_layer", "", "config_key", "missing"},
        Row{"C16_experts_missing", kM, "num_experts", "", "config_key", "missing"},
        Row{"C16_experts_string", kM, "num_experts", "\"4\"", "config_key", "whole number"},
        Row{"C16_experts_list_of_strings", kM, "num_experts", "[\"2\"]", "config_key",
            "num_experts[0]"},
        Row{"C16_layers_idx_string", kM, "moe_layers_idx", "\"0\"", "config_key", "list"},
        Row{"C16_layers_idx_float", kM, "moe_layers_idx", "[0.0]", "config_key",
            "moe_layers_idx[0]"},
        Row{"C16_top_k_missing", kM, "top_k_experts", "", "config_key", "missing"},
        Row{"C16_residual_number", kM, "use_residual", "0", "config_key", "true or false"},
        Row{"C16_vision_hidden_missing", kV, "hidden_size", "", "config_key", "missing"},
        Row{"C16_mean_missing", kP, "image_mean", "", "config_key", "missing"},
        Row{"C16_mean_strings", kP, "image_mean", "[\"a\",1,1]", "config_key", "image_mean[0]"}),
    NameOfRow);

INSTANTIATE_TEST_SUITE_P(
    Ranges, BadConfig,
    ::testing::Values(
        Row{"C17_hidden_0", kC, "hidden_size", "0", "config_range", "found 0"},
        Row{"C17_hidden_negative", kC, "hidden_size", "-1", "config_range", "found -1"},
        Row{"C17_hidden_1e9", kC, "hidden_size", "1000000000", "config_range", "65536"},
        Row{"C17_hidden_above_2_63", kC, "hidden_size", "18446744073709551615", "config_range",
            "65536"},
        Row{"C17_heads_do_not_divide_hidden", kC, "num_attention_heads", "3", "config_range",
            "divisor of 16"},
        Row{"C17_heads_0", kC, "num_attention_heads", "0", "config_range", "found 0"},
        Row{"C17_more_heads_than_hidden", kC, "num_attention_heads", "32", "config_range",
            "divisor of 16"},
        Row{"C17_kv_heads_do_not_divide_heads", kC, "num_key_value_heads", "3", "config_range",
            "divisor of 2"},
        Row{"C17_kv_heads_0", kC, "num_key_value_heads", "0", "config_range", "found 0"},
        Row{"C17_layers_0", kC, "num_hidden_layers", "0", "config_range", "found 0"},
        Row{"C17_layers_1e6", kC, "num_hidden_layers", "1000000", "config_range", "1024"},
        Row{"C17_vocab_0", kC, "vocab_size", "0", "config_range", "found 0"},
        Row{"C17_ffn_0", kC, "intermediate_size", "0", "config_range", "found 0"},
        Row{"C17_eos_beyond_the_vocabulary", kC, "eos_token_id", "24", "config_range",
            "from 0 to 23"},
        Row{"C17_activation", kC, "hidden_act", "\"relu\"", "config_range", "silu"},
        Row{"C17_parallel_residual", kC, "use_parallel_residual", "true", "config_range",
            "expected false"},
        Row{"C17_qk_norm", kC, "qk_layernorm", "true", "config_range", "expected false"},
        Row{"C20_theta_0", kC, "rope_theta", "0", "config_range", "found 0"},
        Row{"C20_theta_negative", kC, "rope_theta", "-10000", "config_range", "found -10000"},
        Row{"C20_rope_scaling", kC, "rope_scaling", "{\"type\":\"linear\"}", "config_range",
            "expected null"},
        Row{"C20_rope_pct_above_1", kC, "rope_pct", "1.5", "config_range", "from 0 to 1"},
        Row{"C20_rope_pct_0", kC, "rope_pct", "0", "config_range", "pairs"},
        Row{"C20_rope_pct_odd", kC, "rope_pct", "0.375", "config_range", "found 3"},
        Row{"C20_eps_0", kC, "norm_eps", "0", "config_range", "found 0"},
        Row{"C20_eps_negative", kC, "norm_eps", "-1e-5", "config_range", "found"},
        Row{"C20_context_0", kC, "max_position_embeddings", "0", "config_range", "found 0"},
        Row{"C20_context_below_one_image", kC, "max_position_embeddings", "4", "config_range",
            "more than 4"}),
    NameOfRow);

INSTANTIATE_TEST_SUITE_P(
    Moe, BadConfig,
    ::testing::Values(
        Row{"C18_experts_0", kM, "num_experts", "[0]", "config_moe", "num_experts[0]"},
        Row{"C18_experts_1", kM, "num_experts", "[1]", "config_moe", "from 2 to"},
        Row{"C18_experts_1e6", kM, "num_experts", "[1000000]", "config_moe", "1000000"},
        Row{"C18_experts_number_1", kM, "num_experts", "1", "config_moe", "found 1"},
        Row{"C18_experts_too_many_entries", kM, "num_experts", "[2,2]", "config_moe",
            "expected 1, found 2"},
        Row{"C18_experts_no_entry", kM, "num_experts", "[]", "config_moe", "expected 1, found 0"},
        Row{"C18_top_k_0", kM, "top_k_experts", "0", "config_moe", "from 1 to 2"},
        Row{"C18_top_k_negative", kM, "top_k_experts", "-2", "config_moe", "from 1 to 2"},
        Row{"C18_top_k_of_dynmoe", kM, "top_k_experts", "-1", "config_moe", "DynMoE"},
        Row{"C18_top_k_above_experts", kM, "top_k_experts", "3", "config_moe", "from 1 to 2"},
        Row{"C18_layer_out_of_range", kM, "moe_layers_idx", "[2]", "config_moe",
            "moe_layers_idx[0]"},
        Row{"C18_layer_negative", kM, "moe_layers_idx", "[-1]", "config_moe", "from 0 to 1"},
        Row{"C18_layer_twice", kM, "moe_layers_idx", "[0,0]", "config_moe", "layer 0 stands twice"},
        Row{"C18_no_layers", kM, "moe_layers_idx", "[]", "config_moe", "empty"},
        Row{"C18_disabled", kM, "moe_enable", "false", "config_moe", "expected true"},
        Row{"C19_capacity_0", kM, "capacity_factor", "0", "config_moe", "found 0"},
        Row{"C19_eval_capacity_0", kM, "eval_capacity_factor", "0.0", "config_moe", "found"},
        Row{"C19_eval_capacity_negative", kM, "eval_capacity_factor", "-2", "config_moe",
            "found -2"},
        Row{"C19_min_capacity_negative", kM, "min_capacity", "-1", "config_moe", "found -1"},
        Row{"C19_ep_size_0", kM, "ep_size", "0", "config_moe", "found 0"}),
    NameOfRow);

INSTANTIATE_TEST_SUITE_P(
    Vision, BadConfig,
    ::testing::Values(
        Row{"C21_patch_does_not_divide_the_image", kV, "patch_size", "13", "config_vision",
            "divisor of 28"},
        Row{"C21_patch_0", kV, "patch_size", "0", "config_vision", "found 0"},
        Row{"C21_patch_above_the_image", kV, "patch_size", "56", "config_vision", "at most 28"},
        Row{"C21_image_0", kV, "image_size", "0", "config_vision", "found 0"},
        Row{"C21_image_1e5", kV, "image_size", "100000", "config_vision", "found 100000"},
        Row{"C21_heads_do_not_divide_width", kV, "num_attention_heads", "3", "config_vision",
            "divisor of 8"},
        Row{"C21_layers_0", kV, "num_hidden_layers", "0", "config_vision", "found 0"},
        Row{"C21_channels", kV, "num_channels", "4", "config_vision", "found 4"},
        Row{"C21_activation", kV, "hidden_act", "\"relu\"", "config_vision", "quick_gelu"},
        Row{"C21_eps", kV, "layer_norm_eps", "0", "config_vision", "found 0"},
        Row{"C21_select_layer_above", kC, "mm_vision_select_layer", "4", "config_vision",
            "from -4 to 3"},
        Row{"C21_select_layer_below", kC, "mm_vision_select_layer", "-5", "config_vision",
            "from -4 to 3"},
        Row{"C21_select_feature", kC, "mm_vision_select_feature", "\"cls\"", "config_vision",
            "cls_patch"},
        Row{"C21_tower_width", kC, "mm_hidden_size", "9", "config_vision", "expected 8"},
        Row{"C21_projector_qformer", kC, "image_projector_type", "\"qformer2_64\"", "config_vision",
            "a Q-Former projector, which is not supported; train the projector as mlp2x_gelu"},
        Row{"C21_projector_cheap_qformer", kC, "image_projector_type", "\"cheap_qformer2_64\"",
            "config_vision", "a Q-Former projector"},
        Row{"C21_projector_cheap_simple", kC, "image_projector_type", "\"cheap_simple_in2_out0\"",
            "config_vision", "expected linear, identity, mlpNx_gelu"},
        Row{"C21_projector_simple", kC, "image_projector_type", "\"simple_in2_out1\"",
            "config_vision", "mlpNx_gelu"},
        Row{"C21_projector_cheap", kC, "image_projector_type", "\"cheap_mlp2x_gelu\"",
            "config_vision", "cheap_"},
        Row{"C21_projector_mlp0x", kC, "image_projector_type", "\"mlp0x_gelu\"", "config_vision",
            "N from 1"},
        Row{"C21_projector_mlp_without_number", kC, "image_projector_type", "\"mlpx_gelu\"",
            "config_vision", "mlpx_gelu"},
        Row{"C21_projector_mlp_99", kC, "image_projector_type", "\"mlp99x_gelu\"", "config_vision",
            "to 16"},
        Row{"C21_projector_mlp_overflow", kC, "image_projector_type", "\"mlp99999999999x_gelu\"",
            "config_vision", "to 16"},
        Row{"C21_identity_of_another_width", kC, "image_projector_type", "\"identity\"",
            "config_vision", "expected 16"},
        Row{"C21_mean_of_two", kP, "image_mean", "[0.5,0.5]", "config_vision",
            "expected 3 numbers, found 2"},
        Row{"C21_mean_of_four", kP, "image_mean", "[0.5,0.5,0.5,0.5]", "config_vision", "found 4"},
        Row{"C21_std_0", kP, "image_std", "[0.5,0,0.5]", "config_vision", "image_std[1]"},
        Row{"C21_std_negative", kP, "image_std", "[0.5,0.5,-1]", "config_vision", "image_std[2]"},
        Row{"C21_crop_size", kP, "crop_size", "224", "config_vision", "found 224"},
        Row{"C21_crop_width", kP, "crop_size", "{\"height\":28,\"width\":30}", "config_vision",
            "found 30"},
        Row{"C21_resample", kP, "resample", "2", "config_vision", "found 2"},
        Row{"C21_no_normalisation", kP, "do_normalize", "false", "config_vision", "expected true"}),
    NameOfRow);

absl::Status ReadText(const std::string& config) {
  const TemporaryFolder folder;
  SmallModel().WriteConfigs(folder.path());
  WriteFile(folder / "config.json", config);
  return ReadModelDesc(folder.path()).status();
}

TEST(BadConfigFile, C16_not_json) {
  const std::string good = SmallModel().ConfigText();
  std::string twice = good;
  twice.insert(1, "\"hidden_size\": 32,");
  std::string commented = good;
  commented.insert(1, "// a comment\n");
  std::string nan = good;
  nan.replace(nan.find("10000"), 5, "NaN");
  for (const std::string& text :
       {std::string(), std::string("null"), std::string("[]"), std::string("\"x\""), twice,
        commented, nan, good + "}", good.substr(0, good.size() - 1), "\xef\xbb\xbf" + good,
        "{\"a\":" + std::string(100'000, '['), std::string("{\"model_type\":\"\xff\"}")}) {
    SCOPED_TRACE(text.substr(0, 60));
    const absl::Status status = ReadText(text);
    EXPECT_EQ(ReasonOf(status), "config_key") << status;
    EXPECT_THAT(MessageOf(status), HasSubstr("config.json: "));
  }
  EXPECT_THAT(MessageOf(ReadText(twice)), HasSubstr("\"hidden_size\" stands twice"));
}

TEST(BadConfigFile, C16_ten_megabytes) {
  std::string text = SmallModel().ConfigText();
  text.insert(text.size() - 1, std::string(10 << 20, ' '));
  const absl::Status status = ReadText(text);
  EXPECT_EQ(ReasonOf(status), "config_key") << status;
  EXPECT_THAT(MessageOf(status), HasSubstr("too large"));
}

TEST(BadConfigFile, C16_truncated_anywhere) {
  const std::string good = SmallModel().ConfigText();
  for (size_t size = 0; size < good.size(); size += 7) {
    EXPECT_EQ(ReasonOf(ReadText(good.substr(0, size))), "config_key") << "at " << size;
  }
}

TEST(BadConfigFile, C16_moe_dictionary_missing_or_no_object) {
  SmallModel model;
  model.has_moe = false;
  EXPECT_EQ(ReasonOf(ReadText(model.ConfigText())), "config_key");
  EXPECT_THAT(MessageOf(ReadText(model.ConfigText())), HasSubstr("config.json: moe: missing"));
  model.config.Set("moe", "[1]");
  EXPECT_EQ(ReasonOf(ReadText(model.ConfigText())), "config_key");
}

TEST(BadConfigFile, C19_infinite_capacity) {
  SmallModel model;
  model.moe.Set("eval_capacity_factor", "1e400");
  // Boost.JSON reads 1e400 as infinity or refuses it; either way the model is refused.
  EXPECT_FALSE(ReadText(model.ConfigText()).ok());
}

TEST(BadConfigFile, C21_pooling_of_a_grid_that_is_not_square) {
  SmallModel model;
  model.config.Set("image_projector_type", "\"pool_mlp2x_gelu\"");
  model.config.Set("mm_vision_select_feature", "\"cls_patch\"");
  const absl::Status status = ReadText(model.ConfigText());
  EXPECT_EQ(ReasonOf(status), "config_vision");
  EXPECT_THAT(MessageOf(status), HasSubstr("square grid"));
}

TEST(BadConfigFile, C23_code_and_templates_are_ignored_with_a_warning) {
  const TemporaryFolder folder;
  SmallModel model;
  model.config.Set("auto_map", R"({"AutoModel": "evil.py--Evil"})");
  model.config.Set("trust_remote_code", "true");
  model.WriteConfigs(folder.path());
  WriteFile(folder / "tokenizer_config.json", R"({"chat_template": "{{ evil }}"})");
  const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder.path());
  ASSERT_TRUE(desc.ok()) << desc.status();
  EXPECT_THAT(desc->warnings, Contains(HasSubstr("config.json: auto_map: ignored")));
  EXPECT_THAT(desc->warnings, Contains(HasSubstr("config.json: trust_remote_code: ignored")));
  EXPECT_THAT(desc->warnings, Contains(HasSubstr("tokenizer_config.json: chat_template: ignored")));
}

TEST(BadConfigFile, UnsupportedModelTypesAreNamedWithWhatIsSupported) {
  for (const std::string type : {"moe_llava_mpt", "llava_mpt"}) {
    SmallModel model;
    model.config.Set("model_type", "\"" + type + "\"");
    const absl::Status status = ReadText(model.ConfigText());
    EXPECT_EQ(ReasonOf(status), "model_type_unsupported");
    EXPECT_THAT(MessageOf(status), HasSubstr("\"" + type + "\": MPT decoders are not supported"));
    EXPECT_THAT(MessageOf(status), HasSubstr("moe_llava_stablelm, llava_stablelm"));
    EXPECT_THAT(MessageOf(status), HasSubstr("moe_llava_minicpm, llava_minicpm"));
  }
  SmallModel model;
  model.config.Set("model_type", "\"gpt5\"");
  EXPECT_EQ(ReasonOf(ReadText(model.ConfigText())), "model_type_unsupported");
  EXPECT_THAT(MessageOf(ReadText(model.ConfigText())), HasSubstr("found \"gpt5\""));
}

TEST(BadConfigFile, UnknownTowerNamesTheWaysToGiveIt) {
  SmallModel model;
  model.has_vision_config = false;
  model.config.Set("mm_image_tower", "\"openai/clip-unheard-of\"");
  const absl::Status status = ReadText(model.ConfigText());
  EXPECT_EQ(ReasonOf(status), "config_vision");
  for (const char* word :
       {"mm_image_tower", "openai/clip-unheard-of", "--vision-tower", "vision_config",
        "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"}) {
    EXPECT_THAT(MessageOf(status), HasSubstr(word));
  }
}

TEST(BadConfigFile, VisionConfigNeedsThePreprocessorBesideItsWeights) {
  const TemporaryFolder folder;
  SmallModel().WriteConfigs(folder.path());
  std::filesystem::remove(folder / "preprocessor_config.json");
  WriteFile(folder / "model.safetensors", "");
  const absl::Status status = ReadModelDesc(folder.path()).status();
  EXPECT_EQ(ReasonOf(status), "model_file_missing");
  EXPECT_THAT(MessageOf(status), HasSubstr("preprocessor_config.json"));
}

TEST(BadConfigFile, AConfigAloneIsEnoughToMeasureTheModel) {
  const TemporaryFolder folder;
  SmallModel().WriteConfigs(folder.path());
  std::filesystem::remove(folder / "preprocessor_config.json");
  const absl::StatusOr<ModelDesc> desc = ReadModelDesc(folder.path());
  ASSERT_TRUE(desc.ok()) << desc.status();
  EXPECT_GT(desc->vision.num_patches(), 0);
}

}  // namespace
}  // namespace conclave::checkpoint
