#include "conclave/kernels/matmul.h"

#include <algorithm>
#include <array>
#include <type_traits>

#include "conclave/base/check.h"
#include "cut.h"
#include "kernel_table.h"
#include "parallel.h"

namespace conclave::kernels {
namespace {

int64_t RowsOf(const MatView<const float>& x) { return x.rows; }
int64_t RowsOf(const MatView<const Bf16>& x) { return x.rows; }
int64_t RowsOf(const Q8Rows& x) { return x.rows; }

constexpr DType WeightsOf(const MatView<const float>& /*x*/) { return DType::kF32; }
constexpr DType WeightsOf(const MatView<const Bf16>& /*x*/) { return DType::kBf16; }
constexpr DType WeightsOf(const Q8Rows& /*x*/) { return DType::kQ8; }

template <typename X>
void Check(const Product<X>& product) {
  const PackedMatrix& w = *product.w;
  CONCLAVE_CHECK(w.dtype() == WeightsOf(product.x));
  CONCLAVE_CHECK(product.x.cols == w.k());
  CONCLAVE_CHECK(product.y.cols == w.n());
  CONCLAVE_CHECK(RowsOf(product.x) == product.y.rows);
  CONCLAVE_CHECK(product.bias.empty() || static_cast<int64_t>(product.bias.size()) == w.n());
}

// Panels [panel, panel + panels) of a product for the rows [row, row + rows). `next` is the panel
// that this thread likely reads after them.
template <typename T>
void RunPanels(const KernelTable& table, const Product<MatView<const T>>& product, int64_t row,
               int64_t rows, int64_t panel, int64_t panels, int64_t next) {
  const PackedMatrix& w = *product.w;
  const int64_t col = panel * kPanelColumns;
  const PanelJob job{.x = product.x.Row(row),
                     .x_stride = product.x.stride,
                     .rows = rows,
                     .k = w.k(),
                     .panel = w.Panel(panel),
                     .panel_bytes = w.panel_bytes(),
                     .next = next < w.num_panels() ? w.Panel(next) : nullptr,
                     .cols = std::min(panels * kPanelColumns, w.n() - col),
                     .bias = product.bias.empty() ? nullptr : product.bias.data() + col,
                     .y = product.y.Row(row) + col,
                     .y_stride = product.y.stride};
  if constexpr (std::is_same_v<T, float>) {
    table.matmul_f32(job);
  } else {
    table.matmul_bf16(job);
  }
}

void RunPanels(const KernelTable& table, const Product<Q8Rows>& product, int64_t row, int64_t rows,
               int64_t panel, int64_t panels, int64_t /*next*/) {
  const PackedMatrix& w = *product.w;
  const int64_t block = row * product.x.num_blocks();
  for (int64_t p = panel; p < panel + panels; ++p) {
    const int64_t col = p * kPanelColumns;
    table.matmul_q8(Q8PanelJob{.x = product.x.values + block * kQ8Block,
                               .scales = product.x.scales + block,
                               .sums = product.x.sums + block,
                               .rows = rows,
                               .num_blocks = product.x.num_blocks(),
                               .panel = w.Panel(p),
                               .cols = std::min(kPanelColumns, w.n() - col),
                               .bias = product.bias.empty() ? nullptr : product.bias.data() + col,
                               .y = product.y.Row(row) + col,
                               .y_stride = product.y.stride});
  }
}

// Products of one loop over the threads: more are several loops.
constexpr size_t kProductsPerLoop = 64;

// Calls run(i, task) for every task of every product i, which has PanelsOf(i) panels to be cut.
template <typename X, typename PanelsOf, typename Run>
void RunTasks(const Context& context, std::span<const Product<X>> products,
              const PanelsOf& panels_of, const Run& run) {
  // On the stack, as decode steps come here.
  std::array<Cut, kProductsPerLoop> cuts;
  std::array<int64_t, kProductsPerLoop> ends;  // of the tasks of each product
  for (size_t first = 0; first < products.size(); first += kProductsPerLoop) {
    const size_t count = std::min(kProductsPerLoop, products.size() - first);
    int64_t num_tasks = 0;
    int64_t work = 0;
    for (size_t i = 0; i < count; ++i) {
      const Product<X>& product = products[first + i];
      const int64_t panels = panels_of(first + i);
      if (RowsOf(product.x) > 0 && panels > 0) {
        cuts[i] = Cut(RowsOf(product.x), panels, context.pool->num_threads());
        num_tasks += cuts[i].num_tasks();
        work += RowsOf(product.x) * product.w->k() * product.w->n();
      }
      ends[i] = num_tasks;
    }
    ParallelRuns(*context.pool, num_tasks, work / std::max<int64_t>(num_tasks, 1),
                 [&](int64_t first_task, int64_t num) {
                   for (int64_t t = first_task; t < first_task + num; ++t) {
                     size_t i = 0;
                     while (t >= ends[i]) {
                       ++i;
                     }
                     run(first + i, cuts[i].At(t - (i == 0 ? 0 : ends[i - 1])));
                   }
                 });
  }
}

template <typename X>
void RunAll(const Context& context, std::span<const Product<X>> products) {
  for (const Product<X>& product : products) {
    Check(product);
  }
  RunTasks(
      context, products, [&](size_t i) { return products[i].w->num_panels(); },
      [&](size_t i, const Cut::Task& task) {
        RunPanels(*context.table, products[i], task.row, task.rows, task.panel, task.panels,
                  task.panel + task.panels);
      });
}

// Columns [col, col + cols) of an activated row, in the form that the next product reads.
void Deliver(const KernelTable& table, const ActivatedRows& out, int64_t row, int64_t col,
             int64_t cols, float* activated) {
  if (out.bf16.data != nullptr) {
    table.round_to_bf16(activated, cols, reinterpret_cast<uint16_t*>(out.bf16.Row(row) + col));
  } else if (out.q8.values != nullptr) {
    const int64_t block = row * out.q8.num_blocks() + col / kQ8Block;
    table.quantize_f32(activated, cols, out.q8.values + block * kQ8Block, out.q8.scales + block,
                       out.q8.sums + block);
  } else if (activated != out.f32.Row(row) + col) {
    std::copy_n(activated, cols, out.f32.Row(row) + col);
  }
}

template <typename X>
void RunActivated(const Context& context, Activation activation, bool is_gated,
                  std::span<const Product<X>> products, std::span<const ActivatedRows> outs) {
  CONCLAVE_CHECK(products.size() == outs.size());
  for (size_t i = 0; i < products.size(); ++i) {
    Check(products[i]);
    CONCLAVE_CHECK(!is_gated || products[i].w->n() % (2 * kPanelColumns) == 0);
  }
  const KernelTable& table = *context.table;
  const auto activate = table.activate[static_cast<int>(activation)];
  const auto gated_activate = table.gated_activate[static_cast<int>(activation)];
  RunTasks(
      context, products, [&](size_t i) { return products[i].w->num_panels() / (is_gated ? 2 : 1); },
      [&](size_t i, const Cut::Task& task) {
        const Product<X>& product = products[i];
        const int64_t half = is_gated ? product.w->n() / 2 : 0;
        const int64_t col = task.panel * kPanelColumns;
        const int64_t width = is_gated ? half : product.w->n();
        const int64_t cols = std::min(task.panels * kPanelColumns, width - col);
        const int64_t up = task.panel + half / kPanelColumns;
        RunPanels(table, product, task.row, task.rows, task.panel, task.panels,
                  is_gated ? up : task.panel + task.panels);
        if (is_gated) {
          RunPanels(table, product, task.row, task.rows, up, task.panels, task.panel + task.panels);
        }
        for (int64_t row = task.row; row < task.row + task.rows; ++row) {
          float* y = product.y.Row(row) + col;
          if (is_gated) {
            gated_activate(y, y + half, cols, y);
          } else {
            activate(y, cols);
          }
          Deliver(table, outs[i], row, col, cols, y);
        }
      });
}

}  // namespace

bool CanActivateGated(const PackedMatrix& gate_up) {
  return gate_up.n() % (2 * kPanelColumns) == 0;
}

void MatMul(const Context& context, MatView<const float> x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y) {
  const Product<MatView<const float>> product{x, &w, bias, y};
  RunAll(context, std::span(&product, 1));
}

void MatMul(const Context& context, MatView<const Bf16> x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y) {
  const Product<MatView<const Bf16>> product{x, &w, bias, y};
  RunAll(context, std::span(&product, 1));
}

void MatMul(const Context& context, const Q8Rows& x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y) {
  const Product<Q8Rows> product{x, &w, bias, y};
  RunAll(context, std::span(&product, 1));
}

void MatMulAll(const Context& context, std::span<const Product<MatView<const float>>> products) {
  RunAll(context, products);
}
void MatMulAll(const Context& context, std::span<const Product<MatView<const Bf16>>> products) {
  RunAll(context, products);
}
void MatMulAll(const Context& context, std::span<const Product<Q8Rows>> products) {
  RunAll(context, products);
}

void MatMulActivated(const Context& context, Activation activation, bool is_gated,
                     std::span<const Product<MatView<const float>>> products,
                     std::span<const ActivatedRows> outs) {
  RunActivated(context, activation, is_gated, products, outs);
}
void MatMulActivated(const Context& context, Activation activation, bool is_gated,
                     std::span<const Product<MatView<const Bf16>>> products,
                     std::span<const ActivatedRows> outs) {
  RunActivated(context, activation, is_gated, products, outs);
}
void MatMulActivated(const Context& context, Activation activation, bool is_gated,
                     std::span<const Product<Q8Rows>> products,
                     std::span<const ActivatedRows> outs) {
  RunActivated(context, activation, is_gated, products, outs);
}

}  // namespace conclave::kernels
