// The numeric mode q8: weights and GEMM inputs as int8 in blocks of 32 along K, each block with one
// scale; products summed in int32 within a block, which is exact, and blocks in f32.
//
// Weights (once, at packing): for a block w of 32 elements, d = bf16(max|w| / 127) rounded up, so
// that max|w| / d <= 127; q = round-to-nearest-even(w / d), -127..127; d = 0 and q = 0 where
// max|w| is below 2^-100; d is NaN and q = 0 where an element is NaN or infinite.
// Rows (at every GEMM): s = max|x| / 127 in f32, q = round-to-nearest-even(x · (127 / max|x|)),
// -127..127; s = 0 and q = 0 where max|x| is below 2^-100; s is NaN and q = 0 where an element is
// NaN or infinite, so that no output of such a row looks like a number.
//
// The bit contract. y[m, n] is one chain over blocks b in ascending order, started at 0:
//   acc = fma(f32(Σ_k q_x[m, k] · q_w[n, k]), s[m, b] · d[n, b], acc)
// with K padded by zeros to a multiple of 32; then y = acc + b[n]. As everywhere, a row's bits
// depend on that row and the weights alone, on every ISA path.
#pragma once

#include <cstdint>

#include "conclave/kernels/context.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/view.h"

namespace conclave::kernels {

// Elements of a row, or of a weight's inputs, that share one scale.
inline constexpr int64_t kQ8Block = 32;

constexpr int64_t NumQ8Blocks(int64_t k) { return (k + kQ8Block - 1) / kQ8Block; }

// Quantized rows; does not own. Padding up to whole blocks is zero.
struct Q8Rows {
  int8_t* values = nullptr;  // [rows, NumQ8Blocks(cols) · 32]
  float* scales = nullptr;   // [rows, NumQ8Blocks(cols)]
  int32_t* sums = nullptr;   // [rows, NumQ8Blocks(cols)]  −128 · Σ q of a block: the sum of its
                             // products starts there, since weights lie in memory as q + 128
  int64_t rows = 0;
  int64_t cols = 0;

  int64_t num_blocks() const { return NumQ8Blocks(cols); }
};

// out = x quantized; of the same rows and cols.
void Quantize(const Context& context, MatView<const float> x, const Q8Rows& out);
void Quantize(const Context& context, MatView<const Bf16> x, const Q8Rows& out);

// Room for quantized rows, allocated once and used for one GEMM input after another.
class Q8Scratch {
 public:
  Q8Scratch() = default;
  Q8Scratch(int64_t max_rows, int64_t max_cols);

  // The quantized form of x, in this scratch until the next call. rows and cols within the limits.
  Q8Rows Quantize(const Context& context, MatView<const float> x);
  Q8Rows Quantize(const Context& context, MatView<const Bf16> x);

  int64_t max_rows() const { return max_rows_; }

  // Room for rows [first, first + rows) of `cols` elements each.
  Q8Rows Rows(int64_t first, int64_t rows, int64_t cols);

 private:
  int64_t max_rows_ = 0;
  int64_t max_blocks_ = 0;
  AlignedBuffer values_;
  AlignedBuffer scales_;
  AlignedBuffer sums_;
};

}  // namespace conclave::kernels
