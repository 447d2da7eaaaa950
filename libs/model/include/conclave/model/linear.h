// Linear layers: packed weights with a bias, loaded from one or several stored tensors.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/kernels/context.h"
#include "conclave/kernels/matmul.h"
#include "conclave/model/weight_source.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

// The numeric mode of a model: element type of packed weights and of what is multiplied with them.
// kF32: all f32. kBf16: weights, GEMM inputs, KV and wire rows bf16; sums, residual, norms, gate
// f32. kQ8: as kBf16, but the decoder's and the experts' linears have weights and GEMM inputs in
// blocks of int8 (kernels/quantize.h); embedding, tower and projector stay bf16.

struct Linear {
  kernels::PackedMatrix weight;  // [N, K]
  std::vector<float> bias;       // [N], empty: none

  int64_t out_dim() const { return weight.n(); }
  size_t size_bytes() const { return weight.size_bytes() + bias.size() * sizeof(float); }
};

// One stored linear: `name`.weight [rows, k] and, if `has_bias`, `name`.bias [rows].
struct LinearPart {
  std::string name;
  int64_t rows = 0;
};

// Loads `parts` stacked along the outputs, as one matrix: fused projections share one pass over the
// input.
absl::StatusOr<Linear> LoadLinear(const WeightSource& source, std::span<const LinearPart> parts,
                                  int64_t k, bool has_bias, DType dtype, ThreadPool& pool);

// Room for what a GEMM input becomes for weights of one dtype: its bf16 image or its quantized
// form; nothing in f32. Allocated once, used for one input after another.
class GemmScratch {
 public:
  GemmScratch(int64_t max_rows, int64_t max_k, DType dtype);

  // Room for rows [first, first + rows) of `cols` elements, in the form that products with such
  // weights read; none in f32.
  kernels::ActivatedRows Rows(int64_t first, int64_t rows, int64_t cols);

 private:
  friend void Multiply(const kernels::Context&, const kernels::PackedMatrix&,
                       std::span<const float>, MatView<const float>, GemmScratch&, MatView<float>);
  friend void Multiply(const kernels::Context&, const kernels::PackedMatrix&,
                       std::span<const float>, MatView<const Bf16>, GemmScratch&, MatView<float>);

  int64_t max_elements_ = 0;
  AlignedBuffer rounded_;  // [max_rows · max_k] bf16
  kernels::Q8Scratch q8_;
};

// y = x · Wᵀ + b. x [M, K] within the limits of `scratch`, which is of w's dtype: f32 rows are
// rounded to bf16 where the weights are bf16 and quantized where they are q8, bf16 rows taken as
// they are or quantized. `bias` is empty or [N]; y [M, N] must not alias x. bf16 rows with f32
// weights are a broken invariant.
void Multiply(const kernels::Context& context, const kernels::PackedMatrix& w,
              std::span<const float> bias, MatView<const float> x, GemmScratch& scratch,
              MatView<float> y);
void Multiply(const kernels::Context& context, const kernels::PackedMatrix& w,
              std::span<const float> bias, MatView<const Bf16> x, GemmScratch& scratch,
              MatView<float> y);

// Multiply by the linear's weights and bias.
void ApplyLinear(const kernels::Context& context, const Linear& linear, MatView<const float> x,
                 GemmScratch& scratch, MatView<float> y);

}  // namespace conclave::model
