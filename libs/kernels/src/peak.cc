#include "conclave/kernels/peak.h"

#include <algorithm>
#include <array>
#include <vector>

#include "conclave/base/check.h"
#include "kernel_table.h"

namespace conclave::kernels {
namespace {

using SteadyClock = std::chrono::steady_clock;

// The loops are assembly, so that neither a compiler's flags nor its level of optimization decide
// what the bound is. Twelve sums hide every latency that is known (at most ten results in flight),
// and come twice, so that the loop's own two instructions weigh nothing. The macro's operand 1
// points at 64 bytes of inputs.
#define CONCLAVE_PEAK_LOOP(iterations, inputs, load, body)                                       \
  asm volatile(load                                                                              \
               "\n.irp sum,0,1,2,3,4,5,6,7,8,9,10,11\n vpxor %%xmm\\sum,%%xmm\\sum,%%xmm\\sum\n" \
               ".endr\n"                                                                         \
               "1:\n" body body "dec %0\n jnz 1b\n vzeroupper\n"                                 \
               : "+r"(iterations)                                                                \
               : "r"(inputs)                                                                     \
               : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", \
                 "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "cc", "memory")

#define CONCLAVE_LOAD_ZMM "vmovups (%1),%%zmm12\n vmovups (%1),%%zmm13\n"
#define CONCLAVE_LOAD_YMM "vmovups (%1),%%ymm12\n vmovups (%1),%%ymm13\n"
#define CONCLAVE_TWELVE(instruction, reg)                                   \
  ".irp sum,0,1,2,3,4,5,6,7,8,9,10,11\n " instruction " %%" reg "12,%%" reg \
  "13,"                                                                     \
  "%%" reg "\\sum\n.endr\n"
// Six sums suffice here: three instructions each are in flight.
#define CONCLAVE_SIX_MADDS(reg)                                                             \
  ".irp sum,0,1,2,3,4,5\n vpmaddubsw %%" reg "12,%%" reg "13,%%" reg "14\n vpmaddwd %%" reg \
  "12,%%" reg "14,%%" reg "14\n vpaddd %%" reg "14,%%" reg "\\sum,%%" reg "\\sum\n.endr\n"

// One kind of loop, with the operations of one iteration.
struct Loop {
  void (*run)(int64_t iterations, const void* inputs) = nullptr;
  double operations = 0;
};

constexpr double kUnrolled = 2.0;
constexpr double kOpsPerMadd = 2.0;

void FmaZmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_ZMM, CONCLAVE_TWELVE("vfmadd231ps", "zmm"));
}
void FmaYmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_YMM, CONCLAVE_TWELVE("vfmadd231ps", "ymm"));
}
void DotBf16Zmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_ZMM, CONCLAVE_TWELVE("vdpbf16ps", "zmm"));
}
void VnniZmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_ZMM, CONCLAVE_TWELVE("vpdpbusd", "zmm"));
}
// The prefix asks for AVX-VNNI's form: without it the assembler takes that of AVX-512.
void VnniYmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_YMM,
                     CONCLAVE_TWELVE("%{vex%} vpdpbusd", "ymm"));
}
void MaddZmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_ZMM, CONCLAVE_SIX_MADDS("zmm"));
}
void MaddYmm(int64_t iterations, const void* inputs) {
  CONCLAVE_PEAK_LOOP(iterations, inputs, CONCLAVE_LOAD_YMM, CONCLAVE_SIX_MADDS("ymm"));
}

#undef CONCLAVE_PEAK_LOOP
#undef CONCLAVE_LOAD_ZMM
#undef CONCLAVE_LOAD_YMM
#undef CONCLAVE_TWELVE
#undef CONCLAVE_SIX_MADDS

constexpr double Operations(int sums, int madds) { return kUnrolled * sums * madds * kOpsPerMadd; }

Loop LoopOf(Isa isa, PeakOp op) {
  const bool is_512 = isa == Isa::kAvx512 || isa == Isa::kAvx512Bf16;
  if (isa == Isa::kScalar) {
    return {};
  }
  switch (op) {
    case PeakOp::kF32Fma:
      return is_512 ? Loop{&FmaZmm, Operations(12, 16)} : Loop{&FmaYmm, Operations(12, 8)};
    case PeakOp::kBf16Dot:
      return isa == Isa::kAvx512Bf16 ? Loop{&DotBf16Zmm, Operations(12, 32)} : Loop{};
    case PeakOp::kInt8Dot:
      if (is_512) {
        return __builtin_cpu_supports("avx512vnni") != 0 ? Loop{&VnniZmm, Operations(12, 64)}
                                                         : Loop{&MaddZmm, Operations(6, 64)};
      }
      return HasAvxVnni() ? Loop{&VnniYmm, Operations(12, 32)} : Loop{&MaddYmm, Operations(6, 32)};
  }
  CONCLAVE_CHECK(false);
}

// Ones as bf16 and as the upper half of an f32 that is a little more than one; as bytes and words
// ordinary numbers. Zeros would take less power than real work does, and may run at a higher clock.
constexpr uint16_t kInput = 0x3f80;

double SecondsSince(SteadyClock::time_point start) {
  return std::chrono::duration<double>(SteadyClock::now() - start).count();
}

}  // namespace

std::optional<double> MeasurePeak(Isa isa, PeakOp op, ThreadPool& pool,
                                  std::chrono::microseconds duration) {
  CONCLAVE_CHECK(IsSupported(isa));
  const Loop loop = LoopOf(isa, op);
  if (loop.run == nullptr) {
    return std::nullopt;
  }
  alignas(64) std::array<uint16_t, 32> inputs;
  inputs.fill(kInput);
  // About a millisecond: long beside the start of a loop of the pool, short beside what disturbs.
  constexpr int64_t kIterations = 200'000;
  const int64_t threads = pool.num_threads();
  double best = 0;
  const SteadyClock::time_point begin = SteadyClock::now();
  do {
    const SteadyClock::time_point start = SteadyClock::now();
    pool.ParallelFor(threads, [&](int64_t) { loop.run(kIterations, inputs.data()); });
    const double operations = loop.operations * static_cast<double>(kIterations * threads);
    best = std::max(best, operations / SecondsSince(start));
  } while (SteadyClock::now() - begin < duration);
  return best;
}

std::optional<double> ArithmeticPeaks::bf16_gemm() const {
  return bf16_dot.has_value() ? std::max(*bf16_dot, f32_fma.value_or(0)) : f32_fma;
}

std::optional<double> ArithmeticPeaks::Of(DType dtype) const {
  switch (dtype) {
    case DType::kF32:
      return f32_fma;
    case DType::kBf16:
      return bf16_gemm();
    default:
      return int8_dot;
  }
}

ArithmeticPeaks MeasurePeaks(Isa isa, ThreadPool& pool, std::chrono::microseconds duration) {
  return {.f32_fma = MeasurePeak(isa, PeakOp::kF32Fma, pool, duration),
          .bf16_dot = MeasurePeak(isa, PeakOp::kBf16Dot, pool, duration),
          .int8_dot = MeasurePeak(isa, PeakOp::kInt8Dot, pool, duration)};
}

}  // namespace conclave::kernels
