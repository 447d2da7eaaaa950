// Sixteen f32 lanes as one 512-bit register. The semantics are those of v16_scalar.inl.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define CONCLAVE_KERNEL_INLINE inline __attribute__((always_inline))

namespace conclave::kernels {
namespace {

// A struct and not __m512 itself, so that all paths overload and pass it alike.
struct V16 {
  __m512 v;
};
struct M16 {
  __mmask16 v;
};

CONCLAVE_KERNEL_INLINE __mmask16 First16(int64_t n) {
  const int64_t clipped = n < 0 ? 0 : n > 16 ? 16 : n;
  return static_cast<__mmask16>((1u << clipped) - 1u);
}

CONCLAVE_KERNEL_INLINE V16 Zero() { return {_mm512_setzero_ps()}; }
CONCLAVE_KERNEL_INLINE V16 Set1(float value) { return {_mm512_set1_ps(value)}; }
CONCLAVE_KERNEL_INLINE V16 Load(const float* p) { return {_mm512_loadu_ps(p)}; }
CONCLAVE_KERNEL_INLINE V16 LoadN(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(First16(n), p)};
}
CONCLAVE_KERNEL_INLINE void Store(float* p, V16 a) { _mm512_storeu_ps(p, a.v); }
CONCLAVE_KERNEL_INLINE void StoreN(float* p, V16 a, int64_t n) {
  _mm512_mask_storeu_ps(p, First16(n), a.v);
}

CONCLAVE_KERNEL_INLINE V16 Add(V16 a, V16 b) { return {_mm512_add_ps(a.v, b.v)}; }
CONCLAVE_KERNEL_INLINE V16 Sub(V16 a, V16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
CONCLAVE_KERNEL_INLINE V16 Mul(V16 a, V16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
CONCLAVE_KERNEL_INLINE V16 Div(V16 a, V16 b) { return {_mm512_div_ps(a.v, b.v)}; }
CONCLAVE_KERNEL_INLINE V16 Fma(V16 a, V16 b, V16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
CONCLAVE_KERNEL_INLINE V16 Max(V16 a, V16 b) { return {_mm512_max_ps(a.v, b.v)}; }
CONCLAVE_KERNEL_INLINE V16 Min(V16 a, V16 b) { return {_mm512_min_ps(a.v, b.v)}; }
CONCLAVE_KERNEL_INLINE V16 Abs(V16 a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
CONCLAVE_KERNEL_INLINE V16 Neg(V16 a) { return {_mm512_xor_ps(_mm512_set1_ps(-0.0f), a.v)}; }

CONCLAVE_KERNEL_INLINE M16 Less(V16 a, V16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
CONCLAVE_KERNEL_INLINE M16 LaneRange(int64_t lo, int64_t hi) {
  return {static_cast<__mmask16>(First16(hi) & ~First16(lo))};
}
CONCLAVE_KERNEL_INLINE V16 Select(M16 mask, V16 yes, V16 no) {
  return {_mm512_mask_blend_ps(mask.v, no.v, yes.v)};
}

CONCLAVE_KERNEL_INLINE V16 Pow2FromBiased(V16 biased) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(biased.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(shifted, _mm512_set1_epi32(0x3f800000)))};
}

CONCLAVE_KERNEL_INLINE V16 WidenHalves(__m256i halves) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
CONCLAVE_KERNEL_INLINE V16 LoadBf16(const uint16_t* p) {
  return WidenHalves(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
}
CONCLAVE_KERNEL_INLINE V16 LoadBf16N(const uint16_t* p, int64_t n) {
  return WidenHalves(_mm256_maskz_loadu_epi16(First16(n), p));
}
CONCLAVE_KERNEL_INLINE void StoreBf16N(uint16_t* p, V16 a, int64_t n) {
#ifdef __AVX512BF16__
  const __m256i out = (__m256i)_mm512_cvtneps_pbh(a.v);
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i upper = _mm512_srli_epi32(bits, 16);
  const __m512i magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i odd = _mm512_and_si512(upper, _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __mmask16 is_nan = _mm512_cmpgt_epi32_mask(magnitude, _mm512_set1_epi32(0x7f800000));
  const __mmask16 is_denormal = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x00800000));
  const __m512i quiet = _mm512_or_si512(upper, _mm512_set1_epi32(0x40));
  const __m512i flushed =
      _mm512_mask_and_epi32(rounded, is_denormal, upper, _mm512_set1_epi32(0x8000));
  const __m256i out = _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, flushed, quiet));
#endif
  _mm256_mask_storeu_epi16(p, First16(n), out);
}

CONCLAVE_KERNEL_INLINE int32_t StoreRounded(int8_t* p, V16 a) {
  const __m512i ints = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p), _mm512_cvtepi32_epi8(ints));
  return _mm512_reduce_add_epi32(ints);
}
// One permutation of halves: the upper half of lane l is p[l ^ 1], the lower one zero.
CONCLAVE_KERNEL_INLINE V16 LoadBf16Swapped(const uint16_t* p, int64_t n) {
  const __m512i index =
      _mm512_set_epi32(14 << 16, 15 << 16, 12 << 16, 13 << 16, 10 << 16, 11 << 16, 8 << 16, 9 << 16,
                       6 << 16, 7 << 16, 4 << 16, 5 << 16, 2 << 16, 3 << 16, 0 << 16, 1 << 16);
  const __m512i halves = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(First16(n), p));
  return {_mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, index, halves))};
}

CONCLAVE_KERNEL_INLINE float ReduceAdd(V16 a) {
  const __m256 by8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
CONCLAVE_KERNEL_INLINE float ReduceMax(V16 a) {
  const __m256 by8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

// The vector of the GEMM tiles: 6 rows × 4 vectors leave 8 of 32 registers for weights and the
// broadcast x.
using Vec = __m512;
inline constexpr int64_t kVecLanes = 16;
inline constexpr int kTileRowsMax = 6;
constexpr int TileVecs(int /*rows*/) { return 4; }
inline constexpr int kAttendItems = 8;
inline constexpr int kAttendAccumulators = 24;

CONCLAVE_KERNEL_INLINE Vec VecZero() { return _mm512_setzero_ps(); }
CONCLAVE_KERNEL_INLINE Vec VecSet1(float value) { return _mm512_set1_ps(value); }
CONCLAVE_KERNEL_INLINE Vec VecLoad(const float* p) { return _mm512_loadu_ps(p); }
CONCLAVE_KERNEL_INLINE Vec VecLoadN(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(First16(n), p);
}
CONCLAVE_KERNEL_INLINE void VecStore(float* p, Vec a) { _mm512_storeu_ps(p, a); }
CONCLAVE_KERNEL_INLINE void VecStoreN(float* p, Vec a, int64_t n) {
  _mm512_mask_storeu_ps(p, First16(n), a);
}
CONCLAVE_KERNEL_INLINE Vec VecAdd(Vec a, Vec b) { return _mm512_add_ps(a, b); }
CONCLAVE_KERNEL_INLINE Vec VecMul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
CONCLAVE_KERNEL_INLINE Vec VecFma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
CONCLAVE_KERNEL_INLINE Vec VecEven(const uint16_t* pairs) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(pairs), 16));
}
CONCLAVE_KERNEL_INLINE Vec VecOdd(const uint16_t* pairs) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(pairs), _mm512_set1_epi32(-65536)));
}

}  // namespace
}  // namespace conclave::kernels
