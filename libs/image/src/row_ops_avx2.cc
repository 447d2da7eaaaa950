#include "row_ops_vector.inl.h"

namespace conclave::image {
namespace {

struct V {
  using Ints = __m256i;
  static constexpr int64_t kColumns = 16;
  static constexpr int32_t kTaps = 4;

  static Ints Set(int32_t value) { return _mm256_set1_epi32(value); }
  static Ints Add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints MulAddPairs(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }
  template <int kBits>
  static Ints ShiftLeft(Ints a) {
    return _mm256_slli_epi32(a, kBits);
  }
  template <int kBits>
  static Ints ShiftRight(Ints a) {
    return _mm256_srai_epi32(a, kBits);
  }
  static Ints UnpackLow(Ints a, Ints b) { return _mm256_unpacklo_epi16(a, b); }
  static Ints UnpackHigh(Ints a, Ints b) { return _mm256_unpackhi_epi16(a, b); }

  static Ints LoadColumns(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  // The unpacking of LoadColumns left each group its own columns, and packing brings them back.
  static void StoreClamped(uint8_t* p, Ints low, Ints high) {
    const Ints words = _mm256_packs_epi32(low, high);
    const Ints bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(bytes));
  }

  // Pair g of `weights`, in every lane of group g.
  static Ints SpreadPairs(const int16_t* weights) {
    return _mm256_permutevar8x32_epi32(
        _mm256_castsi128_si256(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(weights))),
        _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
  }
  // Group g: red, green and blue of pixels 2·g and 2·g + 1, side by side as 16-bit numbers.
  static Ints LoadPixelPairs(const uint8_t* p) {
    const Ints twice =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_shuffle_epi8(
        twice, _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  }
  static __m128i SumGroups(Ints a) {
    return _mm_add_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
  }

  static void StoreNormalized(__m128i values, float mean, float std, float* out) {
    Eight(values, mean, std, out);
    Eight(_mm_srli_si128(values, 8), mean, std, out + 8);
  }

 private:
  static void Eight(__m128i values, float mean, float std, float* out) {
    const __m256i ints = _mm256_cvtepu8_epi32(values);
    const __m256d scale = _mm256_set1_pd(1.0 / 255.0);
    const __m128 low =
        _mm256_cvtpd_ps(_mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_castsi256_si128(ints)), scale));
    const __m128 high = _mm256_cvtpd_ps(
        _mm256_mul_pd(_mm256_cvtepi32_pd(_mm256_extracti128_si256(ints, 1)), scale));
    const __m256 unit = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
    _mm256_storeu_ps(out,
                     _mm256_div_ps(_mm256_sub_ps(unit, _mm256_set1_ps(mean)), _mm256_set1_ps(std)));
  }
};

}  // namespace

const RowOps& Avx2RowOps() {
  static constexpr RowOps kOps = {Shrink<V>, Columns<V>, Normalize<V>};
  return kOps;
}

}  // namespace conclave::image
