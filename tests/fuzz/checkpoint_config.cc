// config.json of any decoder family to a ModelDesc.
//
// Promises: a config is refused with a reason, or describes a model whose every tensor has a name
// of its own, a positive shape and a place in the model, and whose sizes fit each other.
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/model_summary.h"
#include "conclave/checkpoint/tensor_list.h"
#include "model_config.h"

namespace conclave::checkpoint {
namespace {

// An empty folder: the config is all there is.
const ModelFolder& EmptyFolder() {
  static const ModelFolder folder = [] {
    static char pattern[] = "/tmp/conclave-fuzz-XXXXXX";
    CONCLAVE_CHECK(::mkdtemp(pattern) != nullptr);
    absl::StatusOr<ModelFolder> opened = ModelFolder::Open(pattern);
    CONCLAVE_CHECK(opened.ok());
    return *std::move(opened);
  }();
  return folder;
}

void CheckSizes(const ModelDesc& desc) {
  const AttentionSpec& attention = desc.attention;
  CONCLAVE_CHECK(attention.num_heads * attention.head_dim == desc.hidden_dim);
  CONCLAVE_CHECK(attention.num_heads % attention.num_kv_heads == 0);
  CONCLAVE_CHECK(attention.rope.rotary_dim >= 2 && attention.rope.rotary_dim % 2 == 0);
  CONCLAVE_CHECK(attention.rope.rotary_dim <= attention.head_dim);
  CONCLAVE_CHECK(desc.eos_token < desc.vocab_rows && desc.bos_token < desc.vocab_rows);
  CONCLAVE_CHECK(!desc.prompt_template.empty());
  int32_t before = -1;
  for (const MoeLayerSpec& layer : desc.moe.layers) {
    CONCLAVE_CHECK(layer.layer > before && layer.layer < desc.num_layers);
    CONCLAVE_CHECK(desc.moe.top_k >= 1 && desc.moe.top_k <= layer.num_experts);
    before = layer.layer;
  }
  if (desc.vision.kind != TowerKind::kNone) {
    CONCLAVE_CHECK(desc.vision.num_layers_run >= 0);
    CONCLAVE_CHECK(desc.vision.num_layers_run <= desc.vision.num_layers);
    CONCLAVE_CHECK(desc.splice.tokens_per_image >= 1);
    CONCLAVE_CHECK(desc.splice.tokens_per_image < desc.max_positions);
  }
}

void CheckConfig(std::string_view text) {
  const absl::StatusOr<ModelDesc> desc = ReadDesc(EmptyFolder(), text, "");
  if (!desc.ok()) {
    CONCLAVE_CHECK(!ReasonOf(desc.status()).empty());
    return;
  }
  CheckSizes(*desc);
  // Larger models are as well described, but listing them takes its time.
  int64_t num_experts = 0;
  for (const MoeLayerSpec& layer : desc->moe.layers) {
    num_experts += layer.num_experts;
  }
  if (num_experts > 256 || desc->num_layers > 64) {
    return;
  }
  std::set<std::string> names;
  int64_t total = 0;
  for (const ExpectedTensor& tensor : ExpectedTensors(*desc)) {
    CONCLAVE_CHECK(names.insert(tensor.name).second);
    CONCLAVE_CHECK(tensor.num_elements() > 0);
    total += tensor.num_elements();
  }
  CONCLAVE_CHECK(Summarize(*desc, 3).parameters.total == total);
  CONCLAVE_CHECK(LoadedBytes(*desc, DType::kBf16) > 0);
}

}  // namespace
}  // namespace conclave::checkpoint

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::checkpoint::CheckConfig({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
