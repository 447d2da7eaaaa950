// MiniCPM as MoE-LLaVA stores it (spec 1.2, 2.1, 4.2): Llama's block with three scales and, unless
// the config says otherwise, one matrix for embedding and head.
#include <cmath>

#include "family_common.h"

namespace conclave::checkpoint {

void ReadMiniCpm(ConfigReader& config, ModelDesc& desc) {
  ReadLlamaType(config, /*is_tied_by_default=*/true, desc);
  desc.attention.has_qkv_bias = config.BoolOr("attention_bias", false);
  desc.attention.has_output_bias = desc.attention.has_qkv_bias;
  const double embedding = config.Number("scale_emb", 1e-6, 1e6);
  const double depth = config.Number("scale_depth", 1e-6, 1e6);
  const double base = config.Number("dim_model_base", 1, kHiddenMax);
  if (config.ok()) {
    desc.embedding_scale = static_cast<float>(embedding);
    desc.residual_scale = static_cast<float>(depth / std::sqrt(desc.num_layers));
    desc.head_scale = static_cast<float>(base / desc.hidden_dim);
  }
}

}  // namespace conclave::checkpoint
