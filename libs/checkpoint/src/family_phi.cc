// Phi-2 as MoE-LLaVA stores it (spec 1.2, 2.1, 2.5): one LayerNorm per block, attention and FFN in
// parallel behind it, biases everywhere but in the head, a plain two-matrix FFN, rotary on a part
// of each head.
#include <string>

#include "family_common.h"

namespace conclave::checkpoint {
namespace {

void ReadPhiFfn(ConfigReader& config, ModelDesc& desc) {
  desc.ffn = {.is_gated = false,
              .has_bias = true,
              .activation = ActivationKind::kGeluTanh,
              .inner_dim = config.Int("intermediate_size", 1, kInnerMax)};
  const std::string act = config.StringOr("hidden_act", "gelu_new");
  if (act == "gelu") {
    desc.ffn.activation = ActivationKind::kGeluErf;
  } else if (act != "gelu_new" && act != "gelu_pytorch_tanh" && config.ok()) {
    config.OutOfRange("hidden_act",
                      "unknown; expected gelu_new, gelu_pytorch_tanh or gelu, found \"" +
                          act.substr(0, 64) + "\"");
  }
}

}  // namespace

void ReadPhi(ConfigReader& config, ModelDesc& desc) {
  ReadSizes(config, desc);
  desc.tie_embeddings = config.BoolOr("tie_word_embeddings", false);
  desc.topology = BlockTopology::kParallel;
  desc.norm = {.kind = NormKind::kLayerNorm,
               .eps = static_cast<float>(config.Number("layer_norm_eps", 1e-12, 0.1)),
               .has_bias = true};
  ReadPhiFfn(config, desc);
  RefuseTrue(config, {"qk_layernorm"});
  ReadHeads(config, "num_attention_heads", desc);
  desc.attention.has_qkv_bias = true;
  desc.attention.has_output_bias = true;
  ReadRope(config, "rope_theta", "partial_rotary_factor", desc);
  UseModelRoot(desc);
  UseLlamaNames(desc);
  TensorNames& names = desc.names;
  names.final_norm = "model.final_layernorm";
  names.norm2.clear();
  names.o = "self_attn.dense";
  names.ffn_gate.clear();
  names.ffn_up = "fc1";
  names.ffn_down = "fc2";
}

}  // namespace conclave::checkpoint
