#include "conclave/kernels/quantize.h"

#include "conclave/base/check.h"
#include "kernel_table.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

// Work per element next to the multiply-add of a GEMM.
constexpr int64_t kQuantizeWork = 4;

template <typename T, typename Run>
void QuantizeRows(const Context& context, MatView<const T> x, const Q8Rows& out, const Run& run) {
  ParallelRuns(*context.pool, x.rows, kQuantizeWork * x.cols, [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      const int64_t block = row * out.num_blocks();
      run(x.Row(row), x.cols, out.values + block * kQ8Block, out.scales + block, out.sums + block);
    }
  });
}

}  // namespace

Q8Scratch::Q8Scratch(int64_t max_rows, int64_t max_cols)
    : max_rows_(max_rows), max_blocks_(NumQ8Blocks(max_cols)) {
  CONCLAVE_CHECK(max_rows >= 0 && max_cols >= 0);
  const auto blocks = static_cast<size_t>(max_rows_ * max_blocks_);
  values_ = AlignedBuffer(blocks * static_cast<size_t>(kQ8Block));
  scales_ = AlignedBuffer(blocks * sizeof(float));
  sums_ = AlignedBuffer(blocks * sizeof(int32_t));
}

Q8Rows Q8Scratch::Rows(int64_t first, int64_t rows, int64_t cols) {
  CONCLAVE_CHECK(first >= 0 && first + rows <= max_rows_);
  CONCLAVE_CHECK(NumQ8Blocks(cols) <= max_blocks_);
  const int64_t block = first * NumQ8Blocks(cols);
  return {values_.As<int8_t>() + block * kQ8Block, scales_.As<float>() + block,
          sums_.As<int32_t>() + block, rows, cols};
}

void Quantize(const Context& context, MatView<const float> x, const Q8Rows& out) {
  CONCLAVE_CHECK(x.rows == out.rows && x.cols == out.cols);
  QuantizeRows(context, x, out, context.table->quantize_f32);
}

void Quantize(const Context& context, MatView<const Bf16> x, const Q8Rows& out) {
  CONCLAVE_CHECK(x.rows == out.rows && x.cols == out.cols);
  QuantizeRows(context, x, out,
               [&](const Bf16* row, int64_t n, int8_t* values, float* scales, int32_t* sums) {
                 context.table->quantize_bf16(reinterpret_cast<const uint16_t*>(row), n, values,
                                              scales, sums);
               });
}

Q8Rows Q8Scratch::Quantize(const Context& context, MatView<const float> x) {
  const Q8Rows out = Rows(0, x.rows, x.cols);
  kernels::Quantize(context, x, out);
  return out;
}

Q8Rows Q8Scratch::Quantize(const Context& context, MatView<const Bf16> x) {
  const Q8Rows out = Rows(0, x.rows, x.cols);
  kernels::Quantize(context, x, out);
  return out;
}

}  // namespace conclave::kernels
