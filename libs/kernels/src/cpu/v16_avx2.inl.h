// Sixteen f32 lanes as two 256-bit registers. The semantics are those of v16_scalar.inl.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#define CONCLAVE_KERNEL_INLINE inline __attribute__((always_inline))

namespace conclave::kernels {
namespace {

struct V16 {
  __m256 lo;
  __m256 hi;
};
struct M16 {
  __m256 lo;
  __m256 hi;
};

alignas(64) constexpr int32_t kLaneMasks[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                0,  0,  0,  0,  0,  0,  0,  0};

// The first n of 8 lanes; n outside [0, 8] counts as the nearest of the two.
CONCLAVE_KERNEL_INLINE __m256i First8(int64_t n) {
  const int64_t clipped = n < 0 ? 0 : n > 8 ? 8 : n;
  return _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(kLaneMasks + 8 - clipped));
}
CONCLAVE_KERNEL_INLINE __m256i IntsOf(__m256 a) { return _mm256_castps_si256(a); }
CONCLAVE_KERNEL_INLINE __m256 FloatsOf(__m256i a) { return _mm256_castsi256_ps(a); }

CONCLAVE_KERNEL_INLINE V16 Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
CONCLAVE_KERNEL_INLINE V16 Set1(float value) {
  return {_mm256_set1_ps(value), _mm256_set1_ps(value)};
}
CONCLAVE_KERNEL_INLINE V16 Load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
CONCLAVE_KERNEL_INLINE V16 LoadN(const float* p, int64_t n) {
  return n >= 16 ? Load(p)
                 : V16{_mm256_maskload_ps(p, First8(n)), _mm256_maskload_ps(p + 8, First8(n - 8))};
}
CONCLAVE_KERNEL_INLINE void Store(float* p, V16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
CONCLAVE_KERNEL_INLINE void StoreN(float* p, V16 a, int64_t n) {
  if (n >= 16) {
    Store(p, a);
  } else {
    _mm256_maskstore_ps(p, First8(n), a.lo);
    _mm256_maskstore_ps(p + 8, First8(n - 8), a.hi);
  }
}

CONCLAVE_KERNEL_INLINE V16 Add(V16 a, V16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Sub(V16 a, V16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Mul(V16 a, V16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Div(V16 a, V16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Fma(V16 a, V16 b, V16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Max(V16 a, V16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Min(V16 a, V16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Abs(V16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
CONCLAVE_KERNEL_INLINE V16 Neg(V16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}

CONCLAVE_KERNEL_INLINE M16 Less(V16 a, V16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
CONCLAVE_KERNEL_INLINE M16 LaneRange(int64_t lo, int64_t hi) {
  return {FloatsOf(_mm256_andnot_si256(First8(lo), First8(hi))),
          FloatsOf(_mm256_andnot_si256(First8(lo - 8), First8(hi - 8)))};
}
CONCLAVE_KERNEL_INLINE V16 Select(M16 mask, V16 yes, V16 no) {
  return {_mm256_blendv_ps(no.lo, yes.lo, mask.lo), _mm256_blendv_ps(no.hi, yes.hi, mask.hi)};
}

CONCLAVE_KERNEL_INLINE __m256 Pow2FromBiased8(__m256 biased) {
  return FloatsOf(
      _mm256_add_epi32(_mm256_slli_epi32(IntsOf(biased), 23), _mm256_set1_epi32(0x3f800000)));
}
CONCLAVE_KERNEL_INLINE V16 Pow2FromBiased(V16 biased) {
  return {Pow2FromBiased8(biased.lo), Pow2FromBiased8(biased.hi)};
}

CONCLAVE_KERNEL_INLINE __m256 Widen8(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p));
  return FloatsOf(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
CONCLAVE_KERNEL_INLINE V16 LoadBf16(const uint16_t* p) { return {Widen8(p), Widen8(p + 8)}; }
CONCLAVE_KERNEL_INLINE V16 LoadBf16N(const uint16_t* p, int64_t n) {
  if (n >= 16) {
    return LoadBf16(p);
  }
  uint16_t lanes[16] = {};
  for (int64_t l = 0; l < n; ++l) {
    lanes[l] = p[l];
  }
  return LoadBf16(lanes);
}

CONCLAVE_KERNEL_INLINE __m256i Bf16BitsOf8(__m256 a) {
  const __m256i bits = IntsOf(a);
  const __m256i upper = _mm256_srli_epi32(bits, 16);
  const __m256i magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(upper, _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(
      _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i is_nan = _mm256_cmpgt_epi32(magnitude, _mm256_set1_epi32(0x7f800000));
  const __m256i is_denormal = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), magnitude);
  const __m256i quiet = _mm256_or_si256(upper, _mm256_set1_epi32(0x40));
  const __m256i zero = _mm256_and_si256(upper, _mm256_set1_epi32(0x8000));
  return _mm256_blendv_epi8(_mm256_blendv_epi8(rounded, zero, is_denormal), quiet, is_nan);
}
CONCLAVE_KERNEL_INLINE void StoreBf16N(uint16_t* p, V16 a, int64_t n) {
  const __m256i mixed = _mm256_packus_epi32(Bf16BitsOf8(a.lo), Bf16BitsOf8(a.hi));
  const __m256i packed = _mm256_permute4x64_epi64(mixed, 0xd8);
  if (n >= 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), packed);
    return;
  }
  uint16_t lanes[16];
  _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(lanes), packed);
  for (int64_t l = 0; l < n; ++l) {
    p[l] = lanes[l];
  }
}

CONCLAVE_KERNEL_INLINE int32_t StoreRounded(int8_t* p, V16 a) {
  const __m256i lo = _mm256_cvtps_epi32(a.lo);
  const __m256i hi = _mm256_cvtps_epi32(a.hi);
  // Packing works within 128-bit halves: a0-3 b0-3 a4-7 b4-7, set right at the end.
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i_u*>(p), bytes);
  const __m256i by8 = _mm256_add_epi32(lo, hi);
  const __m128i by4 = _mm_add_epi32(_mm256_castsi256_si128(by8), _mm256_extracti128_si256(by8, 1));
  const __m128i by2 = _mm_add_epi32(by4, _mm_shuffle_epi32(by4, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(by2, _mm_shuffle_epi32(by2, 0xb1)));
}
CONCLAVE_KERNEL_INLINE V16 LoadBf16Swapped(const uint16_t* p, int64_t n) {
  const V16 a = LoadBf16N(p, n);
  return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
}

CONCLAVE_KERNEL_INLINE float ReduceAdd(V16 a) {
  const __m256 by8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 by4 = _mm_add_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_add_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_add_ss(by2, _mm_movehdup_ps(by2)));
}
CONCLAVE_KERNEL_INLINE float ReduceMax(V16 a) {
  const __m256 by8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 by4 = _mm_max_ps(_mm256_castps256_ps128(by8), _mm256_extractf128_ps(by8, 1));
  const __m128 by2 = _mm_max_ps(by4, _mm_movehl_ps(by4, by4));
  return _mm_cvtss_f32(_mm_max_ss(by2, _mm_movehdup_ps(by2)));
}

// The vector of the GEMM tiles. Sixteen registers: rows × vectors accumulators plus the weights and
// one broadcast x.
using Vec = __m256;
inline constexpr int64_t kVecLanes = 8;
inline constexpr int kTileRowsMax = 6;
constexpr int TileVecs(int rows) { return rows == 1 ? 8 : rows <= 3 ? 4 : 2; }
inline constexpr int kAttendItems = 2;
inline constexpr int kAttendAccumulators = 4;

CONCLAVE_KERNEL_INLINE Vec VecZero() { return _mm256_setzero_ps(); }
CONCLAVE_KERNEL_INLINE Vec VecSet1(float value) { return _mm256_set1_ps(value); }
CONCLAVE_KERNEL_INLINE Vec VecLoad(const float* p) { return _mm256_loadu_ps(p); }
CONCLAVE_KERNEL_INLINE Vec VecLoadN(const float* p, int64_t n) {
  return _mm256_maskload_ps(p, First8(n));
}
CONCLAVE_KERNEL_INLINE void VecStore(float* p, Vec a) { _mm256_storeu_ps(p, a); }
CONCLAVE_KERNEL_INLINE void VecStoreN(float* p, Vec a, int64_t n) {
  _mm256_maskstore_ps(p, First8(n), a);
}
CONCLAVE_KERNEL_INLINE Vec VecAdd(Vec a, Vec b) { return _mm256_add_ps(a, b); }
CONCLAVE_KERNEL_INLINE Vec VecFma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
CONCLAVE_KERNEL_INLINE __m256i LoadPairs(const uint16_t* pairs) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(pairs));
}
CONCLAVE_KERNEL_INLINE Vec VecEven(const uint16_t* pairs) {
  return FloatsOf(_mm256_slli_epi32(LoadPairs(pairs), 16));
}
CONCLAVE_KERNEL_INLINE Vec VecOdd(const uint16_t* pairs) {
  return FloatsOf(_mm256_and_si256(LoadPairs(pairs), _mm256_set1_epi32(-65536)));
}

}  // namespace
}  // namespace conclave::kernels
