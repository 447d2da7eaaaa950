// Products of bytes for matmul_q8.inl.h in 256-bit vectors.
#pragma once

namespace conclave::kernels {
namespace {

struct Q8Avx2 {
  using IVec = __m256i;
  static constexpr int kRegisters = 16;

  static CONCLAVE_KERNEL_INLINE IVec SetSum(int32_t value) { return _mm256_set1_epi32(value); }
  static CONCLAVE_KERNEL_INLINE Vec ToF32(IVec sum) { return _mm256_cvtepi32_ps(sum); }
  static CONCLAVE_KERNEL_INLINE Vec LoadScales(const char* p) {
    return Widen8(reinterpret_cast<const uint16_t*>(p));
  }
  // A step of a row, 4 bytes at any address, in all lanes.
  static CONCLAVE_KERNEL_INLINE __m256i Broadcast(const char* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof(word));
    return _mm256_set1_epi32(word);
  }
  static CONCLAVE_KERNEL_INLINE __m256i LoadBytes(const char* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(p));
  }
};

#ifdef __AVXVNNI__

struct Q8Dot256 : Q8Avx2 {
  using Weights = __m256i;
  using Row = __m256i;
  static constexpr int kTileRows = 6;
  static constexpr int TileVecs(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
  static constexpr int kSpareRegisters(int vecs) { return vecs + 1; }
  static constexpr int64_t kRowBytes = 4;
  // Half a MiB of weights.
  static constexpr int64_t kGroupBlocks = 256;
  static constexpr bool kExpands = false;

  static CONCLAVE_KERNEL_INLINE Weights LoadWeights(const char* p) { return LoadBytes(p); }
  static CONCLAVE_KERNEL_INLINE Row LoadRow(const char* p) { return Broadcast(p); }
  static CONCLAVE_KERNEL_INLINE IVec Dot(IVec sum, Weights weights, Row row) {
    return _mm256_dpbusd_avx_epi32(sum, weights, row);
  }
};

#else

// Without VPDPBUSD: bytes 0 and 2, then 1 and 3, as pairs of 16 bits. (VPMADDUBSW would saturate.)
struct Q8Madd256 : Q8Avx2 {
  struct Pairs {
    __m256i even;
    __m256i odd;
  };
  using Weights = Pairs;
  using Row = Pairs;
  static constexpr int kTileRows = 4;
  static constexpr int TileVecs(int rows) { return rows == 1 ? 8 : rows == 2 ? 4 : 2; }
  static constexpr int kSpareRegisters(int vecs) { return 2 * vecs + 4; }
  static constexpr int64_t kRowBytes = 8;
  // Expanded rows of a group take 2 KiB each.
  static constexpr int64_t kGroupBlocks = 32;
  static constexpr bool kExpands = true;

  static CONCLAVE_KERNEL_INLINE Weights LoadWeights(const char* p) {
    const __m256i bytes = LoadBytes(p);
    return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
  }
  static CONCLAVE_KERNEL_INLINE Row LoadRow(const char* p) {
    return {Broadcast(p), Broadcast(p + 4)};
  }
  static CONCLAVE_KERNEL_INLINE IVec Dot(IVec sum, const Weights& weights, const Row& row) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights.even, row.even));
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(weights.odd, row.odd));
    // Integer sums may be regrouped, and the compiler would gather all products of a block before
    // adding them: far more than there are registers.
    __asm__("" : "+x"(sum));
    return sum;
  }
  static CONCLAVE_KERNEL_INLINE void ExpandRow(const int8_t* x, int64_t num_blocks, char* out) {
    for (int64_t b = 0; b < num_blocks; ++b) {
      ExpandBlock(x + b * kQ8BlockSize, out + b * kQ8Steps * kRowBytes);
    }
  }
};

#endif

}  // namespace
}  // namespace conclave::kernels
