#include "decoder_weights.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"

namespace conclave::model {
namespace {

using checkpoint::Checkpoint;
using checkpoint::ModelDesc;

template <typename Convert>
void ConvertRows(int64_t rows, int64_t cols, ThreadPool& pool, const Convert& convert) {
  pool.ParallelFor(rows, [&](int64_t row) { convert(row * cols, cols); });
}

absl::Status LoadEmbedding(const Checkpoint& checkpoint, DType mode, ThreadPool& pool,
                           AlignedBuffer& out) {
  const ModelDesc& desc = checkpoint.desc();
  const int64_t shape[] = {desc.vocab_rows, desc.hidden_dim};
  CONCLAVE_ASSIGN_OR_RETURN(const checkpoint::TensorView tensor,
                            checkpoint.Require(desc.names.embed, shape));
  const int64_t count = tensor.num_elements();
  const DType dtype = RowDtypeOf(mode);
  out = AlignedBuffer(static_cast<size_t>(count) * SizeOf(dtype));
  if (tensor.dtype == dtype) {
    std::memcpy(out.As<std::byte>(), tensor.bytes.data(), tensor.bytes.size());
  } else {
    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> values, checkpoint::ToFloats(tensor));
    ConvertRows(desc.vocab_rows, desc.hidden_dim, pool, [&](int64_t first, int64_t n) {
      for (int64_t i = first; i < first + n; ++i) {
        if (dtype == DType::kBf16) {
          out.As<Bf16>()[i] = ToBf16(values[static_cast<size_t>(i)]);
        } else {
          out.As<float>()[i] = values[static_cast<size_t>(i)];
        }
      }
    });
  }
  checkpoint.Release(tensor);
  return absl::OkStatus();
}

absl::Status LoadResidual(const Checkpoint& checkpoint, const std::string& prefix, DType dtype,
                          ThreadPool& pool, LayerWeights& weights) {
  const ModelDesc& desc = checkpoint.desc();
  CONCLAVE_ASSIGN_OR_RETURN(weights.residual_ffn,
                            LoadFfn(checkpoint, prefix + desc.names.residual_ffn, dtype, pool));
  const std::string name = prefix + desc.names.residual_coefficient;
  const int64_t weight_shape[] = {2, desc.hidden_dim};
  CONCLAVE_ASSIGN_OR_RETURN(weights.coefficient,
                            LoadFloats(checkpoint, name + ".weight", weight_shape));
  const int64_t bias_shape[] = {2};
  CONCLAVE_ASSIGN_OR_RETURN(weights.coefficient_bias,
                            LoadFloats(checkpoint, name + ".bias", bias_shape));
  return absl::OkStatus();
}

absl::StatusOr<LayerWeights> LoadLayer(const Checkpoint& checkpoint, int32_t layer, DType dtype,
                                       ThreadPool& pool) {
  const ModelDesc& desc = checkpoint.desc();
  const checkpoint::AttentionSpec& attention = desc.attention;
  const std::string prefix = checkpoint::LayerPrefix(desc.names, layer);
  const int64_t q_rows = static_cast<int64_t>(attention.num_heads) * attention.head_dim;
  const int64_t kv_rows = static_cast<int64_t>(attention.num_kv_heads) * attention.head_dim;

  LayerWeights weights;
  CONCLAVE_ASSIGN_OR_RETURN(
      weights.norm1, Norm::Load(checkpoint, prefix + desc.names.norm1, desc.norm, desc.hidden_dim));
  if (!desc.names.norm2.empty()) {
    CONCLAVE_ASSIGN_OR_RETURN(weights.norm2, Norm::Load(checkpoint, prefix + desc.names.norm2,
                                                        desc.norm, desc.hidden_dim));
  }
  std::vector<LinearPart> parts;
  if (attention.is_fused_qkv) {
    parts = {{prefix + desc.names.qkv, q_rows + 2 * kv_rows}};
  } else {
    parts = {{prefix + desc.names.q, q_rows},
             {prefix + desc.names.k, kv_rows},
             {prefix + desc.names.v, kv_rows}};
  }
  CONCLAVE_ASSIGN_OR_RETURN(weights.qkv, LoadLinear(checkpoint, parts, desc.hidden_dim,
                                                    attention.has_qkv_bias, dtype, pool));
  const LinearPart output[] = {{prefix + desc.names.o, desc.hidden_dim}};
  CONCLAVE_ASSIGN_OR_RETURN(weights.output, LoadLinear(checkpoint, output, q_rows,
                                                       attention.has_output_bias, dtype, pool));
  if (const checkpoint::MoeLayerSpec* moe = desc.FindMoe(layer)) {
    const int64_t shape[] = {moe->num_experts, desc.hidden_dim};
    CONCLAVE_ASSIGN_OR_RETURN(
        weights.gate, LoadFloats(checkpoint, prefix + desc.names.moe_gate + ".weight", shape));
    if (desc.moe.use_residual) {
      CONCLAVE_RETURN_IF_ERROR(LoadResidual(checkpoint, prefix, dtype, pool, weights));
    }
  } else {
    CONCLAVE_ASSIGN_OR_RETURN(weights.ffn,
                              LoadFfn(checkpoint, prefix + desc.names.ffn, dtype, pool));
  }
  return weights;
}

}  // namespace

size_t DecoderWeights::size_bytes() const {
  size_t bytes = embedding.size_bytes() + head.size_bytes();
  for (const LayerWeights& layer : layers) {
    bytes += layer.qkv.size_bytes() + layer.output.size_bytes() + layer.gate.size() * sizeof(float);
    if (layer.ffn.has_value()) {
      bytes += layer.ffn->size_bytes();
    }
    if (layer.residual_ffn.has_value()) {
      bytes += layer.residual_ffn->size_bytes();
    }
  }
  return bytes;
}

absl::StatusOr<DecoderWeights> LoadDecoderWeights(
    const Checkpoint& checkpoint, DType dtype, ThreadPool& pool,
    const std::function<void(int64_t, int64_t)>& on_progress) {
  const ModelDesc& desc = checkpoint.desc();
  // Layers, embedding and head are of comparable size: counting them is exact enough for a bar.
  const int64_t num_parts = desc.num_layers + 2;
  int64_t done = 0;
  const auto advance = [&] {
    ++done;
    if (on_progress != nullptr) {
      on_progress(done, num_parts);
    }
  };
  DecoderWeights weights;
  CONCLAVE_RETURN_IF_ERROR(LoadEmbedding(checkpoint, dtype, pool, weights.embedding));
  advance();
  // Before the layers: it is the largest, and while it is packed its stored form is resident too.
  const int64_t head_shape[] = {desc.vocab_rows, desc.hidden_dim};
  weights.head.weight = kernels::PackedMatrix(desc.vocab_rows, desc.hidden_dim, dtype);
  CONCLAVE_RETURN_IF_ERROR(PackTensor(checkpoint,
                                      desc.tie_embeddings ? desc.names.embed : desc.names.lm_head,
                                      head_shape, weights.head.weight, 0, pool));
  advance();
  for (int32_t layer = 0; layer < desc.num_layers; ++layer) {
    CONCLAVE_ASSIGN_OR_RETURN(LayerWeights loaded, LoadLayer(checkpoint, layer, dtype, pool));
    weights.layers.push_back(std::move(loaded));
    advance();
  }
  CONCLAVE_ASSIGN_OR_RETURN(weights.final_norm, Norm::Load(checkpoint, desc.names.final_norm,
                                                           desc.norm, desc.hidden_dim));
  return weights;
}

}  // namespace conclave::model
