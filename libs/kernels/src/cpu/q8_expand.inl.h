// Rows for paths without VPDPBUSD.
#pragma once

namespace conclave::kernels {
namespace {

// A block of 32 bytes as 16-bit numbers, bytes 0, 2, 1, 3 of every four: two pairs for VPMADDWD.
CONCLAVE_KERNEL_INLINE void ExpandBlock(const int8_t* x, char* out) {
  for (int64_t half = 0; half < 2; ++half) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(x + 16 * half));
    const __m128i even = _mm_srai_epi16(_mm_slli_epi16(bytes, 8), 8);
    const __m128i odd = _mm_srai_epi16(bytes, 8);
    auto* to = reinterpret_cast<__m128i_u*>(out + 32 * half);
    _mm_storeu_si128(to, _mm_unpacklo_epi32(even, odd));
    _mm_storeu_si128(to + 1, _mm_unpackhi_epi32(even, odd));
  }
}

}  // namespace
}  // namespace conclave::kernels
