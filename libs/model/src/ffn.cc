#include "conclave/model/ffn.h"

#include <algorithm>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::model {
namespace {

// Width of the rows that the first matrix writes.
int64_t UpRows(const checkpoint::FfnSpec& spec) {
  return spec.is_gated ? 2 * int64_t{spec.inner_dim} : int64_t{spec.inner_dim};
}

void CheckShapes(const FfnWeights& weights, int64_t x_cols, int64_t rows, const FfnScratch& scratch,
                 MatView<float> y) {
  CONCLAVE_CHECK(weights.up.dtype() == weights.down.dtype());
  CONCLAVE_CHECK(x_cols == weights.up.k() && rows <= scratch.max_rows());
  CONCLAVE_CHECK(y.rows == rows && y.cols == weights.down.n());
}

}  // namespace

kernels::Activation ToKernel(checkpoint::ActivationKind kind) {
  switch (kind) {
    case checkpoint::ActivationKind::kSilu:
      return kernels::Activation::kSilu;
    case checkpoint::ActivationKind::kGeluTanh:
      return kernels::Activation::kGeluTanh;
    case checkpoint::ActivationKind::kGeluErf:
      return kernels::Activation::kGeluErf;
    case checkpoint::ActivationKind::kQuickGelu:
      return kernels::Activation::kQuickGelu;
  }
  CONCLAVE_CHECK(false);
}

size_t FfnBytes(const checkpoint::FfnSpec& spec, int64_t io_dim, DType dtype) {
  return kernels::PackedMatrix::BytesOf(UpRows(spec), io_dim, dtype) +
         kernels::PackedMatrix::BytesOf(io_dim, spec.inner_dim, dtype);
}

absl::StatusOr<FfnWeights> LoadFfn(const WeightSource& source, const std::string& prefix,
                                   int64_t io_dim, DType dtype, ThreadPool& pool) {
  const checkpoint::ModelDesc& desc = source.desc();
  const checkpoint::FfnSpec& spec = desc.ffn;
  std::vector<LinearPart> up_parts;
  if (spec.is_gated) {
    up_parts.push_back({prefix + desc.names.ffn_gate, spec.inner_dim});
  }
  up_parts.push_back({prefix + desc.names.ffn_up, spec.inner_dim});
  const LinearPart down_part[] = {{prefix + desc.names.ffn_down, io_dim}};
  CONCLAVE_ASSIGN_OR_RETURN(Linear up,
                            LoadLinear(source, up_parts, io_dim, spec.has_bias, dtype, pool));
  CONCLAVE_ASSIGN_OR_RETURN(
      Linear down, LoadLinear(source, down_part, spec.inner_dim, spec.has_bias, dtype, pool));
  FfnWeights weights;
  weights.spec = spec;
  weights.up = std::move(up.weight);
  weights.up_bias = std::move(up.bias);
  weights.down = std::move(down.weight);
  weights.down_bias = std::move(down.bias);
  return weights;
}

absl::StatusOr<FfnWeights> LoadFfn(const WeightSource& source, const std::string& prefix,
                                   DType dtype, ThreadPool& pool) {
  return LoadFfn(source, prefix, source.desc().hidden_dim, dtype, pool);
}

FfnScratch::FfnScratch(const checkpoint::FfnSpec& spec, int64_t io_dim, int64_t max_rows,
                       DType dtype)
    : max_rows_(max_rows),
      inner_(static_cast<size_t>(max_rows * UpRows(spec)) * sizeof(float)),
      activated_(spec.is_gated ? static_cast<size_t>(max_rows * spec.inner_dim) * sizeof(float)
                               : 0),
      gemm_(max_rows, std::max<int64_t>(io_dim, spec.inner_dim), dtype) {}

MatView<float> FfnScratch::Activated(const kernels::Context& context, const FfnWeights& weights,
                                     int64_t rows) {
  const kernels::Activation activation = ToKernel(weights.spec.activation);
  const MatView<float> inner(inner_.As<float>(), rows, UpRows(weights.spec));
  if (!weights.spec.is_gated) {
    kernels::Activate(context, activation, inner);
    return inner;
  }
  const MatView<float> out(activated_.As<float>(), rows, weights.spec.inner_dim);
  kernels::GatedActivate(context, activation, inner, out);
  return out;
}

template <typename Element>
void RunFfn(const kernels::Context& context, const FfnWeights& weights, MatView<const Element> x,
            FfnScratch& scratch, MatView<float> y) {
  CheckShapes(weights, x.cols, x.rows, scratch, y);
  const MatView<float> inner(scratch.inner_.As<float>(), x.rows, weights.up.n());
  Multiply(context, weights.up, weights.up_bias, x, scratch.gemm_, inner);
  const MatView<const float> activated = scratch.Activated(context, weights, x.rows);
  Multiply(context, weights.down, weights.down_bias, activated, scratch.gemm_, y);
}

void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const float> x,
                FfnScratch& scratch, MatView<float> y) {
  RunFfn(context, weights, x, scratch, y);
}

void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const Bf16> x,
                FfnScratch& scratch, MatView<float> y) {
  CONCLAVE_CHECK(weights.up.dtype() != DType::kF32);
  RunFfn(context, weights, x, scratch, y);
}

}  // namespace conclave::model
