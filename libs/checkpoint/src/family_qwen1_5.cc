// Qwen1.5 (HF Qwen2) as MoE-LLaVA stores it (spec 1.2, 2.1): Llama's block with biases on q, k and
// v. The published configs name a window that the original does not use.
#include "family_common.h"

namespace conclave::checkpoint {

void ReadQwen15(ConfigReader& config, ModelDesc& desc) {
  ReadLlamaType(config, /*is_tied_by_default=*/false, desc);
  desc.attention.has_qkv_bias = true;
  RefuseTrue(config, {"use_sliding_window"});
}

}  // namespace conclave::checkpoint
