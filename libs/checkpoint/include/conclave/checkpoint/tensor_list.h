// The tensors that a ModelDesc implies: what a checkpoint of that model holds, by name and shape
// (spec 2.5). Opening a checkpoint, counting its parameters and writing a synthetic one all start
// from this list.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "conclave/checkpoint/model_desc.h"

namespace conclave::checkpoint {

enum class TensorPart {
  kEmbedding,
  kHead,
  kNorm,
  kAttention,
  kDenseFfn,
  kGate,
  kExpert,
  kResidualFfn,  // and its coefficient
  kProjector,
  kTower,
};

struct ExpectedTensor {
  std::string name;
  std::vector<int64_t> shape;
  TensorPart part = TensorPart::kNorm;
  int32_t layer = -1;   // of the decoder, or of the tower; -1: outside the layers
  int32_t expert = -1;  // kExpert only
  // False for what published files hold but nothing computes with: tower layers behind the selected
  // one, its last norm and SigLIP's pooling head.
  bool is_needed = true;

  int64_t num_elements() const;
};

// In the order of the original's state dict. `desc` is one that ReadModelDesc returned.
std::vector<ExpectedTensor> ExpectedTensors(const ModelDesc& desc);

// "model.layers.3."
std::string LayerPrefix(const TensorNames& names, int32_t layer);
// "model.layers.2.mlp.deepspeed_moe.experts.deepspeed_experts.1."
std::string ExpertPrefix(const TensorNames& names, int32_t layer, int32_t expert);

}  // namespace conclave::checkpoint
