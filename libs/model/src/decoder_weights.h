// What Decoder::Load reads: everything of the language model that is no expert.
#pragma once

#include <functional>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/model/ffn.h"
#include "conclave/model/linear.h"
#include "conclave/model/weight_source.h"
#include "conclave/tensor/shared_bytes.h"
#include "norm.h"

namespace conclave::model {

struct LayerWeights {
  Norm norm1;
  std::optional<Norm> norm2;  // absent in parallel blocks
  Linear qkv;                 // rows q | k | v
  Linear output;
  std::optional<FfnWeights> ffn;  // dense layers
  std::vector<float> gate;        // MoE layers: [E, io_dim] f32
  // MoE layers with MoeSpec::use_residual: the FFN beside the experts and the linear that mixes the
  // two.
  std::optional<FfnWeights> residual_ffn;
  std::vector<float> coefficient;       // [2, hidden_dim] f32
  std::vector<float> coefficient_bias;  // [2]
};

struct DecoderWeights {
  SharedBytes embedding;  // [vocab_rows, hidden_dim] in RowDtypeOf the numeric mode
  std::vector<LayerWeights> layers;
  Norm final_norm;
  Linear head;

  // Bytes held in memory.
  size_t size_bytes() const;
};

// `on_progress(bytes_done, bytes_total)` may be null.
absl::StatusOr<DecoderWeights> LoadDecoderWeights(
    const WeightSource& source, DType dtype, ThreadPool& pool,
    const std::function<void(int64_t, int64_t)>& on_progress);

}  // namespace conclave::model
