// Norms, softmax, dot products, rotation and conversions of one row. Sums go through the 16 lanes
// of one V16.
#pragma once

namespace conclave::kernels {
namespace {

CONCLAVE_KERNEL_INLINE int64_t LanesLeft(int64_t n, int64_t i) { return n - i < 16 ? n - i : 16; }

// 1 / sqrt(x), both correctly rounded.
CONCLAVE_KERNEL_INLINE float InverseSqrt(float x) { return 1.0f / __builtin_sqrtf(x); }

void LayerNormRow(const float* x, int64_t n, const float* weight, const float* bias, float eps,
                  float* y) {
  V16 sum = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    sum = Add(sum, LoadN(x + i, LanesLeft(n, i)));
  }
  const V16 mean = Set1(ReduceAdd(sum) / static_cast<float>(n));
  V16 squares = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    const V16 centred = Select(LaneRange(0, lanes), Sub(LoadN(x + i, lanes), mean), Zero());
    squares = Fma(centred, centred, squares);
  }
  const V16 scale = Set1(InverseSqrt(ReduceAdd(squares) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    const V16 normal = Mul(Sub(LoadN(x + i, lanes), mean), scale);
    const V16 w = LoadN(weight + i, lanes);
    StoreN(y + i, bias == nullptr ? Mul(normal, w) : Fma(normal, w, LoadN(bias + i, lanes)), lanes);
  }
}

void RmsNormRow(const float* x, int64_t n, const float* weight, float eps, float* y) {
  V16 squares = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    const V16 v = LoadN(x + i, LanesLeft(n, i));
    squares = Fma(v, v, squares);
  }
  const V16 scale = Set1(InverseSqrt(ReduceAdd(squares) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreN(y + i, Mul(LoadN(weight + i, lanes), Mul(LoadN(x + i, lanes), scale)), lanes);
  }
}

void SoftmaxRow(float* x, int64_t n) {
  const V16 lowest = Set1(-__builtin_inff());
  V16 top = lowest;
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    top = Max(top, Select(LaneRange(0, lanes), LoadN(x + i, lanes), lowest));
  }
  const V16 max = Set1(ReduceMax(top));
  V16 sum = Zero();
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    const V16 e = ExpNonPositive(Sub(LoadN(x + i, lanes), max));
    sum = Add(sum, Select(LaneRange(0, lanes), e, Zero()));
    StoreN(x + i, e, lanes);
  }
  const V16 total = Set1(ReduceAdd(sum));
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreN(x + i, Div(LoadN(x + i, lanes), total), lanes);
  }
}

// Dot products of one row with R weight rows, R chains side by side.
template <int R>
CONCLAVE_KERNEL_INLINE void DotSome(const float* x, int64_t n, const float* weight,
                                    int64_t weight_stride, float* out) {
  V16 acc[R];
  for (int r = 0; r < R; ++r) {
    acc[r] = Zero();
  }
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    const V16 v = LoadN(x + i, lanes);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      acc[r] = Fma(v, LoadN(weight + r * weight_stride + i, lanes), acc[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    out[r] = ReduceAdd(acc[r]);
  }
}

void DotRowsOfOne(const float* x, int64_t n, const float* weight, int64_t weight_stride,
                  int64_t num_outputs, float* out) {
  int64_t e = 0;
  for (; e + 4 <= num_outputs; e += 4) {
    DotSome<4>(x, n, weight + e * weight_stride, weight_stride, out + e);
  }
  for (; e < num_outputs; ++e) {
    DotSome<1>(x, n, weight + e * weight_stride, weight_stride, out + e);
  }
}

void RotateRow(const float* cos, const float* sin, int64_t half, int64_t num_heads,
               int64_t head_dim, float* x) {
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t lanes = LanesLeft(half, i);
    const V16 c = LoadN(cos + i, lanes);
    const V16 s = LoadN(sin + i, lanes);
    for (int64_t h = 0; h < num_heads; ++h) {
      float* first = x + h * head_dim + i;
      float* second = first + half;
      const V16 a = LoadN(first, lanes);
      const V16 b = LoadN(second, lanes);
      // Unfused, as the reference rounds: x·cos and rotate(x)·sin, then their sum.
      StoreN(first, Sub(Mul(a, c), Mul(b, s)), lanes);
      StoreN(second, Add(Mul(b, c), Mul(a, s)), lanes);
    }
  }
}

void AddTermRow(const float* y, int64_t n, float weight, bool is_first, bool is_rounded,
                float* sum) {
  const V16 factor = Set1(weight);
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    V16 term = Mul(factor, LoadN(y + i, lanes));
    if (is_rounded) {
      uint16_t rounded[16];
      StoreBf16N(rounded, term, 16);
      term = LoadBf16(rounded);
    }
    StoreN(sum + i, is_first ? term : Add(LoadN(sum + i, lanes), term), lanes);
  }
}

void AddScaledRow(const float* x, int64_t n, float scale, float* y) {
  const V16 factor = Set1(scale);
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreN(y + i, Fma(factor, LoadN(x + i, lanes), LoadN(y + i, lanes)), lanes);
  }
}

void RoundRow(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreBf16N(y + i, LoadN(x + i, lanes), lanes);
  }
}

void WidenRow(const uint16_t* x, int64_t n, float* y) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreN(y + i, LoadBf16N(x + i, lanes), lanes);
  }
}

}  // namespace
}  // namespace conclave::kernels
