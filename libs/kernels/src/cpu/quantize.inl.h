// Rows to int8 blocks, by the words of quantize.h.
#pragma once

namespace conclave::kernels {
namespace {

inline constexpr int64_t kQ8BlockLanes = 32;

CONCLAVE_KERNEL_INLINE V16 LoadElements(const float* p, int64_t n) { return LoadN(p, n); }
CONCLAVE_KERNEL_INLINE V16 LoadElements(const uint16_t* p, int64_t n) { return LoadBf16N(p, n); }

template <typename T>
CONCLAVE_KERNEL_INLINE void QuantizeRow(const T* x, int64_t n, int8_t* values, float* scales,
                                        int32_t* sums) {
  for (int64_t i = 0; i < n; i += kQ8BlockLanes, values += kQ8BlockLanes, ++scales, ++sums) {
    V16 first = LoadElements(x + i, n - i);
    V16 second = LoadElements(x + i + 16, n - i - 16);
    const float max = ReduceMax(Max(Abs(first), Abs(second)));
    // Zero, or NaN where an element is no finite number: the maximum may have dropped a NaN.
    const float poison = ReduceAdd(Add(Sub(first, first), Sub(second, second)));
    float scale = max / kQ8Largest;
    float inverse = kQ8Largest / max;
    if (!(max >= kQ8Smallest && poison == 0.0f)) {
      // Neither infinities nor NaNs nor divisions by almost nothing reach the integers.
      scale = poison == 0.0f ? 0.0f : __builtin_nanf("");
      inverse = 0.0f;
      first = Zero();
      second = Zero();
    }
    *scales = scale;
    *sums = StoreRounded(values, Mul(first, Set1(inverse))) +
            StoreRounded(values + 16, Mul(second, Set1(inverse)));
  }
}

void QuantizeF32Row(const float* x, int64_t n, int8_t* values, float* scales, int32_t* sums) {
  QuantizeRow(x, n, values, scales, sums);
}

void QuantizeBf16Row(const uint16_t* x, int64_t n, int8_t* values, float* scales, int32_t* sums) {
  QuantizeRow(x, n, values, scales, sums);
}

}  // namespace
}  // namespace conclave::kernels
