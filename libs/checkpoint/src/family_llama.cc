// Llama and Vicuna as MoE-LLaVA stores them (spec 1.2, 2.1): everything from the config.
#include "family_common.h"

namespace conclave::checkpoint {

void ReadLlama(ConfigReader& config, ModelDesc& desc) {
  ReadLlamaType(config, /*is_tied_by_default=*/false, desc);
  desc.attention.has_qkv_bias = config.BoolOr("attention_bias", false);
  desc.attention.has_output_bias = desc.attention.has_qkv_bias;
}

}  // namespace conclave::checkpoint
