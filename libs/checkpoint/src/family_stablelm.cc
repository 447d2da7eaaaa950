// StableLM-2 as MoE-LLaVA stores it (spec 1.2, 2.1, 2.5): sequential pre-norm blocks with
// LayerNorm, SwiGLU without biases, q/k/v biases, rotary on the first quarter of each head.
#include "family_common.h"

namespace conclave::checkpoint {

void ReadStablelm(ConfigReader& config, ModelDesc& desc) {
  ReadSizes(config, desc);
  desc.tie_embeddings = config.BoolOr("tie_word_embeddings", false);
  desc.topology = BlockTopology::kSequential;
  const std::string_view eps_key = config.FirstOf({"norm_eps", "layer_norm_eps"});
  desc.norm = {.kind = NormKind::kLayerNorm,
               .eps = static_cast<float>(config.Number(eps_key, 1e-12, 0.1)),
               .has_bias = true};
  ReadSwiGlu(config, desc);
  // Keys of Stability's later models, whose maths is another one.
  RefuseTrue(config, {"use_parallel_residual", "qk_layernorm"});
  ReadHeads(config, config.FirstOf({"num_attention_heads", "num_heads"}), desc);
  desc.attention.has_qkv_bias = config.Bool("use_qkv_bias");
  ReadRope(config, "rope_theta", config.FirstOf({"rope_pct", "partial_rotary_factor"}), desc);
  UseModelRoot(desc);
  UseLlamaNames(desc);
}

}  // namespace conclave::checkpoint
