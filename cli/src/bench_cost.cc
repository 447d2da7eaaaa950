#include "bench_cost.h"

#include <algorithm>

#include "conclave/kernels/attention.h"
#include "conclave/kernels/matmul.h"
#include "conclave/model/ffn.h"

namespace conclave::cli {
namespace {

using checkpoint::FfnSpec;
using checkpoint::ModelDesc;

constexpr double kF32Bytes = 4.0;

double MatrixBytes(int64_t n, int64_t k, DType dtype) {
  return static_cast<double>(kernels::PackedMatrix::BytesOf(n, k, dtype));
}

// Multiply-adds of a row times a matrix, as operations.
double RowOperations(int64_t n, int64_t k) {
  return 2.0 * static_cast<double>(n) * static_cast<double>(k);
}

double FfnBytes(const FfnSpec& spec, int64_t width, DType dtype) {
  const int64_t up_rows = (spec.is_gated ? 2 : 1) * int64_t{spec.inner_dim};
  const double biases = spec.has_bias ? static_cast<double>(up_rows + width) * kF32Bytes : 0.0;
  return static_cast<double>(model::FfnBytes(spec, width, dtype)) + biases;
}

double FfnOperations(const FfnSpec& spec, int64_t width) {
  return (spec.is_gated ? 3.0 : 2.0) * RowOperations(spec.inner_dim, width);
}

double NormBytes(const ModelDesc& desc) {
  const bool has_bias = desc.norm.kind == checkpoint::NormKind::kLayerNorm && desc.norm.has_bias;
  return (has_bias ? 2.0 : 1.0) * desc.hidden_dim * kF32Bytes;
}

}  // namespace

CostModel::CostModel(const ModelDesc& desc, DType dtype) : window_(desc.attention.sliding_window) {
  const checkpoint::AttentionSpec& attention = desc.attention;
  const int64_t width = desc.hidden_dim;
  const int64_t q_rows = int64_t{attention.num_heads} * attention.head_dim;
  const int64_t kv_rows = int64_t{attention.num_kv_heads} * attention.head_dim;
  const int64_t qkv_rows = q_rows + 2 * kv_rows;
  const bool has_second_norm = desc.topology == checkpoint::BlockTopology::kSequential;
  for (int32_t layer = 0; layer < desc.num_layers; ++layer) {
    shared_bytes_ += MatrixBytes(qkv_rows, width, dtype) + MatrixBytes(width, q_rows, dtype);
    shared_bytes_ += attention.has_qkv_bias ? static_cast<double>(qkv_rows) * kF32Bytes : 0.0;
    shared_bytes_ += attention.has_output_bias ? static_cast<double>(width) * kF32Bytes : 0.0;
    shared_bytes_ += (has_second_norm ? 2.0 : 1.0) * NormBytes(desc);
    row_operations_ += RowOperations(qkv_rows, width) + RowOperations(width, q_rows);
    const checkpoint::MoeLayerSpec* moe = desc.FindMoe(layer);
    if (moe == nullptr) {
      shared_bytes_ += FfnBytes(desc.ffn, width, dtype);
      row_operations_ += FfnOperations(desc.ffn, width);
      continue;
    }
    shared_bytes_ += static_cast<double>(moe->num_experts * width) * kF32Bytes;
    row_operations_ += RowOperations(moe->num_experts, width) +
                       desc.moe.top_k * FfnOperations(desc.ffn, desc.moe.io_dim);
    if (desc.moe.use_residual) {
      // Beside the experts: the network, and the linear of two outputs that mixes the two.
      shared_bytes_ +=
          FfnBytes(desc.ffn, width, dtype) + 2.0 * static_cast<double>(width + 1) * kF32Bytes;
      row_operations_ += FfnOperations(desc.ffn, width) + RowOperations(2, width);
    }
  }
  expert_bytes_ = desc.moe.layers.empty() ? 0.0 : FfnBytes(desc.ffn, desc.moe.io_dim, dtype);
  head_bytes_ = MatrixBytes(desc.vocab_rows, width, dtype) + NormBytes(desc);
  head_operations_ = RowOperations(desc.vocab_rows, width);
  const DType rows = RowDtypeOf(dtype);
  embedding_bytes_ = static_cast<double>(width) * static_cast<double>(SizeOf(rows));
  const kernels::KvLayout kv{attention.num_kv_heads, attention.head_dim, rows};
  kv_bytes_ = static_cast<double>(kv.block_bytes()) / kernels::kKvBlockTokens * desc.num_layers;
  // q · k and p · v.
  attention_operations_ = 2.0 * RowOperations(q_rows, 1) * desc.num_layers;
}

int64_t CostModel::SeenBy(int64_t position) const {
  return window_ > 0 ? std::min(position, window_) + 1 : position + 1;
}

StepCost CostModel::Of(const StepWork& work) const {
  const auto rows = static_cast<double>(work.num_rows);
  const auto logit_rows = static_cast<double>(work.num_logit_rows);
  StepCost cost;
  cost.bytes = shared_bytes_ + (work.num_logit_rows > 0 ? head_bytes_ : 0.0) +
               static_cast<double>(work.experts_used) * expert_bytes_ + rows * embedding_bytes_ +
               static_cast<double>(work.positions_read) * kv_bytes_;
  cost.operations = rows * row_operations_ + logit_rows * head_operations_ +
                    static_cast<double>(work.positions_attended) * attention_operations_;
  return cost;
}

double ImageOperations(const ModelDesc& desc) {
  const checkpoint::VisionSpec& spec = desc.vision;
  if (spec.kind == checkpoint::TowerKind::kNone) {
    return 0;
  }
  const double positions = spec.num_positions();
  const int64_t width = spec.hidden_dim;
  const double layer =
      positions * (4.0 * RowOperations(width, width) + 2.0 * RowOperations(spec.inner_dim, width)) +
      positions * positions * 2.0 * RowOperations(width, 1);
  double operations =
      spec.num_layers_run * layer +
      spec.num_patches() * RowOperations(width, int64_t{3} * spec.patch_size * spec.patch_size);
  const checkpoint::ProjectorSpec& projector = desc.projector;
  if (projector.kind == checkpoint::ProjectorKind::kLinear ||
      projector.kind == checkpoint::ProjectorKind::kMlpGelu) {
    const int32_t linears =
        projector.kind == checkpoint::ProjectorKind::kLinear ? 1 : projector.num_linears;
    operations += desc.splice.tokens_per_image *
                  (RowOperations(desc.hidden_dim, width) +
                   (linears - 1) * RowOperations(desc.hidden_dim, desc.hidden_dim));
  }
  return operations;
}

}  // namespace conclave::cli
