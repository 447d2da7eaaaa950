// Sixteen f32 lanes in plain C++, the reference that the vector versions equal bit by bit.
//
// Semantics shared by all v16_*.inl.h:
//   Max(a, b) is a > b ? a : b and Min(a, b) is a < b ? a : b, so a NaN in either gives b.
//   Fma(a, b, c) is one rounding.
//   LoadN and StoreN touch the first n lanes only, all for n >= 16 and none for n <= 0; LoadN fills
//   the others with zero.
//   Reductions go l += l + 8, l + 4, l + 2, l + 1.
#pragma once

#include <cstdint>

#define CONCLAVE_KERNEL_INLINE inline __attribute__((always_inline))
// Lanes in memory gain little from inlining, and sixteen unrolled lanes in every place that uses
// them take a sanitizer build minutes to compile.
#define CONCLAVE_LANES inline __attribute__((noinline))

namespace conclave::kernels {
namespace {

struct V16 {
  float v[16];
};
struct M16 {
  bool v[16];
};

CONCLAVE_KERNEL_INLINE uint32_t BitsOf(float value) { return __builtin_bit_cast(uint32_t, value); }
CONCLAVE_KERNEL_INLINE float FloatOf(uint32_t bits) { return __builtin_bit_cast(float, bits); }

template <typename Fn>
CONCLAVE_KERNEL_INLINE V16 EachLane(const Fn& fn) {
  V16 out;
  for (int l = 0; l < 16; ++l) {
    out.v[l] = fn(l);
  }
  return out;
}

CONCLAVE_LANES V16 Zero() {
  return EachLane([](int) { return 0.0f; });
}
CONCLAVE_LANES V16 Set1(float value) {
  return EachLane([&](int) { return value; });
}
CONCLAVE_LANES V16 Load(const float* p) {
  return EachLane([&](int l) { return p[l]; });
}
CONCLAVE_LANES V16 LoadN(const float* p, int64_t n) {
  return EachLane([&](int l) { return l < n ? p[l] : 0.0f; });
}
CONCLAVE_LANES void Store(float* p, const V16& a) {
  for (int l = 0; l < 16; ++l) {
    p[l] = a.v[l];
  }
}
CONCLAVE_LANES void StoreN(float* p, const V16& a, int64_t n) {
  for (int l = 0; l < 16; ++l) {
    if (l < n) {
      p[l] = a.v[l];
    }
  }
}

CONCLAVE_LANES V16 Add(const V16& a, const V16& b) {
  return EachLane([&](int l) { return a.v[l] + b.v[l]; });
}
CONCLAVE_LANES V16 Sub(const V16& a, const V16& b) {
  return EachLane([&](int l) { return a.v[l] - b.v[l]; });
}
CONCLAVE_LANES V16 Mul(const V16& a, const V16& b) {
  return EachLane([&](int l) { return a.v[l] * b.v[l]; });
}
CONCLAVE_LANES V16 Div(const V16& a, const V16& b) {
  return EachLane([&](int l) { return a.v[l] / b.v[l]; });
}
CONCLAVE_LANES V16 Fma(const V16& a, const V16& b, const V16& c) {
  return EachLane([&](int l) { return __builtin_fmaf(a.v[l], b.v[l], c.v[l]); });
}
CONCLAVE_LANES V16 Max(const V16& a, const V16& b) {
  return EachLane([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
}
CONCLAVE_LANES V16 Min(const V16& a, const V16& b) {
  return EachLane([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
}
CONCLAVE_LANES V16 Abs(const V16& a) {
  return EachLane([&](int l) { return FloatOf(BitsOf(a.v[l]) & 0x7fffffffu); });
}
CONCLAVE_LANES V16 Neg(const V16& a) {
  return EachLane([&](int l) { return FloatOf(BitsOf(a.v[l]) ^ 0x80000000u); });
}

CONCLAVE_LANES M16 Less(const V16& a, const V16& b) {
  M16 out;
  for (int l = 0; l < 16; ++l) {
    out.v[l] = a.v[l] < b.v[l];
  }
  return out;
}
// Lanes lo <= l < hi.
CONCLAVE_LANES M16 LaneRange(int64_t lo, int64_t hi) {
  M16 out;
  for (int l = 0; l < 16; ++l) {
    out.v[l] = l >= lo && l < hi;
  }
  return out;
}
CONCLAVE_LANES V16 Select(const M16& mask, const V16& yes, const V16& no) {
  return EachLane([&](int l) { return mask.v[l] ? yes.v[l] : no.v[l]; });
}

// 2^n where `biased` = 1.5·2^23 + n, exact for -126 <= n <= 127.
CONCLAVE_LANES V16 Pow2FromBiased(const V16& biased) {
  return EachLane([&](int l) { return FloatOf((BitsOf(biased.v[l]) << 23) + 0x3f800000u); });
}

CONCLAVE_LANES V16 LoadBf16N(const uint16_t* p, int64_t n) {
  return EachLane([&](int l) { return FloatOf(l < n ? uint32_t{p[l]} << 16 : 0u); });
}
CONCLAVE_LANES V16 LoadBf16(const uint16_t* p) { return LoadBf16N(p, 16); }
// Rounds as ToBf16 of tensor/dtype.h.
CONCLAVE_LANES void StoreBf16N(uint16_t* p, const V16& a, int64_t n) {
  for (int64_t l = 0; l < n; ++l) {
    const uint32_t bits = BitsOf(a.v[l]);
    const uint32_t magnitude = bits & 0x7fffffffu;
    uint32_t out = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    if (magnitude > 0x7f800000u) {
      out = (bits >> 16) | 0x40u;
    } else if (magnitude < 0x00800000u) {
      out = (bits >> 16) & 0x8000u;
    }
    p[l] = static_cast<uint16_t>(out);
  }
}

// Stores the lanes, each between -127.5 and 127.5, as the nearest integers (ties to even); returns
// their sum.
CONCLAVE_LANES int32_t StoreRounded(int8_t* p, const V16& a) {
  int32_t sum = 0;
  for (int l = 0; l < 16; ++l) {
    p[l] = static_cast<int8_t>(__builtin_lrintf(a.v[l]));
    sum += p[l];
  }
  return sum;
}
// LoadBf16N with the elements of every pair swapped: lane l is p[l ^ 1].
CONCLAVE_LANES V16 LoadBf16Swapped(const uint16_t* p, int64_t n) {
  const V16 a = LoadBf16N(p, n);
  return EachLane([&](int l) { return a.v[l ^ 1]; });
}

CONCLAVE_LANES float ReduceAdd(V16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      a.v[l] = a.v[l] + a.v[l + half];
    }
  }
  return a.v[0];
}
CONCLAVE_LANES float ReduceMax(V16 a) {
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      a.v[l] = a.v[l] > a.v[l + half] ? a.v[l] : a.v[l + half];
    }
  }
  return a.v[0];
}

// The vector of the GEMM tiles. Without registers worth the name, one row at a time keeps the code
// small.
using Vec = V16;
inline constexpr int64_t kVecLanes = 16;
inline constexpr int kTileRowsMax = 1;
constexpr int TileVecs(int /*rows*/) { return 4; }
// Attention: items at once, and V16 accumulators that stay in registers.
inline constexpr int kAttendItems = 1;
inline constexpr int kAttendAccumulators = 4;

CONCLAVE_LANES Vec VecZero() { return Zero(); }
CONCLAVE_LANES Vec VecSet1(float value) { return Set1(value); }
CONCLAVE_LANES Vec VecLoad(const float* p) { return Load(p); }
CONCLAVE_LANES Vec VecLoadN(const float* p, int64_t n) { return LoadN(p, n); }
CONCLAVE_LANES void VecStore(float* p, const Vec& a) { Store(p, a); }
CONCLAVE_LANES void VecStoreN(float* p, const Vec& a, int64_t n) { StoreN(p, a, n); }
CONCLAVE_LANES Vec VecAdd(const Vec& a, const Vec& b) { return Add(a, b); }
CONCLAVE_LANES Vec VecFma(const Vec& a, const Vec& b, const Vec& c) { return Fma(a, b, c); }
// The first and the second elements of kVecLanes bf16 pairs.
CONCLAVE_LANES Vec VecEven(const uint16_t* pairs) {
  return EachLane([&](int64_t l) { return FloatOf(uint32_t{pairs[2 * l]} << 16); });
}
CONCLAVE_LANES Vec VecOdd(const uint16_t* pairs) {
  return EachLane([&](int64_t l) { return FloatOf(uint32_t{pairs[2 * l + 1]} << 16); });
}

}  // namespace
}  // namespace conclave::kernels
