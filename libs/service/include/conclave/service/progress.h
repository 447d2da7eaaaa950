// Progress of long work: a bar on a terminal, a log line every few seconds otherwise.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"

namespace conclave::service {

struct ProgressOptions {
  std::string label;  // "loading", "writing"
  bool is_terminal = false;
  // The bar's text, carriage return included, goes here; default: stderr.
  std::function<void(std::string_view)> write_bar = {};
  // A log line goes here; default: observability::LogInfo.
  std::function<void(double fraction, const std::string& what, double bytes_per_second)>
      write_line = {};
  const Clock* clock = &Clock::Real();
};

// Whether stderr is a terminal that can redraw a line (TERM is not "dumb").
bool IsProgressTerminal(std::string_view term);

// Any thread; updates may come as often as they like, it draws at most ten times a second and logs
// every three.
class Progress {
 public:
  explicit Progress(ProgressOptions options);
  // Clears the bar, so that what is printed next starts on a clean line.
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `fraction` in [0, 1]; a smaller one than before is kept at the larger. `what`: "experts", may
  // be empty. `num_bytes`: done so far, or below 0 when unknown; gives the rate.
  void Update(double fraction, const std::string& what, int64_t num_bytes = -1);

  // The work is done: 1, and the bar is cleared.
  void Finish();

  // What a health answer shows while loading.
  double fraction() const;

 private:
  void Clear();
  void Draw(const std::string& what, double bytes_per_second) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ProgressOptions options_;
  const MonotonicTime start_;
  mutable Mutex mu_;
  double fraction_ ABSL_GUARDED_BY(mu_) = 0;
  MonotonicTime shown_ ABSL_GUARDED_BY(mu_);
  bool is_bar_drawn_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace conclave::service
