// Which synthetic models there are (spec 1.1, 1.2), and what configs say of them (spec 2.1, 2.2,
// 2.4).
#include <array>
#include <utility>

#include "conclave/base/check.h"
#include "json.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;
using enum SynthFamily;

constexpr SynthTower kClip336{
    "openai/clip-vit-large-patch14-336", true, 336, 14, 1024, 16, 4096, 24};
constexpr SynthTower kSiglip384{
    "google/siglip-so400m-patch14-384", false, 384, 14, 1152, 16, 4304, 27};
constexpr SynthTower kClipTiny{"openai/clip-tiny-patch14-56", true, 56, 14, 64, 4, 128, 4};
constexpr SynthTower kSiglipTiny{"google/siglip-tiny-patch14-48", false, 48, 14, 72, 3, 128, 4};

// The limits at which the published files were cut.
constexpr int64_t kCut5 = 5'000'000'000;
constexpr int64_t kCut10 = 10'000'000'000;
constexpr int64_t kCutTiny = 3'000'000;
constexpr DType kB = DType::kBf16;
constexpr DType kF = DType::kF32;

// name, family; hidden, layers, heads, kv heads, FFN, vocabulary, positions; tokenizer; tower;
// dtype, f32 gate, torch.save; shard.
constexpr std::array<SynthModel, 13> kModels = {{
    {"stablelm-1.6b-4e", kStablelm, 2048, 24, 32, 32, 5632, 100352, 4096, 100256, kClip336, kB,
     false, false, kCut5},
    {"stablelm-1.6b-4e-384", kStablelm, 2048, 24, 32, 32, 5632, 100352, 4096, 100256, kSiglip384,
     kB, false, false, kCut5},
    {"qwen-1.8b-4e", kQwen, 2048, 24, 16, 16, 5504, 151936, 8192, 151643, kClip336, kF, false, true,
     kCut10},
    {"phi2-2.7b-4e", kPhi, 2560, 32, 32, 32, 10240, 51200, 2048, 50257, kClip336, kB, false, false,
     kCut5},
    {"phi2-2.7b-4e-384", kPhi, 2560, 32, 32, 32, 10240, 51200, 2048, 50257, kSiglip384, kB, false,
     false, kCut5},
    {"openchat-7b-4e", kMistral, 4096, 32, 32, 8, 14336, 32002, 8192, 32000, kClip336, kB, false,
     true, kCut10},
    {"tiny", kStablelm, 128, 8, 4, 4, 256, 704, 2048, 600, kClipTiny, kB, true, false, kCutTiny},
    {"tiny-qwen", kQwen, 128, 8, 4, 4, 256, 832, 2048, 600, kClipTiny, kF, false, true, kCutTiny},
    {"tiny-phi", kPhi, 160, 8, 4, 4, 256, 704, 2048, 600, kSiglipTiny, DType::kF16, true, false,
     kCutTiny},
    {"tiny-openchat", kMistral, 128, 8, 4, 2, 256, 642, 2048, 640, kClipTiny, kB, false, true,
     kCutTiny},
    {"tiny-llama", kLlama, 128, 8, 4, 4, 256, 640, 2048, 640, kClipTiny, DType::kF16, false, false,
     kCutTiny},
    {"tiny-qwen1.5", kQwen15, 128, 8, 4, 4, 256, 640, 2048, 604, kSiglipTiny, kB, true, false,
     kCutTiny},
    {"tiny-minicpm", kMiniCpm, 144, 8, 6, 6, 256, 656, 2048, 656, kClipTiny, kB, false, false,
     kCutTiny},
}};

// An array of one. Braces would not do: compilers differ on whether {value} is a list or a copy.
json::array ListOf(json::value element) {
  json::array list;
  list.push_back(std::move(element));
  return list;
}

json::string Word(std::string_view text) { return json::string(text.data(), text.size()); }

// Null for -1.
json::value Id(int32_t token) { return token < 0 ? json::value(nullptr) : json::value(token); }

std::string_view DTypeWord(DType dtype) {
  return dtype == DType::kF32 ? "float32" : dtype == DType::kF16 ? "float16" : "bfloat16";
}

json::array TrainModules(SynthFamily family) {
  switch (family) {
    case kPhi:
      return {"fc1", "fc2", "wg"};
    case kQwen:
      return {"mlp.w1", "mlp.w2", "mlp.c_proj", "wg"};
    default:
      return {"gate_proj", "up_proj", "down_proj", "wg"};
  }
}

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
      {"top_k_experts", model.top_k},
      {"capacity_factor", 1.5},
      // Nothing is ever dropped: spec 4.4.
      {"eval_capacity_factor", static_cast<double>(model.num_experts) / model.top_k},
      {"min_capacity", 0},
      {"use_residual", model.use_residual},
      {"router_aux_loss_coef", 0.01},
      {"train_modules", TrainModules(model.family)},
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

void Insert(json::object& out, const json::object& more) { out.insert(more.begin(), more.end()); }

// Keys of the decoders that are Llama's with other numbers.
json::object LlamaKeys(const SynthModel& model, double eps, double theta) {
  return {{"hidden_act", "silu"},
          {"intermediate_size", model.inner_dim},
          {"num_key_value_heads", model.num_kv_heads},
          {"rms_norm_eps", eps},
          {"rope_theta", theta}};
}

json::object QwenKeys(const SynthModel& model) {
  json::object keys = {{"intermediate_size", 2 * model.inner_dim},
                       {"kv_channels", model.hidden_dim / model.num_heads},
                       {"layer_norm_epsilon", 1e-6},
                       {"seq_length", model.max_positions},
                       {"rotary_emb_base", 10000},
                       {"rotary_pct", 1.0},
                       {"no_bias", true},
                       {"use_dynamic_ntk", true},
                       {"use_logn_attn", true},
                       {"scale_attn_weights", true},
                       {"softmax_in_fp32", false},
                       {"use_flash_attn", false},
                       {"bf16", true},
                       {"fp16", false},
                       {"fp32", false}};
  if (model.num_kv_heads != model.num_heads) {
    keys["num_key_value_heads"] = model.num_kv_heads;  // Which its reader refuses.
  }
  return keys;
}

json::object StablelmKeys(const SynthModel& model) {
  return {{"hidden_act", "silu"},
          {"intermediate_size", model.inner_dim},
          {"num_heads", model.num_heads},
          {"num_key_value_heads", model.num_kv_heads},
          {"norm_eps", 1e-5},
          {"rope_pct", 0.25},
          {"rope_theta", 10000},
          {"rotary_scaling_factor", 1.0},
          {"use_qkv_bias", true}};
}

json::object PhiKeys(const SynthModel& model) {
  return {{"hidden_act", "gelu_new"},
          {"intermediate_size", model.inner_dim},
          {"num_key_value_heads", model.num_kv_heads},
          {"layer_norm_eps", 1e-5},
          {"partial_rotary_factor", 0.4},
          {"rope_theta", 10000.0},
          {"rope_scaling", nullptr},
          {"qk_layernorm", false}};
}

json::object MiniCpmKeys(const SynthModel& model) {
  json::object keys = LlamaKeys(model, 1e-5, 10000.0);
  Insert(keys, {{"attention_bias", false},
                {"rope_scaling", nullptr},
                {"scale_emb", 12},
                {"scale_depth", 1.4},
                {"dim_model_base", model.hidden_dim / 3}});
  return keys;
}

json::object Named(json::object keys, std::string_view type, std::string_view architecture) {
  keys["architectures"] = ListOf(Word("MoELLaVA" + std::string(architecture) + "ForCausalLM"));
  keys["model_type"] = Word("moe_llava_" + std::string(type));
  return keys;
}

json::object With(json::object keys, const json::object& more) {
  Insert(keys, more);
  return keys;
}

// What differs between the families.
json::object FamilyKeys(const SynthModel& model) {
  switch (model.family) {
    case kStablelm:
      return Named(StablelmKeys(model), "stablelm", "Stablelm");
    case kQwen:
      return Named(QwenKeys(model), "qwen", "QWen");
    case kPhi:
      return Named(PhiKeys(model), "phi", "Phi");
    case kMistral:
      return Named(With(LlamaKeys(model, 1e-5, 10000.0), {{"sliding_window", 4096}}), "mistral",
                   "Mistral");
    case kLlama:
      return Named(With(LlamaKeys(model, 1e-5, 10000.0),
                        {{"attention_bias", false}, {"rope_scaling", nullptr}}),
                   "llama", "Llama");
    case kQwen15:
      return Named(With(LlamaKeys(model, 1e-6, 1000000.0), {{"max_window_layers", 21},
                                                            {"sliding_window", 32768},
                                                            {"use_sliding_window", false}}),
                   "qwen1_5", "Qwen1_5");
    case kMiniCpm:
      return Named(MiniCpmKeys(model), "minicpm", "MiniCPM");
  }
  CONCLAVE_CHECK(false);
}

json::object Config(const SynthModel& model) {
  const SynthTokenIds ids = TokenIdsOf(model);
  json::object out = FamilyKeys(model);
  Insert(out, {{"bos_token_id", Id(model.family == kPhi ? -1 : ids.bos)},
               {"eos_token_id", Id(model.family == kPhi ? -1 : ids.eos)},
               {"pad_token_id", Id(ids.pad)},
               {"vocab_size", model.vocab_rows},
               {"hidden_size", model.hidden_dim},
               {"num_hidden_layers", model.num_layers},
               {"num_attention_heads", model.num_heads},
               {"max_position_embeddings", model.max_positions},
               {"tie_word_embeddings", model.family == kMiniCpm},
               {"initializer_range", 0.02},
               {"use_cache", true},
               {"torch_dtype", Word(DTypeWord(model.dtype))},
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
               {"moe", MoeDictionary(model)}});
  return out;
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

json::object Generation(const SynthModel& model) {
  const SynthTokenIds ids = TokenIdsOf(model);
  if (model.family == kPhi) {
    return {{"_from_model_config", true}, {"transformers_version", "4.37.0"}};
  }
  json::object out = {
      {"eos_token_id", ids.eos}, {"pad_token_id", ids.pad}, {"transformers_version", "4.37.0"}};
  if (model.family == kQwen) {
    Insert(out, {{"chat_format", "raw"},
                 {"do_sample", true},
                 {"max_new_tokens", 512},
                 {"stop_words_ids", ListOf(ListOf(ids.eos))},
                 {"top_k", 0},
                 {"top_p", 0.8}});
  } else {
    Insert(out, {{"_from_model_config", true}, {"bos_token_id", ids.bos}});
  }
  return out;
}

}  // namespace

std::span<const SynthModel> SynthModels() { return kModels; }

std::vector<SynthFile> SynthConfigs(const SynthModel& model) {
  return {{"config.json", Pretty(Config(model))},
          {"preprocessor_config.json", Pretty(Preprocessor(model.tower))},
          {"generation_config.json", Pretty(Generation(model))}};
}

}  // namespace conclave::checkpoint
