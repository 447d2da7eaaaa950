// Whether a step is divided into two micro-batches.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>

#include "conclave/frontend/engine.h"

namespace conclave::frontend {

// Dividing hides the time that rows are away, and costs reading every weight twice. Which is more
// depends on the network, on how fast the workers are and on whether they share this machine's
// cores; the time of steps tells all of it, so both ways are tried and the faster stays.
// Used by the engine's thread.
class MicroBatchPolicy {
 public:
  // `num_experts`: of an MoE layer; `top_k`: of them per row.
  MicroBatchPolicy(MicroBatching mode, int32_t num_experts, int32_t top_k)
      : mode_(mode), num_experts_(num_experts), top_k_(top_k) {}

  // Rows of the first micro-batch of a step of `rows` rows; 0: the step is not divided.
  int32_t Choose(int32_t rows);
  // How long a step of `rows` rows took that Choose was asked for.
  void Observe(int32_t rows, bool is_divided, std::chrono::nanoseconds duration);

 private:
  struct Way {
    int64_t count = 0;
    double row_us = 0;  // smoothed
  };
  struct SizeClass {
    std::array<Way, 2> ways;  // undivided, divided
    int64_t since_trial = 0;  // steps since the slower way was tried
  };
  // By powers of two: the time of a row falls with their number.
  static constexpr size_t kSizeClasses = 16;
  static size_t SizeClassOf(int32_t rows);

  const MicroBatching mode_;
  const int32_t num_experts_;
  const int32_t top_k_;
  std::array<SizeClass, kSizeClasses> classes_;
};

}  // namespace conclave::frontend
