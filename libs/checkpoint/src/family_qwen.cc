// Qwen v1 as MoE-LLaVA stores it (spec 1.2, 2.1, 2.5, 4.2): Llama's block under other names, q, k
// and v in one tensor with a bias, an intermediate_size of twice the real width, and two rules for
// prompts beyond seq_length.
#include <string>

#include "family_common.h"

namespace conclave::checkpoint {
namespace {

void ReadQwenFfn(ConfigReader& config, ModelDesc& desc) {
  // The config counts both halves of the gated layer.
  const int32_t both = config.Int("intermediate_size", 2, 2 * kInnerMax);
  if (both % 2 != 0) {
    config.OutOfRange(
        "intermediate_size",
        "twice the FFN's width; expected an even number, found " + std::to_string(both));
  }
  desc.ffn = {.is_gated = true,
              .has_bias = false,
              .activation = ActivationKind::kSilu,
              .inner_dim = both / 2};
}

void ReadAttention(ConfigReader& config, ModelDesc& desc) {
  AttentionSpec& attention = desc.attention;
  ReadHeads(config, "num_attention_heads", desc);
  if (const int32_t width = config.IntOr("kv_channels", attention.head_dim, 1, kHiddenMax);
      width != attention.head_dim && config.ok()) {
    config.OutOfRange("kv_channels", "not hidden_size / num_attention_heads; expected " +
                                         std::to_string(attention.head_dim) + ", found " +
                                         std::to_string(width));
  }
  if (attention.num_kv_heads != attention.num_heads && config.ok()) {
    config.OutOfRange("num_key_value_heads",
                      "Qwen v1 stores q, k and v as equal thirds; expected " +
                          std::to_string(attention.num_heads) + ", found " +
                          std::to_string(attention.num_kv_heads));
  }
  attention.has_qkv_bias = true;
  attention.is_fused_qkv = true;
  ReadRope(config, "rotary_emb_base", config.Has("rotary_pct") ? "rotary_pct" : "", desc);
  const bool has_ntk = config.BoolOr("use_dynamic_ntk", true);
  const bool has_logn = config.BoolOr("use_logn_attn", true);
  if (has_ntk || has_logn) {
    const int32_t trained = config.Int("seq_length", 2, kPositionsMax);
    attention.rope.ntk_length = has_ntk ? trained : 0;
    attention.logn_length = has_logn ? trained : 0;
  }
}

}  // namespace

void ReadQwen(ConfigReader& config, ModelDesc& desc) {
  ReadSizes(config, desc);
  desc.tie_embeddings = config.BoolOr("tie_word_embeddings", false);
  desc.topology = BlockTopology::kSequential;
  desc.norm = {.kind = NormKind::kRmsNorm,
               .eps = static_cast<float>(config.Number("layer_norm_epsilon", 1e-12, 0.1)),
               .has_bias = false};
  ReadQwenFfn(config, desc);
  ReadAttention(config, desc);
  if (!config.BoolOr("no_bias", true)) {
    desc.attention.has_output_bias = true;
    desc.ffn.has_bias = true;
  }
  if (!config.BoolOr("scale_attn_weights", true)) {
    config.OutOfRange("scale_attn_weights",
                      "scores are always divided by the root of the head's width; expected true, "
                      "found false");
  }
  TensorNames& names = desc.names;
  names.embed = "transformer.wte.weight";
  names.lm_head = desc.tie_embeddings ? names.embed : "lm_head.weight";
  names.final_norm = "transformer.ln_f";
  names.layer = "transformer.h.{L}.";
  names.tower = "transformer.image_tower.image_tower.vision_model.";
  names.projector = "transformer.mm_projector.image_spatial_proj";
  names.norm1 = "ln_1";
  names.norm2 = "ln_2";
  names.qkv = "attn.c_attn";
  names.o = "attn.c_proj";
  names.ffn = "mlp.";
  // c_proj(w1(x) ⊙ silu(w2(x))).
  names.ffn_gate = "w2";
  names.ffn_up = "w1";
  names.ffn_down = "c_proj";
}

}  // namespace conclave::checkpoint
