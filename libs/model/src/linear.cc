#include "conclave/model/linear.h"

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"

namespace conclave::model {
absl::StatusOr<Linear> LoadLinear(const WeightSource& source, std::span<const LinearPart> parts,
                                  int64_t k, bool has_bias, DType dtype, ThreadPool& pool) {
  std::vector<MatrixPart> weights;
  for (const LinearPart& part : parts) {
    weights.push_back({part.name + ".weight", {part.rows, k}});
  }
  Linear linear;
  CONCLAVE_ASSIGN_OR_RETURN(linear.weight, source.Matrix(weights, k, dtype, pool));
  for (size_t i = 0; has_bias && i < parts.size(); ++i) {
    const int64_t shape[] = {parts[i].rows};
    CONCLAVE_ASSIGN_OR_RETURN(const std::vector<float> bias,
                              source.Floats(parts[i].name + ".bias", shape));
    linear.bias.insert(linear.bias.end(), bias.begin(), bias.end());
  }
  return linear;
}

GemmScratch::GemmScratch(int64_t max_rows, int64_t max_k, DType dtype) {
  if (dtype == DType::kBf16) {
    max_elements_ = max_rows * max_k;
    rounded_ = AlignedBuffer(static_cast<size_t>(max_elements_) * sizeof(Bf16));
  } else if (dtype == DType::kQ8) {
    q8_ = kernels::Q8Scratch(max_rows, max_k);
  }
}

kernels::ActivatedRows GemmScratch::Rows(int64_t first, int64_t rows, int64_t cols) {
  kernels::ActivatedRows out;
  if (max_elements_ > 0) {
    CONCLAVE_CHECK(first >= 0 && (first + rows) * cols <= max_elements_);
    out.bf16 = MatView<Bf16>(rounded_.As<Bf16>() + first * cols, rows, cols);
  } else if (q8_.max_rows() > 0) {
    out.q8 = q8_.Rows(first, rows, cols);
  }
  return out;
}

void Multiply(const kernels::Context& context, const kernels::PackedMatrix& w,
              std::span<const float> bias, MatView<const float> x, GemmScratch& scratch,
              MatView<float> y) {
  if (w.dtype() == DType::kQ8) {
    kernels::MatMul(context, scratch.q8_.Quantize(context, x), w, bias, y);
  } else if (w.dtype() == DType::kBf16) {
    CONCLAVE_CHECK(x.rows * x.cols <= scratch.max_elements_);
    const MatView<Bf16> rounded(scratch.rounded_.As<Bf16>(), x.rows, x.cols, x.cols);
    kernels::RoundToBf16(context, x, rounded);
    kernels::MatMul(context, rounded, w, bias, y);
  } else {
    kernels::MatMul(context, x, w, bias, y);
  }
}

void Multiply(const kernels::Context& context, const kernels::PackedMatrix& w,
              std::span<const float> bias, MatView<const Bf16> x, GemmScratch& scratch,
              MatView<float> y) {
  if (w.dtype() == DType::kQ8) {
    kernels::MatMul(context, scratch.q8_.Quantize(context, x), w, bias, y);
  } else {
    kernels::MatMul(context, x, w, bias, y);
  }
}

void ApplyLinear(const kernels::Context& context, const Linear& linear, MatView<const float> x,
                 GemmScratch& scratch, MatView<float> y) {
  Multiply(context, linear.weight, linear.bias, x, scratch, y);
}

}  // namespace conclave::model
