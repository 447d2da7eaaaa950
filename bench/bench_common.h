// What the kernel benchmarks share: values, weights that no cache holds, rates.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "conclave/kernels/context.h"
#include "conclave/kernels/matmul.h"
#include "conclave/kernels/peak.h"

namespace conclave::bench {

// What is read in turn is at least this large together, so that everything comes from memory as it
// does in a model: a matrix that is read again and again would stay in a large cache.
inline constexpr int64_t kColdBytes = int64_t{1} << 30;

inline std::vector<float> RandomFloats(int64_t n, uint32_t seed) {
  std::minstd_rand random(seed);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) {
    value = uniform(random);
  }
  return values;
}

inline std::vector<Bf16> ToBf16s(const std::vector<float>& values) {
  std::vector<Bf16> out;
  out.reserve(values.size());
  for (const float value : values) {
    out.push_back(ToBf16(value));
  }
  return out;
}

// Equal matrices, kColdBytes together, taken one after the other.
class ColdMatrices {
 public:
  // Keeps the last that was asked for: benchmarks of one shape follow each other.
  static ColdMatrices& Of(int64_t k, int64_t n, DType dtype, ThreadPool& pool) {
    static std::unique_ptr<ColdMatrices> kept;
    if (kept == nullptr || kept->k_ != k || kept->n_ != n || kept->dtype_ != dtype) {
      kept.reset();  // before the next is made: both would be twice the memory
      kept.reset(new ColdMatrices(k, n, dtype, pool));
    }
    return *kept;
  }

  const kernels::PackedMatrix& Next() {
    next_ = (next_ + 1) % matrices_.size();
    return matrices_[next_];
  }
  // Their rows, [n, k], before they were packed.
  const std::vector<float>& rows() const { return rows_; }
  size_t size() const { return matrices_.size(); }

 private:
  ColdMatrices(int64_t k, int64_t n, DType dtype, ThreadPool& pool)
      : k_(k), n_(n), dtype_(dtype), rows_(RandomFloats(n * k, 2)) {
    const auto bytes = static_cast<int64_t>(kernels::PackedMatrix::BytesOf(n, k, dtype));
    for (int64_t i = 0; i < std::max<int64_t>(1, (kColdBytes + bytes - 1) / bytes); ++i) {
      matrices_.emplace_back(n, k, dtype);
      matrices_.back().PackRows(0, MatView<const float>(rows_.data(), n, k), pool);
    }
  }

  const int64_t k_;
  const int64_t n_;
  const DType dtype_;
  const std::vector<float> rows_;
  std::vector<kernels::PackedMatrix> matrices_;
  size_t next_ = 0;
};

// A multiply-add counts as two operations; bytes count each weight, key or value once. bench/
// roofline.py reads these counters.
inline void SetRates(benchmark::State& state, double operations, double bytes) {
  using benchmark::Counter;
  const auto runs = static_cast<double>(state.iterations());
  state.counters["op/s"] = Counter(operations * runs, Counter::kIsRate);
  state.counters["B/s"] = Counter(bytes * runs, Counter::kIsRate);
}

// The path and the threads of a benchmark, which are its first and its last argument.
struct Setup {
  Setup(benchmark::State& state, size_t last)
      : isa(static_cast<kernels::Isa>(state.range(0))),
        pool(static_cast<int>(state.range(last))),
        context(isa, pool) {
    state.SetLabel(std::string(kernels::NameOf(isa)));
  }

  kernels::Isa isa;
  ThreadPool pool;
  kernels::Context context;
};

}  // namespace conclave::bench
