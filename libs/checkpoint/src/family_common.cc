#include "family_common.h"

#include <string>

namespace conclave::checkpoint {

void ReadSizes(ConfigReader& config, ModelDesc& desc) {
  desc.hidden_dim = config.Int("hidden_size", 1, kHiddenMax);
  desc.num_layers = config.Int("num_hidden_layers", 1, kLayersMax);
  desc.vocab_rows = config.Int("vocab_size", 1, kVocabMax);
  desc.max_positions = config.Int("max_position_embeddings", 1, kPositionsMax);
}

void ReadHeads(ConfigReader& config, std::string_view heads_key, ModelDesc& desc) {
  AttentionSpec& attention = desc.attention;
  attention.num_heads = config.Int(heads_key, 1, kHeadsMax);
  attention.num_kv_heads = config.IntOr("num_key_value_heads", attention.num_heads, 1, kHeadsMax);
  if (!config.ok()) {
    return;
  }
  if (desc.hidden_dim % attention.num_heads != 0) {
    config.OutOfRange(heads_key, "does not divide hidden_size; expected a divisor of " +
                                     std::to_string(desc.hidden_dim) + ", found " +
                                     std::to_string(attention.num_heads));
    return;
  }
  if (attention.num_heads % attention.num_kv_heads != 0) {
    config.OutOfRange("num_key_value_heads",
                      "does not divide the number of heads; expected a divisor of " +
                          std::to_string(attention.num_heads) + ", found " +
                          std::to_string(attention.num_kv_heads));
    return;
  }
  attention.head_dim = desc.hidden_dim / attention.num_heads;
}

void ReadRope(ConfigReader& config, std::string_view theta_key, std::string_view part_key,
              ModelDesc& desc) {
  AttentionSpec& attention = desc.attention;
  attention.rope.theta = static_cast<float>(config.NumberOr(theta_key, 10000.0, 1.0, 1e12));
  const double part = part_key.empty() ? 1.0 : config.Number(part_key, 0.0, 1.0);
  if (config.Has("rope_scaling")) {
    config.OutOfRange("rope_scaling", "not part of this MoE-LLaVA type; expected null, found " +
                                          Shown(*config.Find("rope_scaling")));
  }
  if (!config.ok()) {
    return;
  }
  attention.rope.rotary_dim = static_cast<int32_t>(attention.head_dim * part);
  if (attention.rope.rotary_dim < 2 || attention.rope.rotary_dim % 2 != 0) {
    config.OutOfRange(part_key.empty() ? "num_attention_heads" : part_key,
                      "rotary dimensions come in pairs; expected an even number of the " +
                          std::to_string(attention.head_dim) + " per head, found " +
                          std::to_string(attention.rope.rotary_dim));
  }
}

void ExpectActivation(ConfigReader& config, std::string_view word) {
  if (const std::string act = config.StringOr("hidden_act", word); act != word && config.ok()) {
    config.OutOfRange("hidden_act", "this type of decoder has one activation; expected \"" +
                                        std::string(word) + "\", found \"" + act.substr(0, 64) +
                                        "\"");
  }
}

void RefuseTrue(ConfigReader& config, std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) {
    if (config.BoolOr(key, false)) {
      config.OutOfRange(key, "not part of this MoE-LLaVA type; expected false, found true");
    }
  }
}

void ReadSwiGlu(ConfigReader& config, ModelDesc& desc) {
  desc.ffn = {.is_gated = true,
              .has_bias = false,
              .activation = ActivationKind::kSilu,
              .inner_dim = config.Int("intermediate_size", 1, kInnerMax)};
  ExpectActivation(config, "silu");
}

void ReadLlamaType(ConfigReader& config, bool is_tied_by_default, ModelDesc& desc) {
  ReadSizes(config, desc);
  desc.tie_embeddings = config.BoolOr("tie_word_embeddings", is_tied_by_default);
  desc.topology = BlockTopology::kSequential;
  desc.norm = {.kind = NormKind::kRmsNorm,
               .eps = static_cast<float>(config.Number("rms_norm_eps", 1e-12, 0.1)),
               .has_bias = false};
  ReadSwiGlu(config, desc);
  ReadHeads(config, "num_attention_heads", desc);
  ReadRope(config, "rope_theta", "", desc);
  UseModelRoot(desc);
  UseLlamaNames(desc);
}

void UseModelRoot(ModelDesc& desc) {
  TensorNames& names = desc.names;
  names.embed = "model.embed_tokens.weight";
  names.lm_head = desc.tie_embeddings ? names.embed : "lm_head.weight";
  names.final_norm = "model.norm";
  names.layer = "model.layers.{L}.";
  names.tower = "model.image_tower.image_tower.vision_model.";
  names.projector = "model.mm_projector.image_spatial_proj";
}

void UseLlamaNames(ModelDesc& desc) {
  TensorNames& names = desc.names;
  names.norm1 = "input_layernorm";
  names.norm2 = "post_attention_layernorm";
  names.q = "self_attn.q_proj";
  names.k = "self_attn.k_proj";
  names.v = "self_attn.v_proj";
  names.o = "self_attn.o_proj";
  names.ffn = "mlp.";
  names.ffn_gate = "gate_proj";
  names.ffn_up = "up_proj";
  names.ffn_down = "down_proj";
}

}  // namespace conclave::checkpoint
