// StableLM-2 as MoE-LLaVA stores it (spec 1.2, 2.1, 2.5): sequential pre-norm blocks with
// LayerNorm, SwiGLU without biases, q/k/v biases, rotary on the first quarter of each head.
#include "model_config.h"

namespace conclave::checkpoint {
namespace {

void ReadAttention(ConfigReader& config, ModelDesc& desc) {
  AttentionSpec& attention = desc.attention;
  const std::string_view heads_key = config.FirstOf({"num_attention_heads", "num_heads"});
  attention.num_heads = config.Int(heads_key, 1, kHeadsMax);
  attention.num_kv_heads = config.IntOr("num_key_value_heads", attention.num_heads, 1, kHeadsMax);
  attention.has_qkv_bias = config.Bool("use_qkv_bias");
  attention.rope.theta = static_cast<float>(config.NumberOr("rope_theta", 10000.0, 1.0, 1e12));
  const std::string_view part_key = config.FirstOf({"rope_pct", "partial_rotary_factor"});
  const double rope_part = config.Number(part_key, 0.0, 1.0);
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
  attention.rope.rotary_dim = static_cast<int32_t>(attention.head_dim * rope_part);
  if (attention.rope.rotary_dim < 2 || attention.rope.rotary_dim % 2 != 0) {
    config.OutOfRange(part_key, "rotary dimensions come in pairs; expected an even number of the " +
                                    std::to_string(attention.head_dim) + " per head, found " +
                                    std::to_string(attention.rope.rotary_dim));
  }
}

TensorNames Names(bool tie_embeddings) {
  TensorNames names;
  names.embed = "model.embed_tokens.weight";
  names.lm_head = tie_embeddings ? names.embed : "lm_head.weight";
  names.final_norm = "model.norm";
  names.layer = "model.layers.{L}.";
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
  return names;
}

}  // namespace

void ReadStablelm(ConfigReader& config, ModelDesc& desc) {
  desc.hidden_dim = config.Int("hidden_size", 1, kHiddenMax);
  desc.num_layers = config.Int("num_hidden_layers", 1, kLayersMax);
  desc.vocab_rows = config.Int("vocab_size", 1, kVocabMax);
  desc.max_positions = config.Int("max_position_embeddings", 1, kPositionsMax);
  desc.tie_embeddings = config.BoolOr("tie_word_embeddings", false);
  desc.topology = BlockTopology::kSequential;
  desc.norm.kind = NormKind::kLayerNorm;
  desc.norm.has_bias = true;
  desc.norm.eps =
      static_cast<float>(config.Number(config.FirstOf({"norm_eps", "layer_norm_eps"}), 1e-12, 0.1));
  desc.ffn.is_gated = true;
  desc.ffn.has_bias = false;
  desc.ffn.activation = ActivationKind::kSilu;
  desc.ffn.inner_dim = config.Int("intermediate_size", 1, kInnerMax);
  if (const std::string act = config.StringOr("hidden_act", "silu"); act != "silu" && config.ok()) {
    config.OutOfRange("hidden_act",
                      "the StableLM type has one activation; expected \"silu\", found \"" +
                          act.substr(0, 64) + "\"");
  }
  // Keys of Stability's later models, whose maths is another one.
  for (const std::string_view key : {"use_parallel_residual", "qk_layernorm"}) {
    if (config.BoolOr(key, false)) {
      config.OutOfRange(key, "not part of the MoE-LLaVA StableLM type; expected false, found true");
    }
  }
  if (config.Has("rope_scaling")) {
    config.OutOfRange("rope_scaling",
                      "not part of the MoE-LLaVA StableLM type; expected null, found " +
                          Shown(*config.Find("rope_scaling")));
  }
  ReadAttention(config, desc);
  desc.names = Names(desc.tie_embeddings);
}

}  // namespace conclave::checkpoint
