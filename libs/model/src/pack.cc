#include "conclave/model/pack.h"

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"
#include "conclave/model/ffn.h"
#include "decoder_weights.h"
#include "tower_weights.h"

namespace conclave::model {

absl::Status PackModel(const checkpoint::Checkpoint& checkpoint, DType dtype, ThreadPool& pool,
                       checkpoint::PackedWriter& writer) {
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  const WeightSource source(checkpoint, writer);
  CONCLAVE_RETURN_IF_ERROR(LoadDecoderWeights(source, dtype, pool, nullptr).status());
  if (desc.vision.kind != checkpoint::TowerKind::kNone) {
    CONCLAVE_RETURN_IF_ERROR(RecordTower(source, dtype, pool));
  }
  for (const checkpoint::MoeLayerSpec& moe : desc.moe.layers) {
    for (int32_t expert = 0; expert < moe.num_experts; ++expert) {
      CONCLAVE_RETURN_IF_ERROR(writer.AddExpert(moe.layer, expert));
      const std::string prefix = checkpoint::ExpertPrefix(desc.names, moe.layer, expert);
      CONCLAVE_RETURN_IF_ERROR(LoadFfn(source, prefix, desc.moe.io_dim, dtype, pool).status());
    }
  }
  return absl::OkStatus();
}

}  // namespace conclave::model
