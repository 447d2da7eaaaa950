// Which synthetic models there are, and their text files (spec 1.2, 2.1, 2.2, 2.4).
#include <array>
#include <utility>

#include "json.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

constexpr SynthTower kClip336{
    "openai/clip-vit-large-patch14-336", true, 336, 14, 1024, 16, 4096, 24};
constexpr SynthTower kSiglip384{
    "google/siglip-so400m-patch14-384", false, 384, 14, 1152, 16, 4304, 27};
constexpr SynthTower kClipTiny{"openai/clip-tiny-patch14-56", true, 56, 14, 64, 4, 128, 4};

// The published shards are 4.99 and 1.41 GB: the limit was 5 GB.
constexpr int64_t kPublishedShard = 5'000'000'000;

constexpr std::array<SynthModel, 3> kModels = {{
    {"stablelm-1.6b-4e", 2048, 24, 32, 5632, 4, 100352, 4096, 100256, kClip336, false,
     kPublishedShard},
    {"stablelm-1.6b-4e-384", 2048, 24, 32, 5632, 4, 100352, 4096, 100256, kSiglip384, false,
     kPublishedShard},
    {"tiny", 128, 8, 4, 256, 4, 704, 2048, 600, kClipTiny, true, 3'000'000},
}};

json::string Word(std::string_view text) { return json::string(text.data(), text.size()); }

// Id n stays unused; <|endoftext|> is n + 1 and <|reg0|> the 24th special (spec 6.2).
int32_t EndOfText(const SynthModel& model) { return model.num_ranks + 1; }
int32_t Padding(const SynthModel& model) { return model.num_ranks + 24; }

json::object MoeDictionary(const SynthModel& model) {
  json::array layers;
  json::array experts;
  for (int32_t layer = 0; layer < model.num_layers; layer += 2) {
    layers.push_back(layer);
    experts.push_back(model.num_experts);
  }
  return {
      {"moe_enable", true},
      {"moe_mode", "sparse"},
      {"moe_layers_idx", layers},
      {"num_experts", experts},
      {"ep_size", 1},
      {"top_k_experts", 2},
      {"capacity_factor", 1.5},
      {"eval_capacity_factor", 2.0},
      {"min_capacity", 0},
      {"use_residual", false},
      {"router_aux_loss_coef", 0.01},
      {"train_modules", {"gate_proj", "up_proj", "down_proj", "wg"}},
  };
}

json::object VisionConfig(const SynthTower& tower) {
  return {
      {"model_type", tower.is_clip ? "clip_vision_model" : "siglip_vision_model"},
      {"hidden_size", tower.hidden_dim},
      {"intermediate_size", tower.inner_dim},
      {"num_hidden_layers", tower.num_layers},
      {"num_attention_heads", tower.num_heads},
      {"image_size", tower.image_size},
      {"patch_size", tower.patch_size},
      {"num_channels", 3},
      {"hidden_act", tower.is_clip ? "quick_gelu" : "gelu_pytorch_tanh"},
      {"layer_norm_eps", tower.is_clip ? 1e-5 : 1e-6},
  };
}

json::object Config(const SynthModel& model) {
  return {
      {"architectures", {"MoELLaVAStablelmForCausalLM"}},
      {"model_type", "moe_llava_stablelm"},
      {"bos_token_id", EndOfText(model)},
      {"eos_token_id", EndOfText(model)},
      {"pad_token_id", Padding(model)},
      {"vocab_size", model.vocab_rows},
      {"hidden_act", "silu"},
      {"hidden_size", model.hidden_dim},
      {"intermediate_size", model.inner_dim},
      {"num_hidden_layers", model.num_layers},
      {"num_attention_heads", model.num_heads},
      {"num_heads", model.num_heads},
      {"num_key_value_heads", model.num_heads},
      {"max_position_embeddings", model.max_positions},
      {"norm_eps", 1e-5},
      {"rope_pct", 0.25},
      {"rope_theta", 10000},
      {"rotary_scaling_factor", 1.0},
      {"use_qkv_bias", true},
      {"tie_word_embeddings", false},
      {"initializer_range", 0.02},
      {"use_cache", true},
      {"torch_dtype", "bfloat16"},
      {"transformers_version", "4.37.0"},
      {"mm_image_tower", Word(model.tower.name)},
      {"mm_video_tower", nullptr},
      {"mm_hidden_size", model.tower.hidden_dim},
      {"mm_vision_select_layer", -2},
      {"mm_vision_select_feature", "patch"},
      {"image_projector_type", "mlp2x_gelu"},
      {"image_aspect_ratio", "pad"},
      {"mm_use_im_start_end", false},
      {"mm_use_im_patch_token", false},
      {"use_mm_proj", true},
      {"tokenizer_padding_side", "right"},
      {"vision_config", VisionConfig(model.tower)},
      {"moe", MoeDictionary(model)},
  };
}

json::object Preprocessor(const SynthTower& tower) {
  const json::object square = {{"height", tower.image_size}, {"width", tower.image_size}};
  json::object out = {
      {"image_processor_type", tower.is_clip ? "CLIPImageProcessor" : "SiglipImageProcessor"},
      {"do_resize", true},
      {"resample", 3},
      {"do_rescale", true},
      {"rescale_factor", 1.0 / 255},
      {"do_normalize", true},
  };
  if (tower.is_clip) {
    out["size"] = {{"shortest_edge", tower.image_size}};
    out["do_center_crop"] = true;
    out["crop_size"] = square;
    out["image_mean"] = {0.48145466, 0.4578275, 0.40821073};
    out["image_std"] = {0.26862954, 0.26130258, 0.27577711};
  } else {
    out["size"] = square;
    out["image_mean"] = {0.5, 0.5, 0.5};
    out["image_std"] = {0.5, 0.5, 0.5};
  }
  return out;
}

}  // namespace

std::span<const SynthModel> SynthModels() { return kModels; }

std::vector<std::pair<std::string, std::string>> SynthTextFiles(const SynthModel& model) {
  const json::object tokens = {
      {"eos_token", "<|endoftext|>"}, {"pad_token", "<|reg0|>"}, {"unk_token", "<|reg0|>"}};
  json::object tokenizer = {
      {"added_tokens_decoder", json::object()},
      {"clean_up_tokenization_spaces", true},
      {"errors", "replace"},
      {"model_max_length", model.max_positions},
      {"padding_side", "right"},
      {"tokenizer_class", "Arcade100kTokenizer"},
  };
  tokenizer.insert(tokens.begin(), tokens.end());
  const json::object generation = {
      {"_from_model_config", true},       {"bos_token_id", EndOfText(model)},
      {"eos_token_id", EndOfText(model)}, {"pad_token_id", Padding(model)},
      {"transformers_version", "4.37.0"},
  };
  return {
      {"config.json", Pretty(Config(model))},
      {"preprocessor_config.json", Pretty(Preprocessor(model.tower))},
      {"generation_config.json", Pretty(generation)},
      {"special_tokens_map.json", Pretty(tokens)},
      {"tokenizer_config.json", Pretty(tokenizer)},
  };
}

}  // namespace conclave::checkpoint
