// How a product of many rows and panels is cut into tasks for the threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace conclave::kernels {

// Rows of one task are cut in multiples of the tallest tile.
inline constexpr int64_t kRowUnit = 6;
// Rows of a task at most, and at least where there are more: what the kernels keep in L2 beside the
// weights, and what makes a panel worth fetching.
inline constexpr int64_t kTaskRowsMax = 384;
inline constexpr int64_t kTaskRowsMin = 96;
inline constexpr int64_t kTaskPanelsMax = 16;
// Rows from which a task takes several panels: fewer wait for memory and gain nothing by it.
inline constexpr int64_t kTallRows = 48;
// Tasks per thread that even out threads of different speed.
inline constexpr int64_t kTasksPerThread = 4;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How a product is cut into tasks. It changes no bit. Blocks of rows of the same panels follow each
// other, so that threads share these in the common cache.
class Cut {
 public:
  Cut() = default;
  Cut(int64_t rows, int64_t num_panels, int num_threads) : rows_(rows), num_panels_(num_panels) {
    const int64_t wanted = num_threads == 1 ? 1 : kTasksPerThread * num_threads;
    if (rows < kTallRows) {
      Set(CeilDiv(rows, CeilDiv(wanted, num_panels)), 1);
      return;
    }
    double best = 0;
    const int64_t cuts_min = CeilDiv(rows, kTaskRowsMax);
    const int64_t cuts_max = std::max(cuts_min, rows / kTaskRowsMin);
    for (int64_t cuts = cuts_min; cuts <= cuts_max; ++cuts) {
      for (int64_t panels = 1; panels <= std::min(kTaskPanelsMax, num_panels); ++panels) {
        const double cost = CostOf(CeilDiv(rows, cuts), panels, num_threads);
        if (best == 0 || cost < best) {
          best = cost;
          Set(CeilDiv(rows, cuts), panels);
        }
      }
    }
  }

  int64_t num_tasks() const { return row_tasks_ * CeilDiv(num_panels_, task_panels_); }
  int64_t task_rows() const { return task_rows_; }
  int64_t task_panels() const { return task_panels_; }

  struct Task {
    int64_t row, rows, panel, panels;
  };
  Task At(int64_t index) const {
    const int64_t row = index % row_tasks_ * task_rows_;
    const int64_t panel = index / row_tasks_ * task_panels_;
    return {row, std::min(task_rows_, rows_ - row), panel,
            std::min(task_panels_, num_panels_ - panel)};
  }

 private:
  void Set(int64_t rows, int64_t panels) {
    task_rows_ = std::min(CeilDiv(rows, kRowUnit) * kRowUnit, rows_);
    row_tasks_ = CeilDiv(rows_, task_rows_);
    task_panels_ = panels;
  }

  // Time of tasks of such a size over the time of a product without any loss: what the slowest
  // thread has to do, what a task spends on fetching its rows for few panels and its panels for few
  // tiles of rows (as measured, docs/decisions/0032), and what is lost at the end where tasks are
  // few and threads of different speed.
  double CostOf(int64_t rows, int64_t panels, int num_threads) const {
    constexpr double kRowShare = 0.12;
    constexpr double kPanelShare = 0.35;
    constexpr double kTail = 0.1;
    const int64_t task_rows = CeilDiv(rows, kRowUnit) * kRowUnit;
    const auto tasks =
        static_cast<double>(CeilDiv(rows_, task_rows) * CeilDiv(num_panels_, panels));
    const double turns = std::ceil(tasks / num_threads);
    const double makespan = turns * static_cast<double>(task_rows * panels) * num_threads /
                            static_cast<double>(rows_ * num_panels_);
    const double fetches = kRowShare / static_cast<double>(panels) +
                           kPanelShare * kRowUnit / static_cast<double>(task_rows);
    return makespan * (1.0 + fetches) + (num_threads > 1 ? kTail * num_threads / tasks : 0.0);
  }

  int64_t rows_ = 0;
  int64_t num_panels_ = 0;
  int64_t task_rows_ = 0;
  int64_t row_tasks_ = 0;
  int64_t task_panels_ = 0;
};

}  // namespace conclave::kernels
