// A histogram that its owner can read back: what the live picture tells of latencies.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "conclave/live/figures.h"

namespace conclave::live {

// Any thread; never blocks.
class CountingHistogram {
 public:
  // `bounds`: upper bounds, inclusive, strictly ascending; a last bucket is beyond all.
  explicit CountingHistogram(std::span<const double> bounds);

  void Observe(double value);
  Buckets Counts() const;

 private:
  const std::vector<double> bounds_;
  const std::unique_ptr<std::atomic<uint64_t>[]> counts_;
};

}  // namespace conclave::live
