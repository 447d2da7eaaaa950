// exp, the logistic function and the normal distribution function over V16. Errors are measured in
// docs/decisions/0003-same-bits.md. A NaN stays a NaN in all of them.
#pragma once

namespace conclave::kernels {
namespace {

// e^x for x <= 0; exactly 0 below -87.33, where the result would soon be denormal.
//
// Cody and Waite: x = n·ln 2 + r with |r| <= ln 2 / 2, then e^r = 1 + r + r²·q(r) with a minimax q
// of degree 4 (relative error 3.1e-9 before rounding).
CONCLAVE_KERNEL_INLINE V16 ExpNonPositive(V16 x) {
  const V16 low = Set1(-87.33f);
  const V16 bias = Set1(12582912.0f);  // 1.5·2^23: adding it rounds to an integer.
  const V16 clamped = Max(low, x);
  const V16 biased = Fma(clamped, Set1(1.44269504088896341f), bias);
  const V16 n = Sub(biased, bias);
  // ln 2 in two parts; the first has few enough bits that n·hi is exact.
  V16 r = Fma(n, Set1(-0.693359375f), clamped);
  r = Fma(n, Set1(2.12194440e-4f), r);
  V16 q = Set1(1.38142510396e-3f);
  q = Fma(q, r, Set1(8.36892169e-3f));
  q = Fma(q, r, Set1(4.16684068543e-2f));
  q = Fma(q, r, Set1(0.166665189381f));
  q = Fma(q, r, Set1(0.499999933363f));
  const V16 e = Add(Fma(q, Mul(r, r), r), Set1(1.0f));
  return Select(Less(x, low), Zero(), Mul(e, Pow2FromBiased(biased)));
}

// 1 / (1 + e^-x), from e^-|x| so that no branch overflows and the left tail keeps its relative
// precision.
CONCLAVE_KERNEL_INLINE V16 Sigmoid(V16 x) {
  const V16 z = ExpNonPositive(Neg(Abs(x)));
  const V16 numerator = Select(Less(x, Zero()), z, Set1(1.0f));
  return Div(numerator, Add(z, Set1(1.0f)));
}

// log(erfc(t)) for 0 <= t <= 10, as t times a polynomial of degree 11 fitted to weight
// t·(erfc(t) + 0.003·e^(-t/2)): |error| · erfc(t) < 5e-8 near 0 and the left tail of the normal
// distribution keeps several digits.
CONCLAVE_KERNEL_INLINE V16 LogErfc(V16 t) {
  constexpr float kCoefficients[] = {4.4306700163e-8f,   -9.96120768619e-7f, 1.26200854732e-5f,
                                     -9.83527228565e-5f, 4.73973191814e-4f,  -1.21689037712e-3f,
                                     -4.9049888869e-4f,  1.96616527131e-2f,  -0.102984581415f,
                                     -0.636581003555f,   -1.12838147327f};
  V16 p = Set1(-8.49639102768e-10f);
#pragma GCC unroll 16
  for (const float c : kCoefficients) {
    p = Fma(p, t, Set1(c));
  }
  return Mul(p, t);
}

// Φ(x) = (1 + erf(x / √2)) / 2.
CONCLAVE_KERNEL_INLINE V16 NormalCdf(V16 x) {
  const V16 t = Min(Set1(10.0f), Mul(Abs(x), Set1(0.707106781186547524f)));
  const V16 tail = Mul(Set1(0.5f), ExpNonPositive(LogErfc(t)));
  return Select(Less(x, Zero()), tail, Sub(Set1(1.0f), tail));
}

}  // namespace
}  // namespace conclave::kernels
