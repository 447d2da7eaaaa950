// The vector versions of RowOps, written once over a register type V (row_ops_avx2.cc,
// row_ops_avx512.cc):
//   V::Ints              a register of 32-bit lanes, in groups of 128 bits
//   V::kColumns          bytes that fill it as 16-bit numbers
//   V::kTaps             pixels of a line that it holds as pairs, two in each group
// A weight is two parts of 16 bits, because the multiply-add of pairs (PMADDWD) takes those. Sums
// of each part, and their composition, are taken modulo 2^32. The result is right whenever the
// whole sum fits 32 bits, and it does: the kernel's negative lobes make Σ|weight| at most 1.3 ·
// 2^22 (5/4 for two inner and two outer taps half way between pixels, 7/6 for many, and 1.27 at the
// worst of all pairs of lengths up to 500, near the border), so that the sum and its half lie
// within 255 · 1.3 · 2^22 + 2^21 < 1.4 · 10^9 < 2^31. A pair is at most 2 · 255 · 2048, far from
// where PMADDWD saturates.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "row_ops.h"

#define CONCLAVE_IMAGE_INLINE inline __attribute__((always_inline))

namespace conclave::image {
namespace {

constexpr int32_t kHalf = 1 << (kWeightBits - 1);
constexpr int kLowBits = 12;

// Two weights of neighbouring taps as one 32-bit number.
CONCLAVE_IMAGE_INLINE int32_t PairAt(const int16_t* weights) {
  int32_t pair = 0;
  std::memcpy(&pair, weights, sizeof(pair));
  return pair;
}

// The bytes of `v` from Σ high and Σ low, before the clamp that packing does.
template <typename V>
CONCLAVE_IMAGE_INLINE typename V::Ints Compose(typename V::Ints high, typename V::Ints low) {
  const typename V::Ints sum =
      V::Add(V::Add(V::template ShiftLeft<kLowBits>(high), low), V::Set(kHalf));
  return V::template ShiftRight<kWeightBits>(sum);
}

template <typename V>
void Shrink(const uint8_t* const* lines, const Tap* taps, int32_t from, int32_t to,
            uint8_t* const* out) {
  static_assert(kTapsUnit % V::kTaps == 0);
  for (int32_t i = from; i < to; ++i) {
    const SplitWeights& weights = taps[i].weights;
    const int64_t first = int64_t{3} * taps[i].first;
    typename V::Ints high[kLines];
    typename V::Ints low[kLines];
    for (int32_t l = 0; l < kLines; ++l) {
      high[l] = V::Set(0);
      low[l] = V::Set(0);
    }
    // Its own taps and no more: near the right border those of its widest neighbour would end
    // beyond the line and its slack.
    for (int32_t t = 0; t < taps[i].count; t += V::kTaps) {
      const typename V::Ints high_pairs = V::SpreadPairs(weights.high + t);
      const typename V::Ints low_pairs = V::SpreadPairs(weights.low + t);
      for (int32_t l = 0; l < kLines; ++l) {
        const typename V::Ints pixels = V::LoadPixelPairs(lines[l] + first + int64_t{3} * t);
        high[l] = V::Add(high[l], V::MulAddPairs(pixels, high_pairs));
        low[l] = V::Add(low[l], V::MulAddPairs(pixels, low_pairs));
      }
    }
    __m128i rgbx[kLines];
    for (int32_t l = 0; l < kLines; ++l) {
      const __m128i sum =
          _mm_add_epi32(_mm_slli_epi32(V::SumGroups(high[l]), kLowBits), V::SumGroups(low[l]));
      rgbx[l] = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kWeightBits);
    }
    static_assert(kLines == 4);
    alignas(16) uint8_t bytes[16];
    _mm_store_si128(
        reinterpret_cast<__m128i*>(bytes),
        _mm_packus_epi16(_mm_packs_epi32(rgbx[0], rgbx[1]), _mm_packs_epi32(rgbx[2], rgbx[3])));
    for (int32_t l = 0; l < kLines; ++l) {
      std::memcpy(out[l] + int64_t{3} * i, bytes + 4 * l, 3);
    }
  }
}

// Columns [j, j + V::kColumns).
template <typename V>
CONCLAVE_IMAGE_INLINE void ColumnBlock(const uint8_t* in, int64_t row_bytes,
                                       const SplitWeights& weights, int32_t num_taps,
                                       uint8_t* out) {
  typename V::Ints high0 = V::Set(0);
  typename V::Ints high1 = high0;
  typename V::Ints low0 = high0;
  typename V::Ints low1 = high0;
  for (int32_t t = 0; t < num_taps; t += 2) {
    const uint8_t* row = in + t * row_bytes;
    const typename V::Ints a = V::LoadColumns(row);
    // The last of an odd number is paired with itself: its neighbour's weight is padding.
    const typename V::Ints b = V::LoadColumns(t + 1 < num_taps ? row + row_bytes : row);
    const typename V::Ints pairs0 = V::UnpackLow(a, b);
    const typename V::Ints pairs1 = V::UnpackHigh(a, b);
    const typename V::Ints high_pair = V::Set(PairAt(weights.high + t));
    const typename V::Ints low_pair = V::Set(PairAt(weights.low + t));
    high0 = V::Add(high0, V::MulAddPairs(pairs0, high_pair));
    high1 = V::Add(high1, V::MulAddPairs(pairs1, high_pair));
    low0 = V::Add(low0, V::MulAddPairs(pairs0, low_pair));
    low1 = V::Add(low1, V::MulAddPairs(pairs1, low_pair));
  }
  V::StoreClamped(out, Compose<V>(high0, low0), Compose<V>(high1, low1));
}

template <typename V>
void Columns(const uint8_t* in, int64_t row_bytes, const SplitWeights& weights, int32_t num_taps,
             uint8_t* out) {
  if (row_bytes < V::kColumns) {
    ScalarRowOps().columns(in, row_bytes, weights, num_taps, out);
    return;
  }
  int64_t j = 0;
  for (; j + V::kColumns <= row_bytes; j += V::kColumns) {
    ColumnBlock<V>(in + j, row_bytes, weights, num_taps, out + j);
  }
  if (j < row_bytes) {
    // The rest again with some of the columns before it.
    j = row_bytes - V::kColumns;
    ColumnBlock<V>(in + j, row_bytes, weights, num_taps, out + j);
  }
}

// Byte 3·i + c of 48, for i < 16: where channel c of 16 pixels lies in three registers.
CONCLAVE_IMAGE_INLINE __m128i Channel(const __m128i rgb[3], int c) {
  alignas(16) static constexpr int8_t kPick[3][3][16] = {
      {{0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 1, 4, 7, 10, 13}},
      {{1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2, 5, 8, 11, 14}},
      {{2, 5, 8, 11, 14, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, 1, 4, 7, 10, 13, -1, -1, -1, -1, -1, -1},
       {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 3, 6, 9, 12, 15}}};
  __m128i out = _mm_setzero_si128();
  for (int r = 0; r < 3; ++r) {
    const __m128i pick = _mm_load_si128(reinterpret_cast<const __m128i*>(kPick[c][r]));
    out = _mm_or_si128(out, _mm_shuffle_epi8(rgb[r], pick));
  }
  return out;
}

template <typename V>
void Normalize(const uint8_t* rgb, int64_t num_pixels, const float mean[3], const float std[3],
               float* const plane[3]) {
  constexpr int64_t kPixels = 16;
  int64_t i = 0;
  for (; i + kPixels <= num_pixels; i += kPixels) {
    __m128i registers[3];
    for (int r = 0; r < 3; ++r) {
      registers[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rgb + 3 * i + 16 * r));
    }
    for (int c = 0; c < 3; ++c) {
      V::StoreNormalized(Channel(registers, c), mean[c], std[c], plane[c] + i);
    }
  }
  if (i < num_pixels) {
    float* const rest[3] = {plane[0] + i, plane[1] + i, plane[2] + i};
    ScalarRowOps().normalize(rgb + 3 * i, num_pixels - i, mean, std, rest);
  }
}

}  // namespace
}  // namespace conclave::image
