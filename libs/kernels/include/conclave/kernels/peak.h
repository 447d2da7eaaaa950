// The bounds of this machine that kernels are judged by: what its arithmetic and its memory give
// when nothing else is in the way. Every benchmark, `conclave bench` and `conclave doctor` measure
// them here, in the same run as what they compare (docs/decisions/0036-measuring.md).
//
// Measured, never computed from a clock rate: on a virtual machine neither the clock nor the number
// of units is known. A bound is the best of several tries, as anything that disturbs one lowers it.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>

#include "conclave/base/thread_pool.h"
#include "conclave/kernels/isa.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/tensor/dtype.h"

namespace conclave::kernels {

// Instructions that a path may build its products from.
enum class PeakOp : uint8_t {
  kF32Fma,   // fused multiply-add of f32 in the path's widest vectors
  kBf16Dot,  // VDPBF16PS; only avx512-bf16 has it
  // Dot products of bytes: VPDPBUSD where the CPU has it (AVX512-VNNI, for avx2 AVX-VNNI), else
  // VPMADDUBSW, VPMADDWD and VPADDD, of which one group counts its 32 or 64 multiply-adds.
  kInt8Dot,
};

// Operations per second (a multiply-add is two) of `op` with all threads of the pool, from
// registers alone: what no product of matrices exceeds. The best of the tries that fit in
// `duration`, at least one. nullopt where the path has no such instruction: the scalar path has
// none, it is the definition of results and not of speed. `isa` is supported.
std::optional<double> MeasurePeak(Isa isa, PeakOp op, ThreadPool& pool,
                                  std::chrono::microseconds duration);

// What a path's arithmetic gives at most, in operations per second; nullopt as MeasurePeak.
struct ArithmeticPeaks {
  std::optional<double> f32_fma;
  std::optional<double> bf16_dot;
  std::optional<double> int8_dot;

  // The bound of a bf16 product: the better of bf16_dot and f32_fma. A kernel may widen its weights
  // and multiply in f32, which is exact, and which way is faster differs: VDPBF16PS has twice the
  // rate of FMA on AMD's Zen 4 and half of it on some of Intel's cores.
  std::optional<double> bf16_gemm() const;
  // The bound of products in a numeric mode: kF32, kBf16 or kQ8.
  std::optional<double> Of(DType dtype) const;
};

// All of a path, `duration` for each.
ArithmeticPeaks MeasurePeaks(Isa isa, ThreadPool& pool, std::chrono::microseconds duration);

// One way to read memory: so many ascending streams in a thread at once, with or without software
// prefetch 4 KiB ahead.
struct ReadVariant {
  int num_streams = 1;
  bool has_prefetch = false;
};

// Those that ReadProbe tries: 1, 2, 4 and 8 streams with and without prefetch.
std::span<const ReadVariant> ReadVariants();

// A buffer that is too large for the caches, and how fast the pool's threads read it: the bound of
// every decode step. Uses the widest vectors of this CPU whatever --isa says, and huge pages where
// the system grants them. One thread uses a probe at a time.
class ReadProbe {
 public:
  // Touches all of it once. `num_bytes` is rounded down to whole chunks of 4 MiB; 0 of them are
  // legal, and read at 0 bytes per second.
  ReadProbe(int64_t num_bytes, ThreadPool& pool);

  // At least 1 GiB and four times the last-level cache, so that a pass finds nothing of the one
  // before it; at most a quarter of `available_bytes`, where a smaller figure is better than none.
  static int64_t BytesFor(int64_t available_bytes);

  // Bytes per second of one pass over the buffer by all threads of the pool.
  double Measure(const ReadVariant& variant, ThreadPool& pool) const;
  // The best of one pass of each variant.
  double MeasureBest(ThreadPool& pool) const;

  int64_t size_bytes() const { return static_cast<int64_t>(buffer_.size_bytes()); }

 private:
  AlignedBuffer buffer_;
};

}  // namespace conclave::kernels
