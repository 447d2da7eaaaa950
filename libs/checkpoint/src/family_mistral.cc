// Mistral and OpenChat as MoE-LLaVA stores them (spec 1.2, 2.1, 4.2): Llama's block with
// grouped-query attention and a sliding window.
#include "family_common.h"

namespace conclave::checkpoint {

void ReadMistral(ConfigReader& config, ModelDesc& desc) {
  ReadLlamaType(config, /*is_tied_by_default=*/false, desc);
  if (!config.Has("num_key_value_heads") && !config.IsNull("num_key_value_heads")) {
    config.Fail("config_key", "num_key_value_heads", "missing");
  }
  // The original's config class has this window unless the file says otherwise; null: none.
  constexpr int32_t kDefaultWindow = 4096;
  const int32_t absent = config.IsNull("sliding_window") ? 0 : kDefaultWindow;
  desc.attention.sliding_window = config.IntOr("sliding_window", absent, 1, kPositionsMax);
}

}  // namespace conclave::checkpoint
