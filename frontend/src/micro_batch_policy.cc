#include "micro_batch_policy.h"

#include <algorithm>
#include <bit>

namespace conclave::frontend {
namespace {

// Below so many rows per expert the weights take most of the time, and two halves read them twice:
// half of what a small CPU reaches its peak with (data-plane.md section 9).
constexpr int32_t kRowsPerExpertMin = 4;
// Steps each way before they are compared. The first of a class may have read weights from disk.
constexpr int64_t kTrials = 4;
// The slower way is tried again after so many steps: below one in a hundred, so that it is not the
// 99th percentile of anybody's tokens.
constexpr int64_t kTrialInterval = 256;
// What is gained must be more than chance.
constexpr double kGainMin = 0.97;
constexpr double kRowSmoothing = 0.2;
// A step beyond that met a fault or a busy machine.
constexpr double kOutlier = 3.0;

}  // namespace

size_t MicroBatchPolicy::SizeClassOf(int32_t rows) {
  return std::min(static_cast<size_t>(std::bit_width(static_cast<uint32_t>(rows))),
                  kSizeClasses - 1);
}

int32_t MicroBatchPolicy::Choose(int32_t rows) {
  if (mode_ == MicroBatching::kOne || rows < 2) {
    return 0;
  }
  if (mode_ == MicroBatching::kTwo) {
    return rows / 2;
  }
  if (int64_t{rows} * top_k_ < int64_t{kRowsPerExpertMin} * num_experts_) {
    return 0;
  }
  SizeClass& size_class = classes_[SizeClassOf(rows)];
  const auto& [whole, divided] = size_class.ways;
  bool divides = false;
  if (whole.count < kTrials || divided.count < kTrials) {
    divides = divided.count < whole.count;
  } else {
    divides = divided.row_us < kGainMin * whole.row_us;
    if (++size_class.since_trial >= kTrialInterval) {
      size_class.since_trial = 0;
      divides = !divides;
    }
  }
  return divides ? rows / 2 : 0;
}

void MicroBatchPolicy::Observe(int32_t rows, bool is_divided, std::chrono::nanoseconds duration) {
  if (mode_ != MicroBatching::kAuto || rows < 1) {
    return;
  }
  Way& way = classes_[SizeClassOf(rows)].ways[is_divided ? 1 : 0];
  const double row_us = std::chrono::duration<double, std::micro>(duration).count() / rows;
  if (way.count <= 1) {
    way.row_us = row_us;
  } else {
    way.row_us += (std::min(row_us, kOutlier * way.row_us) - way.row_us) * kRowSmoothing;
  }
  ++way.count;
}

}  // namespace conclave::frontend
