// Goal: the error bounds that docs/decisions/0003-same-bits.md states for exp, the logistic
// function and the normal distribution function.
// Method: the scalar path's own headers against libm in double, over dense ranges. The other paths
// have the same bits (isa_equality_test.cc).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

// clang-format off
#include "cpu/v16_scalar.inl.h"
#include "cpu/math.inl.h"
// clang-format on

namespace conclave::kernels {
namespace {

float Exp(float x) { return ExpNonPositive(Set1(x)).v[0]; }
float Logistic(float x) { return Sigmoid(Set1(x)).v[0]; }
float Phi(float x) { return NormalCdf(Set1(x)).v[0]; }

double ExactLogistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double ExactPhi(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }

struct Errors {
  double absolute = 0.0;
  double relative = 0.0;
};

// The largest errors of f over count + 1 points of [low, high].
template <typename F, typename Exact>
Errors LargestErrors(const F& f, const Exact& exact, double low, double high, int count) {
  Errors worst;
  for (int i = 0; i <= count; ++i) {
    const auto x = static_cast<float>(low + (high - low) * i / count);
    const double want = exact(double{x});
    const double error = std::abs(double{f(x)} - want);
    worst.absolute = std::max(worst.absolute, error);
    worst.relative = std::max(worst.relative, error / want);
  }
  return worst;
}

TEST(MathTest, ExpIsWithin1e7Relative) {
  const auto exact = [](double x) { return std::exp(x); };
  EXPECT_LT(LargestErrors(Exp, exact, -87.32, 0.0, 200000).relative, 1.0e-7);
  EXPECT_LT(LargestErrors(Exp, exact, -1.0, 0.0, 200000).relative, 1.0e-7);
}

TEST(MathTest, ExpIsExactAtItsEnds) {
  EXPECT_EQ(Exp(0.0f), 1.0f);
  EXPECT_EQ(Exp(-0.0f), 1.0f);
  for (const float x : {-87.34f, -88.0f, -1.0e3f, -3.0e38f, -INFINITY}) {
    EXPECT_EQ(BitsOf(Exp(x)), 0u) << x;
  }
  EXPECT_GT(Exp(-87.33f), 0.0f);
}

TEST(MathTest, ExpNeverGrowsAsItsArgumentFallsByMuch) {
  float previous = 1.0f;
  for (int i = 1; i <= 88000; ++i) {
    const float value = Exp(static_cast<float>(-i) * 1e-3f);
    ASSERT_LE(value, previous) << i;
    previous = value;
  }
}

TEST(MathTest, LogisticIsWithin2e7RelativeInBothTails) {
  EXPECT_LT(LargestErrors(Logistic, ExactLogistic, -87.0, 90.0, 400000).relative, 2.0e-7);
}

TEST(MathTest, NormalCdfIsWithin1e7) {
  EXPECT_LT(LargestErrors(Phi, ExactPhi, -14.0, 14.0, 400000).absolute, 1.2e-7);
}

TEST(MathTest, NormalCdfKeepsDigitsInTheLeftTail) {
  EXPECT_LT(LargestErrors(Phi, ExactPhi, -3.0, 0.0, 100000).relative, 1.0e-5);
  EXPECT_LT(LargestErrors(Phi, ExactPhi, -5.5, -3.0, 100000).relative, 2.0e-3);
}

TEST(MathTest, NormalCdfIsZeroAndOneFarOut) {
  for (const float x : {15.0f, 1.0e4f, 3.0e38f, INFINITY}) {
    EXPECT_EQ(Phi(x), 1.0f) << x;
    EXPECT_EQ(Phi(-x), 0.0f) << x;
  }
}

TEST(MathTest, NansStayNans) {
  EXPECT_TRUE(std::isnan(Exp(NAN)));
  EXPECT_TRUE(std::isnan(Logistic(NAN)));
  EXPECT_TRUE(std::isnan(Phi(NAN)));
}

}  // namespace
}  // namespace conclave::kernels
