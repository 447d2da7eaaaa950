#include "conclave/kernels/matmul.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "kernel_table.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

// Rows of one task are cut in multiples of the tallest tile.
constexpr int64_t kRowUnit = 6;
// Rows of a task at most: what the kernels keep in L2 beside the weights.
constexpr int64_t kTaskRowsMax = 240;
// Panels of a task at most: rows that are widened for it are used that often.
constexpr int64_t kTaskPanelsMax = 8;
// Rows from which a task takes several panels.
constexpr int64_t kTallRows = 48;
// Tasks per thread that even out threads of different speed.
constexpr int64_t kTasksPerThread = 4;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a product is cut into tasks. It changes no bit. Blocks of rows of the same panels follow each
// other, so that threads share these in the common cache.
class Cut {
 public:
  Cut(int64_t rows, int64_t num_panels, int num_threads) : rows_(rows), num_panels_(num_panels) {
    const int64_t wanted = num_threads == 1 ? 1 : kTasksPerThread * num_threads;
    // Rows as few times as they must be, and more often where the panels alone are too few.
    const int64_t row_cuts = std::max(CeilDiv(rows, kTaskRowsMax), CeilDiv(wanted, num_panels));
    task_rows_ = CeilDiv(CeilDiv(rows, row_cuts), kRowUnit) * kRowUnit;
    row_tasks_ = CeilDiv(rows, task_rows_);
    // Few rows gain nothing from several panels at once.
    task_panels_ = rows < kTallRows
                       ? 1
                       : std::clamp<int64_t>(num_panels * row_tasks_ / wanted, 1, kTaskPanelsMax);
    // The last tasks are small: threads end together though they began together.
    small_panels_ = std::max<int64_t>(task_panels_ / 4, 1);
    const int64_t num_last = num_threads == 1 ? 0 : num_threads * task_panels_;
    large_tasks_ = std::max<int64_t>(num_panels - num_last, 0) / task_panels_;
    small_tasks_ = CeilDiv(num_panels - large_tasks_ * task_panels_, small_panels_);
  }

  int64_t num_tasks() const { return (large_tasks_ + small_tasks_) * row_tasks_; }
  // Of a task, its smallest taken as one: for deciding what is worth a thread.
  int64_t small_rows() const { return std::min(task_rows_, rows_); }

  struct Task {
    int64_t row, rows, panel, panels;
  };
  Task At(int64_t index) const {
    const int64_t group = index / row_tasks_;
    Task task;
    task.row = index % row_tasks_ * task_rows_;
    task.rows = std::min(task_rows_, rows_ - task.row);
    if (group < large_tasks_) {
      task.panel = group * task_panels_;
      task.panels = task_panels_;
    } else {
      task.panel = large_tasks_ * task_panels_ + (group - large_tasks_) * small_panels_;
      task.panels = std::min(small_panels_, num_panels_ - task.panel);
    }
    return task;
  }

 private:
  int64_t rows_;
  int64_t num_panels_;
  int64_t task_rows_ = 0;
  int64_t row_tasks_ = 0;
  int64_t task_panels_ = 0;
  int64_t small_panels_ = 0;
  int64_t large_tasks_ = 0;
  int64_t small_tasks_ = 0;
};

// Runs run(task) for all tasks of x · Wᵀ. X is a view of rows or Q8Rows.
template <typename X, typename Run>
void RunTasks(const Context& context, const X& x, const PackedMatrix& w,
              std::span<const float> bias, MatView<float> y, const Run& run) {
  CONCLAVE_CHECK(x.cols == w.k());
  CONCLAVE_CHECK(y.cols == w.n());
  CONCLAVE_CHECK(x.rows == y.rows);
  CONCLAVE_CHECK(bias.empty() || static_cast<int64_t>(bias.size()) == w.n());
  if (x.rows == 0 || w.n() == 0) {
    return;
  }
  const Cut cut(x.rows, w.num_panels(), context.pool->num_threads());
  const int64_t work = cut.small_rows() * w.k() * kPanelColumns;
  ParallelRuns(*context.pool, cut.num_tasks(), work, [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) {
      run(cut.At(i));
    }
  });
}

template <typename X>
void MatMulImpl(const Context& context, void (*matmul)(const PanelJob& job), MatView<const X> x,
                const PackedMatrix& w, std::span<const float> bias, MatView<float> y) {
  RunTasks(context, x, w, bias, y, [&](const Cut::Task& task) {
    const int64_t col = task.panel * kPanelColumns;
    matmul(PanelJob{.x = x.Row(task.row),
                    .x_stride = x.stride,
                    .rows = task.rows,
                    .k = w.k(),
                    .panel = w.Panel(task.panel),
                    .panel_bytes = w.panel_bytes(),
                    .cols = std::min(task.panels * kPanelColumns, w.n() - col),
                    .bias = bias.empty() ? nullptr : bias.data() + col,
                    .y = y.Row(task.row) + col,
                    .y_stride = y.stride});
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
  RunTasks(context, x, w, bias, y, [&](const Cut::Task& task) {
    const int64_t block = task.row * x.num_blocks();
    for (int64_t panel = task.panel; panel < task.panel + task.panels; ++panel) {
      const int64_t col = panel * kPanelColumns;
      context.table->matmul_q8(Q8PanelJob{.x = x.values + block * kQ8Block,
                                          .scales = x.scales + block,
                                          .sums = x.sums + block,
                                          .rows = task.rows,
                                          .num_blocks = x.num_blocks(),
                                          .panel = w.Panel(panel),
                                          .cols = std::min(kPanelColumns, w.n() - col),
                                          .bias = bias.empty() ? nullptr : bias.data() + col,
                                          .y = y.Row(task.row) + col,
                                          .y_stride = y.stride});
    }
  });
}

}  // namespace conclave::kernels
