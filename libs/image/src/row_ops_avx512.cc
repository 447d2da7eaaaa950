#include "row_ops_vector.inl.h"

namespace conclave::image {
namespace {

struct V {
  using Ints = __m512i;
  static constexpr int64_t kColumns = 32;
  static constexpr int32_t kTaps = 8;

  static Ints Set(int32_t value) { return _mm512_set1_epi32(value); }
  static Ints Add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints MulAddPairs(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }
  template <int kBits>
  static Ints ShiftLeft(Ints a) {
    return _mm512_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Ints ShiftRight(Ints a) {
    return _mm512_srai_epi32(a, kBits);
  }
  static Ints UnpackLow(Ints a, Ints b) { return _mm512_unpacklo_epi16(a, b); }
  static Ints UnpackHigh(Ints a, Ints b) { return _mm512_unpackhi_epi16(a, b); }

  static Ints LoadColumns(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
  }
  static void StoreClamped(uint8_t* p, Ints low, Ints high) {
    const Ints words = _mm512_max_epi16(_mm512_packs_epi32(low, high), _mm512_setzero_si512());
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(p), _mm512_cvtusepi16_epi8(words));
  }

  // As in row_ops_avx2.cc, with four groups.
  static Ints SpreadPairs(const int16_t* weights) {
    return _mm512_permutexvar_epi32(
        _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3),
        _mm512_castsi128_si512(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights))));
  }
  static Ints LoadPixelPairs(const uint8_t* p) {
    // The 6 bytes of a pair of pixels into each group, then apart.
    const Ints line =
        _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p)));
    const Ints to_groups = _mm512_set_epi16(0, 0, 0, 0, 0, 11, 10, 9, 0, 0, 0, 0, 0, 8, 7, 6,  //
                                            0, 0, 0, 0, 0, 5, 4, 3, 0, 0, 0, 0, 0, 2, 1, 0);
    const Ints apart = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
    return _mm512_shuffle_epi8(_mm512_permutexvar_epi16(to_groups, line), apart);
  }
  static __m128i SumGroups(Ints a) {
    const __m256i half =
        _mm256_add_epi32(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
  }

  static void StoreNormalized(__m128i values, float mean, float std, float* out) {
    const __m512i ints = _mm512_cvtepu8_epi32(values);
    const __m512d scale = _mm512_set1_pd(1.0 / 255.0);
    const __m256 low =
        _mm512_cvtpd_ps(_mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_castsi512_si256(ints)), scale));
    const __m256 high = _mm512_cvtpd_ps(
        _mm512_mul_pd(_mm512_cvtepi32_pd(_mm512_extracti64x4_epi64(ints, 1)), scale));
    const __m512 unit = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
    _mm512_storeu_ps(out,
                     _mm512_div_ps(_mm512_sub_ps(unit, _mm512_set1_ps(mean)), _mm512_set1_ps(std)));
  }
};

}  // namespace

const RowOps& Avx512RowOps() {
  static constexpr RowOps kOps = {Shrink<V>, Columns<V>, Normalize<V>};
  return kOps;
}

}  // namespace conclave::image
