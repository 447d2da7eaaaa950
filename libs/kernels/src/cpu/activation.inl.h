// Activations, in place and gated. The order of the functors is that of enum Activation.
#pragma once

namespace conclave::kernels {
namespace {

struct Silu {
  static CONCLAVE_KERNEL_INLINE V16 Of(V16 x) { return Mul(x, Sigmoid(x)); }
};

// 0.5(1 + tanh(u)) = σ(2u), which unlike the sum keeps its precision where tanh(u) is near -1.
struct GeluTanh {
  static CONCLAVE_KERNEL_INLINE V16 Of(V16 x) {
    const V16 cubic = Fma(Mul(Mul(x, x), Set1(0.044715f)), x, x);
    return Mul(x, Sigmoid(Mul(cubic, Set1(1.59576912160573072f))));  // 2·√(2/π)
  }
};

struct GeluErf {
  static CONCLAVE_KERNEL_INLINE V16 Of(V16 x) { return Mul(x, NormalCdf(x)); }
};

struct QuickGelu {
  static CONCLAVE_KERNEL_INLINE V16 Of(V16 x) { return Mul(x, Sigmoid(Mul(x, Set1(1.702f)))); }
};

template <typename Function>
void ActivateRow(float* x, int64_t n) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreN(x + i, Function::Of(LoadN(x + i, lanes)), lanes);
  }
}

template <typename Function>
void GatedActivateRow(const float* gate, const float* up, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t lanes = LanesLeft(n, i);
    StoreN(out + i, Mul(Function::Of(LoadN(gate + i, lanes)), LoadN(up + i, lanes)), lanes);
  }
}

}  // namespace
}  // namespace conclave::kernels
