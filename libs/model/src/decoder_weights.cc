#include "decoder_weights.h"

#include <string>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/checkpoint/tensor_list.h"

namespace conclave::model {
namespace {

using checkpoint::ModelDesc;

absl::Status LoadResidual(const WeightSource& source, const std::string& prefix, DType dtype,
                          ThreadPool& pool, LayerWeights& weights) {
  const ModelDesc& desc = source.desc();
  CONCLAVE_ASSIGN_OR_RETURN(weights.residual_ffn,
                            LoadFfn(source, prefix + desc.names.residual_ffn, dtype, pool));
  const std::string name = prefix + desc.names.residual_coefficient;
  const int64_t weight_shape[] = {2, desc.hidden_dim};
  CONCLAVE_ASSIGN_OR_RETURN(weights.coefficient, source.Floats(name + ".weight", weight_shape));
  const int64_t bias_shape[] = {2};
  CONCLAVE_ASSIGN_OR_RETURN(weights.coefficient_bias, source.Floats(name + ".bias", bias_shape));
  return absl::OkStatus();
}

absl::StatusOr<LayerWeights> LoadLayer(const WeightSource& source, int32_t layer, DType dtype,
                                       ThreadPool& pool) {
  const ModelDesc& desc = source.desc();
  const checkpoint::AttentionSpec& attention = desc.attention;
  const std::string prefix = checkpoint::LayerPrefix(desc.names, layer);
  const int64_t q_rows = static_cast<int64_t>(attention.num_heads) * attention.head_dim;
  const int64_t kv_rows = static_cast<int64_t>(attention.num_kv_heads) * attention.head_dim;

  LayerWeights weights;
  CONCLAVE_ASSIGN_OR_RETURN(
      weights.norm1, Norm::Load(source, prefix + desc.names.norm1, desc.norm, desc.hidden_dim));
  if (!desc.names.norm2.empty()) {
    CONCLAVE_ASSIGN_OR_RETURN(
        weights.norm2, Norm::Load(source, prefix + desc.names.norm2, desc.norm, desc.hidden_dim));
  }
  std::vector<LinearPart> parts;
  if (attention.is_fused_qkv) {
    parts = {{prefix + desc.names.qkv, q_rows + 2 * kv_rows}};
  } else {
    parts = {{prefix + desc.names.q, q_rows},
             {prefix + desc.names.k, kv_rows},
             {prefix + desc.names.v, kv_rows}};
  }
  CONCLAVE_ASSIGN_OR_RETURN(
      weights.qkv, LoadLinear(source, parts, desc.hidden_dim, attention.has_qkv_bias, dtype, pool));
  const LinearPart output[] = {{prefix + desc.names.o, desc.hidden_dim}};
  CONCLAVE_ASSIGN_OR_RETURN(
      weights.output, LoadLinear(source, output, q_rows, attention.has_output_bias, dtype, pool));
  if (const checkpoint::MoeLayerSpec* moe = desc.FindMoe(layer)) {
    const int64_t shape[] = {moe->num_experts, desc.hidden_dim};
    CONCLAVE_ASSIGN_OR_RETURN(weights.gate,
                              source.Floats(prefix + desc.names.moe_gate + ".weight", shape));
    if (desc.moe.use_residual) {
      CONCLAVE_RETURN_IF_ERROR(LoadResidual(source, prefix, dtype, pool, weights));
    }
  } else {
    CONCLAVE_ASSIGN_OR_RETURN(weights.ffn, LoadFfn(source, prefix + desc.names.ffn, dtype, pool));
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
    const WeightSource& source, DType dtype, ThreadPool& pool,
    const std::function<void(int64_t, int64_t)>& on_progress) {
  const ModelDesc& desc = source.desc();
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
  CONCLAVE_ASSIGN_OR_RETURN(
      weights.embedding,
      source.Rows(desc.names.embed, desc.vocab_rows, desc.hidden_dim, RowDtypeOf(dtype), pool));
  advance();
  // Before the layers: it is the largest, and while it is packed its stored form is resident too.
  const MatrixPart head[] = {{desc.tie_embeddings ? desc.names.embed : desc.names.lm_head,
                              {desc.vocab_rows, desc.hidden_dim}}};
  CONCLAVE_ASSIGN_OR_RETURN(weights.head.weight, source.Matrix(head, desc.hidden_dim, dtype, pool));
  advance();
  for (int32_t layer = 0; layer < desc.num_layers; ++layer) {
    CONCLAVE_ASSIGN_OR_RETURN(LayerWeights loaded, LoadLayer(source, layer, dtype, pool));
    weights.layers.push_back(std::move(loaded));
    advance();
  }
  CONCLAVE_ASSIGN_OR_RETURN(weights.final_norm,
                            Norm::Load(source, desc.names.final_norm, desc.norm, desc.hidden_dim));
  return weights;
}

}  // namespace conclave::model
