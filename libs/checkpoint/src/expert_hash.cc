#include "conclave/checkpoint/expert_hash.h"

#include <algorithm>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/packed_file.h"
#include "conclave/checkpoint/tensor_list.h"
#include "sha256.h"

namespace conclave::checkpoint {

absl::StatusOr<WeightHash> HashExpert(const Checkpoint& checkpoint, int32_t layer, int32_t expert) {
  const MoeLayerSpec* moe = checkpoint.desc().FindMoe(layer);
  if (moe == nullptr || expert < 0 || expert >= moe->num_experts) {
    return NotFound("placement_unknown_unit", "expected an expert of the model, found layer " +
                                                  std::to_string(layer) + " expert " +
                                                  std::to_string(expert));
  }
  if (checkpoint.packed() != nullptr) {
    return checkpoint.packed()->HashOf(layer, expert);
  }
  const std::string prefix = ExpertPrefix(checkpoint.desc().names, layer, expert);
  const std::span<const TensorView> tensors = checkpoint.tensors();
  auto it = std::lower_bound(
      tensors.begin(), tensors.end(), prefix,
      [](const TensorView& tensor, const std::string& name) { return tensor.name < name; });
  Sha256 hash;
  for (; it != tensors.end() && it->name.starts_with(prefix); ++it) {
    CONCLAVE_ASSIGN_OR_RETURN(const TensorView tensor, checkpoint.Require(it->name, it->shape));
    hash.AddText(tensor.name.substr(prefix.size()));
    hash.AddText(NameOf(tensor.dtype));
    const uint64_t num_dims = tensor.shape.size();
    hash.Add(&num_dims, sizeof num_dims);
    hash.Add(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
    hash.Add(tensor.bytes.data(), tensor.bytes.size());
  }
  return hash.Digest();
}

}  // namespace conclave::checkpoint
