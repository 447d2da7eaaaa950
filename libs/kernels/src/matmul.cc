#include "conclave/kernels/matmul.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "kernel_table.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

// Rows of one task are cut in multiples of the tallest tile.
constexpr int64_t kRowUnit = 6;
// Tasks per thread that even out threads of different speed.
constexpr int64_t kTasksPerThread = 4;

// Rows per task: all of them, unless the panels alone are too few for the threads.
int64_t RowsPerTask(int64_t rows, int64_t num_panels, int num_threads) {
  const int64_t wanted = kTasksPerThread * num_threads;
  if (num_threads == 1 || num_panels >= wanted) {
    return rows;
  }
  const int64_t cuts = (wanted + num_panels - 1) / num_panels;
  const int64_t per_task = (rows + cuts - 1) / cuts;
  return (per_task + kRowUnit - 1) / kRowUnit * kRowUnit;
}

template <typename X>
void MatMulImpl(const Context& context, void (*run)(const PanelJob& job), MatView<const X> x,
                const PackedMatrix& w, std::span<const float> bias, MatView<float> y) {
  CONCLAVE_CHECK(x.cols == w.k());
  CONCLAVE_CHECK(y.cols == w.n());
  CONCLAVE_CHECK(x.rows == y.rows);
  CONCLAVE_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == w.n());
  if (x.rows == 0 || w.n() == 0) {
    return;
  }
  const int64_t rows_per_task = RowsPerTask(x.rows, w.num_panels(), context.pool->num_threads());
  const int64_t row_tasks = (x.rows + rows_per_task - 1) / rows_per_task;
  const int64_t work = std::min(rows_per_task, x.rows) * w.k() * kPanelColumns;
  // Row blocks of one panel follow each other, so that threads share it in the common cache.
  ParallelRuns(*context.pool, w.num_panels() * row_tasks, work, [&](int64_t first, int64_t count) {
    for (int64_t task = first; task < first + count; ++task) {
      const int64_t panel = task / row_tasks;
      const int64_t row = task % row_tasks * rows_per_task;
      const int64_t col = panel * kPanelColumns;
      run(PanelJob{.x = x.Row(row),
                   .x_stride = x.stride,
                   .rows = std::min(rows_per_task, x.rows - row),
                   .k = w.k(),
                   .panel = w.Panel(panel),
                   .cols = std::min(kPanelColumns, w.n() - col),
                   .bias = bias.empty() ? nullptr : bias.data() + col,
                   .y = y.Row(row) + col,
                   .y_stride = y.stride});
    }
  });
}

}  // namespace

void MatMul(const Context& context, MatView<const float> x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y) {
  CONCLAVE_CHECK(w.dtype() == DType::kF32);
  MatMulImpl(context, context.table->matmul_f32, x, w, bias, y);
}

void MatMul(const Context& context, MatView<const Bf16> x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y) {
  CONCLAVE_CHECK(w.dtype() == DType::kBf16);
  MatMulImpl(context, context.table->matmul_bf16, x, w, bias, y);
}

void MatMul(const Context& context, const Q8Rows& x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y) {
  CONCLAVE_CHECK(w.dtype() == DType::kQ8);
  CONCLAVE_CHECK(x.cols == w.k());
  CONCLAVE_CHECK(y.cols == w.n());
  CONCLAVE_CHECK(x.rows == y.rows);
  CONCLAVE_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == w.n());
  if (x.rows == 0 || w.n() == 0) {
    return;
  }
  const int64_t work = x.rows * w.k() * kPanelColumns;
  ParallelRuns(*context.pool, w.num_panels(), work, [&](int64_t first, int64_t count) {
    for (int64_t panel = first; panel < first + count; ++panel) {
      const int64_t col = panel * kPanelColumns;
      context.table->matmul_q8(Q8PanelJob{.x = x.values,
                                          .scales = x.scales,
                                          .sums = x.sums,
                                          .rows = x.rows,
                                          .num_blocks = x.num_blocks(),
                                          .panel = w.Panel(panel),
                                          .cols = std::min(kPanelColumns, w.n() - col),
                                          .bias = bias.empty() ? nullptr : bias.data() + col,
                                          .y = y.data + col,
                                          .y_stride = y.stride});
    }
  });
}

}  // namespace conclave::kernels
