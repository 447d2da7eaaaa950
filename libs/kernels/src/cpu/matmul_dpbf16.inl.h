// The bf16 GEMM with VDPBF16PS: one instruction does the odd and then the even fused multiply-add
// of a pair.
#pragma once

namespace conclave::kernels {
namespace {

struct DotBf16Weights {
  using X = uint16_t;
  using StepX = uint16_t;
  using W = uint16_t;
  static constexpr bool kWidensX = false;

  template <int R, int C>
  static CONCLAVE_KERNEL_INLINE void PairStep(const uint32_t (&pair)[R], const uint16_t* w,
                                              Vec (&acc)[R][C]) {
    __m512i weight[C];
#pragma GCC unroll 8
    for (int64_t c = 0; c < C; ++c) {
      weight[c] = _mm512_loadu_si512(w + 2 * c * kVecLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i value = _mm512_set1_epi32(static_cast<int>(pair[r]));
#pragma GCC unroll 8
      for (int64_t c = 0; c < C; ++c) {
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], (__m512bh)value, (__m512bh)weight[c]);
      }
    }
  }

  template <int R, int C, int kAhead>
  static CONCLAVE_KERNEL_INLINE void Steps(const uint16_t* x, int64_t x_stride, int64_t k,
                                           const uint16_t* w, const char* ahead, Vec (&acc)[R][C]) {
    uint32_t pair[R];
    int64_t i = 0;
    for (; i + 1 < k; i += 2, w += 2 * kPanelStep) {
      PrefetchLines<kAhead>(ahead);
      ahead += 2 * kPanelStep * sizeof(uint16_t);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        // A row of odd stride is aligned to 2 bytes only.
        __builtin_memcpy(&pair[r], x + r * x_stride + i, sizeof(uint32_t));
      }
      PairStep(pair, w, acc);
    }
    if (i < k) {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        pair[r] = x[r * x_stride + i];
      }
      PairStep(pair, w, acc);
    }
  }
};

// As much of a panel as stays in a 1 MiB L2 next to the rows of x: 768 KiB. While tiles are few
// they ask for the next block, and that has to find room beside this one.
inline constexpr int64_t kDotBlockK = 6144;
inline constexpr int64_t kDotShortBlockK = 1024;
// From here on tiles are many.
inline constexpr int64_t kDotTallRows = 48;

void MatMulDotBf16(const PanelJob& job) {
  const bool is_short = job.rows > kTileRowsMax && job.rows < kDotTallRows;
  MatMulPanels<DotBf16Weights>(job, is_short ? kDotShortBlockK : kDotBlockK);
}

// Where the instruction has half the rate of an FMA: up to this many rows memory is slower still.
inline constexpr int64_t kDotRowsMax = 2;

void MatMulFewDotBf16(const PanelJob& job) {
  if (job.rows <= kDotRowsMax) {
    MatMulDotBf16(job);
  } else {
    MatMulWidenedBf16(job);
  }
}

// Cycles of the time-stamp counter for `kSteps` times twelve independent operations.
template <typename Step>
CONCLAVE_KERNEL_INLINE uint64_t CyclesOf(const Step& step) {
  constexpr int kSteps = 400;
  __m512 sums[12];
#pragma GCC unroll 12
  for (__m512& sum : sums) {
    sum = _mm512_setzero_ps();
  }
  const uint64_t start = __rdtsc();
  for (int i = 0; i < kSteps; ++i) {
#pragma GCC unroll 12
    for (__m512& sum : sums) {
      sum = step(sum);
      // Keeps the compiler from folding the loop.
      asm volatile("" : "+v"(sum));
    }
  }
  return __rdtsc() - start;
}

// The best of some tries, as others may have the core meanwhile.
bool DotProductIsFast() {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512bh pair = (__m512bh)_mm512_set1_epi32(0x3f803f80);
  uint64_t dot = ~uint64_t{0};
  uint64_t fma = ~uint64_t{0};
  for (int i = 0; i < 8; ++i) {
    const uint64_t d = CyclesOf([&](__m512 sum) { return _mm512_dpbf16_ps(sum, pair, pair); });
    const uint64_t f = CyclesOf([&](__m512 sum) { return _mm512_fmadd_ps(one, one, sum); });
    dot = d < dot ? d : dot;
    fma = f < fma ? f : fma;
  }
  // One dot product does the work of two FMAs, and widening costs some percent on top.
  return dot < 2 * fma - fma / 4;
}

// Random bits of a finite number whose exponent lies in [low, low + count).
CONCLAVE_KERNEL_INLINE uint32_t RandomBits(uint64_t& state, uint32_t low, uint32_t count) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  const uint32_t high = static_cast<uint32_t>(state >> 32);
  return (high & 0x807fffffu) | ((low + (high >> 23 & 0xffu) % count) << 23);
}

// Compares the instruction with two FMAs over pairs of ordinary size, over pairs that cancel, and
// over products and sums in the denormal range. Expects FTZ and DAZ.
bool DotProductEqualsTwoFmas() {
  struct Range {
    uint32_t low, count, sum_low, sum_count;  // biased exponents of factors and of the sum
  };
  constexpr Range kRanges[] = {
      {120, 14, 110, 34}, {126, 2, 126, 3}, {60, 8, 0, 4}, {0, 3, 0, 3}, {63, 2, 0, 2}};
  uint64_t state = 1;
  for (const Range& range : kRanges) {
    for (int i = 0; i < 64; ++i) {
      uint32_t x[16];
      uint32_t w[16];
      uint32_t sum[16];
      for (int l = 0; l < 16; ++l) {
        x[l] = RandomBits(state, range.low, range.count) >> 16 |
               (RandomBits(state, range.low, range.count) & 0xffff0000u);
        w[l] = RandomBits(state, range.low, range.count) >> 16 |
               (RandomBits(state, range.low, range.count) & 0xffff0000u);
        sum[l] = RandomBits(state, range.sum_low, range.sum_count);
      }
      const auto* x_pairs = reinterpret_cast<const uint16_t*>(x);
      const auto* w_pairs = reinterpret_cast<const uint16_t*>(w);
      const __m512 start = _mm512_castsi512_ps(_mm512_loadu_si512(sum));
      const __m512 dot =
          _mm512_dpbf16_ps(start, (__m512bh)_mm512_loadu_si512(x), (__m512bh)_mm512_loadu_si512(w));
      const __m512 odd = VecFma(VecOdd(x_pairs), VecOdd(w_pairs), start);
      const __m512 both = VecFma(VecEven(x_pairs), VecEven(w_pairs), odd);
      if (_mm512_cmpneq_epi32_mask(_mm512_castps_si512(dot), _mm512_castps_si512(both)) != 0) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace
}  // namespace conclave::kernels
