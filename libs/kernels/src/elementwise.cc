#include "conclave/kernels/elementwise.h"

#include "conclave/base/check.h"
#include "kernel_table.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

// Work per element next to the multiply-add of a GEMM: memory, and for functions with exp about
// twenty operations in 16 lanes.
constexpr int64_t kPlainWork = 2;
constexpr int64_t kExpWork = 8;

template <typename A, typename B>
void CheckSameShape(const MatView<A>& a, const MatView<B>& b) {
  CONCLAVE_CHECK(a.rows == b.rows);
  CONCLAVE_CHECK(a.cols == b.cols);
}

// Runs fn(row) for every row.
template <typename Fn>
void ForRows(const Context& context, int64_t rows, int64_t row_work, const Fn& fn) {
  ParallelRuns(*context.pool, rows, row_work, [&](int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count; ++row) {
      fn(row);
    }
  });
}

const uint16_t* BitsOf(const Bf16* values) { return reinterpret_cast<const uint16_t*>(values); }
uint16_t* BitsOf(Bf16* values) { return reinterpret_cast<uint16_t*>(values); }

}  // namespace

void LayerNorm(const Context& context, MatView<const float> x, std::span<const float> weight,
               std::span<const float> bias, float eps, MatView<float> y) {
  CheckSameShape(x, y);
  CONCLAVE_CHECK(static_cast<int64_t>(weight.size()) == x.cols);
  CONCLAVE_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == x.cols);
  const float* added = bias.empty() ? nullptr : bias.data();
  ForRows(context, x.rows, kPlainWork * x.cols, [&](int64_t r) {
    context.table->layer_norm(x.Row(r), x.cols, weight.data(), added, eps, y.Row(r));
  });
}

void RmsNorm(const Context& context, MatView<const float> x, std::span<const float> weight,
             float eps, MatView<float> y) {
  CheckSameShape(x, y);
  CONCLAVE_CHECK(static_cast<int64_t>(weight.size()) == x.cols);
  ForRows(context, x.rows, kPlainWork * x.cols, [&](int64_t r) {
    context.table->rms_norm(x.Row(r), x.cols, weight.data(), eps, y.Row(r));
  });
}

void RoundToBf16(const Context& context, MatView<const float> x, MatView<Bf16> y) {
  CheckSameShape(x, y);
  ForRows(context, x.rows, kPlainWork * x.cols,
          [&](int64_t r) { context.table->round_to_bf16(x.Row(r), x.cols, BitsOf(y.Row(r))); });
}

void WidenBf16(const Context& context, MatView<const Bf16> x, MatView<float> y) {
  CheckSameShape(x, y);
  ForRows(context, x.rows, kPlainWork * x.cols,
          [&](int64_t r) { context.table->widen_bf16(BitsOf(x.Row(r)), x.cols, y.Row(r)); });
}

void AddScaled(const Context& context, MatView<const float> x, float scale, MatView<float> y) {
  CheckSameShape(x, y);
  ForRows(context, x.rows, kPlainWork * x.cols,
          [&](int64_t r) { context.table->add_scaled(x.Row(r), x.cols, scale, y.Row(r)); });
}

void AddTerm(const Context& context, std::span<const float> y, float weight, bool is_first,
             bool is_rounded, std::span<float> sum) {
  CONCLAVE_CHECK(y.size() == sum.size());
  context.table->add_term(y.data(), static_cast<int64_t>(y.size()), weight, is_first, is_rounded,
                          sum.data());
}

void Activate(const Context& context, Activation activation, MatView<float> x) {
  const auto run = context.table->activate[static_cast<int>(activation)];
  ForRows(context, x.rows, kExpWork * x.cols, [&](int64_t r) { run(x.Row(r), x.cols); });
}

void GatedActivate(const Context& context, Activation activation, MatView<const float> gate_up,
                   MatView<float> out) {
  CONCLAVE_CHECK(gate_up.rows == out.rows);
  CONCLAVE_CHECK(gate_up.cols == 2 * out.cols);
  const auto run = context.table->gated_activate[static_cast<int>(activation)];
  ForRows(context, out.rows, kExpWork * out.cols,
          [&](int64_t r) { run(gate_up.Row(r), gate_up.Row(r) + out.cols, out.cols, out.Row(r)); });
}

void RotateHalfSplit(const Context& context, MatView<const float> cos, MatView<const float> sin,
                     std::span<const int32_t> positions, int64_t num_heads, int64_t head_dim,
                     MatView<float> x) {
  CheckSameShape(cos, sin);
  CONCLAVE_CHECK(2 * cos.cols <= head_dim);
  CONCLAVE_CHECK(x.cols == num_heads * head_dim);
  CONCLAVE_CHECK(static_cast<int64_t>(positions.size()) == x.rows);
  ForRows(context, x.rows, kPlainWork * x.cols, [&](int64_t r) {
    const int64_t position = positions[static_cast<size_t>(r)];
    CONCLAVE_CHECK(position >= 0 && position < cos.rows);
    context.table->rotate_half_split(cos.Row(position), sin.Row(position), cos.cols, num_heads,
                                     head_dim, x.Row(r));
  });
}

void DotRows(const Context& context, MatView<const float> x, MatView<const float> weight,
             MatView<float> logits) {
  CONCLAVE_CHECK(x.cols == weight.cols);
  CONCLAVE_CHECK(logits.rows == x.rows);
  CONCLAVE_CHECK(logits.cols == weight.rows);
  ForRows(context, x.rows, x.cols * weight.rows, [&](int64_t r) {
    context.table->dot_rows(x.Row(r), x.cols, weight.data, weight.stride, weight.rows,
                            logits.Row(r));
  });
}

void Softmax(const Context& context, MatView<float> x) {
  ForRows(context, x.rows, kExpWork * x.cols,
          [&](int64_t r) { context.table->softmax(x.Row(r), x.cols); });
}

}  // namespace conclave::kernels
