// Goal: norms, softmax, dot products, rotation and conversions follow their formulas on every path.
// Method: double references with bounds from the number of roundings; odd widths, so that tails of
// a vector take part.
#include "conclave/kernels/elementwise.h"

#include <algorithm>
#include <numeric>

#include "kernels_testing.h"

namespace conclave::kernels {
namespace {

constexpr int64_t kWidths[] = {1, 15, 16, 17, 20, 80, 257, 2560};

class ElementwiseTest : public testing::TestWithParam<Isa> {
 protected:
  ThreadPool pool_{2};
  Context context_{GetParam(), pool_};
  Random random_{21};
};

INSTANTIATE_TEST_SUITE_P(Paths, ElementwiseTest, testing::ValuesIn(SupportedIsas()), IsaTestName);

TEST_P(ElementwiseTest, LayerNormCentresAndScales) {
  for (const int64_t n : kWidths) {
    const Matrix<float> x = UniformMatrix(random_, 3, n, 0.5f, 3.0f);
    const std::vector<float> w = UniformVector(random_, n, -2.0f, 2.0f);
    const std::vector<float> b = UniformVector(random_, n, -1.0f, 1.0f);
    Matrix<float> y(3, n);
    LayerNorm(context_, x.View(), w, b, 1e-5f, y.View());
    for (int64_t r = 0; r < 3; ++r) {
      double mean = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        mean += double{x.At(r, i)} / static_cast<double>(n);
      }
      double variance = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        variance += std::pow(double{x.At(r, i)} - mean, 2) / static_cast<double>(n);
      }
      const double scale = 1.0 / std::sqrt(variance + 1e-5f);
      // The mean is off by gamma(lanes) of at most 3; that error is scaled up and also enters the
      // variance.
      const double tolerance =
          3.0 * Gamma(n / 16 + 8) * 3.0 * scale * 2.0 + 4.0 * Gamma(n / 16 + 12);
      for (int64_t i = 0; i < n; ++i) {
        const double want =
            (double{x.At(r, i)} - mean) * scale * double{w[static_cast<size_t>(i)]} +
            double{b[static_cast<size_t>(i)]};
        ASSERT_NEAR(y.At(r, i), want, tolerance) << n << " " << r << " " << i;
      }
    }
  }
}

TEST_P(ElementwiseTest, LayerNormWithoutBiasEqualsAZeroBias) {
  const Matrix<float> x = UniformMatrix(random_, 2, 50);
  const std::vector<float> w = UniformVector(random_, 50, 0.5f, 2.0f);
  Matrix<float> without(2, 50);
  Matrix<float> with_zero(2, 50);
  LayerNorm(context_, x.View(), w, {}, 1e-5f, without.View());
  LayerNorm(context_, x.View(), w, std::vector<float>(50), 1e-5f, with_zero.View());
  EXPECT_EQ(without.values, with_zero.values);
}

TEST_P(ElementwiseTest, LayerNormOfAConstantRowIsTheBias) {
  Matrix<float> x(1, 33);
  std::fill(x.values.begin(), x.values.end(), 0.75f);
  const std::vector<float> w(33, 5.0f);
  const std::vector<float> b = UniformVector(random_, 33, -1.0f, 1.0f);
  LayerNorm(context_, x.View(), w, b, 1e-5f, x.View());
  EXPECT_EQ(x.values, b);
}

TEST_P(ElementwiseTest, RmsNormScalesByTheRootMeanSquareAndThenByTheWeight) {
  for (const int64_t n : kWidths) {
    const Matrix<float> x = UniformMatrix(random_, 3, n, -3.0f, 3.0f);
    const std::vector<float> w = UniformVector(random_, n, -2.0f, 2.0f);
    Matrix<float> y(3, n);
    RmsNorm(context_, x.View(), w, 1e-6f, y.View());
    for (int64_t r = 0; r < 3; ++r) {
      double mean = 0.0;
      for (int64_t i = 0; i < n; ++i) {
        mean += std::pow(double{x.At(r, i)}, 2) / static_cast<double>(n);
      }
      const double scale = 1.0 / std::sqrt(mean + 1e-6f);
      for (int64_t i = 0; i < n; ++i) {
        const double want = double{w[static_cast<size_t>(i)]} * (double{x.At(r, i)} * scale);
        ASSERT_NEAR(y.At(r, i), want, Gamma(n / 16 + 12) * std::abs(want))
            << n << " " << r << " " << i;
      }
    }
  }
}

TEST_P(ElementwiseTest, NormsMayWriteTheirInput) {
  const std::vector<float> w = UniformVector(random_, 70, 0.5f, 2.0f);
  Matrix<float> x = UniformMatrix(random_, 4, 70);
  Matrix<float> apart(4, 70);
  RmsNorm(context_, std::as_const(x).View(), w, 1e-6f, apart.View());
  RmsNorm(context_, std::as_const(x).View(), w, 1e-6f, x.View());
  EXPECT_TRUE(SameBytes(x.values, apart.values));
}

TEST_P(ElementwiseTest, SoftmaxIsPositiveAndSumsToOne) {
  for (const int64_t n : kWidths) {
    Matrix<float> x = UniformMatrix(random_, 2, n, -20.0f, 20.0f);
    const Matrix<float> logits = x;
    Softmax(context_, x.View());
    for (int64_t r = 0; r < 2; ++r) {
      double total = 0.0;
      double top = -1e9;
      for (int64_t i = 0; i < n; ++i) {
        top = std::max(top, double{logits.At(r, i)});
      }
      for (int64_t i = 0; i < n; ++i) {
        total += std::exp(double{logits.At(r, i)} - top);
      }
      for (int64_t i = 0; i < n; ++i) {
        const double want = std::exp(double{logits.At(r, i)} - top) / total;
        // 40 is the largest |x - max|, whose rounding moves the result by as much relatively.
        ASSERT_NEAR(x.At(r, i), want, want * (2e-7 + 40 * Gamma(1) + Gamma(n / 16 + 8)))
            << n << " " << i;
      }
    }
  }
}

TEST_P(ElementwiseTest, SoftmaxOfFarApartLogitsIsExactlyOneAndZero) {
  Matrix<float> x(1, 4);
  x.values = {-1.0e30f, 500.0f, 300.0f, -INFINITY};
  Softmax(context_, x.View());
  EXPECT_THAT(x.values, testing::ElementsAre(0.0f, 1.0f, 0.0f, 0.0f));
}

TEST_P(ElementwiseTest, DotRowsAreDotProducts) {
  for (const int64_t n : kWidths) {
    for (const int64_t outputs : {1, 4, 7}) {
      const Matrix<float> x = UniformMatrix(random_, 3, n);
      const Matrix<float> w = UniformMatrix(random_, outputs, n);
      Matrix<float> logits(3, outputs);
      DotRows(context_, x.View(), w.View(), logits.View());
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t e = 0; e < outputs; ++e) {
          double sum = 0.0;
          double magnitude = 0.0;
          for (int64_t i = 0; i < n; ++i) {
            const double term = double{x.At(r, i)} * double{w.At(e, i)};
            sum += term;
            magnitude += std::abs(term);
          }
          ASSERT_NEAR(logits.At(r, e), sum, Gamma(n / 16 + 6) * magnitude)
              << n << " " << r << " " << e;
        }
      }
    }
  }
}

// The header promises the order of the sum; it is restated here lane by lane.
TEST_P(ElementwiseTest, DotRowsAddsSixteenLanesInTheFixedTree) {
  const Matrix<float> x = HostileMatrix(random_, 1, 83);
  const Matrix<float> w = HostileMatrix(random_, 1, 83);
  Matrix<float> logits(1, 1);
  DotRows(context_, x.View(), w.View(), logits.View());
  const DenormalsOff denormals_off;
  float lanes[16] = {};
  for (int64_t i = 0; i < 96; ++i) {
    lanes[i % 16] = std::fma(i < 83 ? x.At(0, i) : 0.0f, i < 83 ? w.At(0, i) : 0.0f, lanes[i % 16]);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int l = 0; l < half; ++l) {
      lanes[l] += lanes[l + half];
    }
  }
  EXPECT_EQ(BitsOf(logits.At(0, 0)), BitsOf(lanes[0]));
}

TEST_P(ElementwiseTest, RotationTurnsPairsOfTheFirstDimensionsOnly) {
  struct Case {
    int64_t head_dim, half;
  };
  for (const auto& [head_dim, half] :
       {Case{20, 4}, Case{64, 8}, Case{80, 16}, Case{72, 36}, Case{128, 64}}) {
    const Matrix<float> cos = UniformMatrix(random_, 6, half);
    const Matrix<float> sin = UniformMatrix(random_, 6, half);
    Matrix<float> x = UniformMatrix(random_, 2, 3 * head_dim);
    const Matrix<float> before = x;
    const std::vector<int32_t> positions = {5, 0};
    RotateHalfSplit(context_, cos.View(), sin.View(), positions, 3, head_dim, x.View());
    for (int64_t r = 0; r < 2; ++r) {
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t i = 0; i < head_dim; ++i) {
          const float* head = &before.At(r, h * head_dim);
          float want = head[i];
          if (i < 2 * half) {
            const float c = cos.At(positions[static_cast<size_t>(r)], i % half);
            const float s = sin.At(positions[static_cast<size_t>(r)], i % half);
            want = i < half ? head[i] * c - head[i + half] * s : head[i] * c + head[i - half] * s;
          }
          ASSERT_EQ(x.At(r, h * head_dim + i), want)
              << head_dim << " " << r << " " << h << " " << i;
        }
      }
    }
  }
}

TEST_P(ElementwiseTest, AddTermRoundsTheTermAndNotTheSum) {
  const Matrix<float> y = UniformMatrix(random_, 1, 37);
  const DenormalsOff denormals_off;
  for (const bool is_rounded : {false, true}) {
    std::vector<float> sum(37, 99.0f);
    AddTerm(context_, y.values, 0.7f, true, is_rounded, sum);
    AddTerm(context_, y.values, 0.31f, false, is_rounded, sum);
    for (size_t c = 0; c < sum.size(); ++c) {
      const float first = 0.7f * y.values[c];
      const float second = 0.31f * y.values[c];
      EXPECT_EQ(sum[c], is_rounded ? ToFloat(ToBf16(first)) + ToFloat(ToBf16(second))
                                   : first + second)
          << c;
    }
  }
}

TEST_P(ElementwiseTest, AddScaledFusesTheProductAndTheSum) {
  const Matrix<float> x = HostileMatrix(random_, 3, 45);
  Matrix<float> y = HostileMatrix(random_, 3, 45);
  const Matrix<float> before = y;
  AddScaled(context_, x.View(), 0.2213594f, y.View());
  const DenormalsOff denormals_off;
  for (size_t i = 0; i < y.values.size(); ++i) {
    ASSERT_EQ(BitsOf(y.values[i]), BitsOf(std::fma(0.2213594f, x.values[i], before.values[i])));
  }
}

TEST_P(ElementwiseTest, RoundingEqualsToBf16ForEveryUpperHalfAndTheTiesBesideIt) {
  Matrix<float> x(4, 65536);
  for (int64_t upper = 0; upper < 65536; ++upper) {
    const uint32_t low[] = {0, 1, 0x8000, 0x8001};
    for (int64_t r = 0; r < 4; ++r) {
      x.At(r, upper) = __builtin_bit_cast(float, static_cast<uint32_t>(upper) << 16 | low[r]);
    }
  }
  Matrix<Bf16> y(4, 65536);
  RoundToBf16(context_, x.View(), y.View());
  for (size_t i = 0; i < x.values.size(); ++i) {
    ASSERT_EQ(y.values[i], ToBf16(x.values[i])) << std::hex << BitsOf(x.values[i]);
  }
}

TEST_P(ElementwiseTest, RoundingTouchesNoElementBeyondTheRow) {
  const Matrix<float> x = UniformMatrix(random_, 3, 21);
  Matrix<Bf16> y(3, 21, 24);
  std::fill(y.values.begin(), y.values.end(), Bf16{0x1234});
  RoundToBf16(context_, x.View(), y.View());
  for (int64_t r = 0; r < 3; ++r) {
    EXPECT_EQ(y.At(r, 20), ToBf16(x.At(r, 20)));
    EXPECT_EQ(y.At(r, 21), Bf16{0x1234});
  }
}

TEST_P(ElementwiseTest, WideningIsExactForEveryBf16) {
  Matrix<Bf16> x(1, 65536);
  for (int64_t bits = 0; bits < 65536; ++bits) {
    x.At(0, bits) = Bf16{static_cast<uint16_t>(bits)};
  }
  Matrix<float> y(1, 65536);
  WidenBf16(context_, x.View(), y.View());
  for (int64_t bits = 0; bits < 65536; ++bits) {
    ASSERT_EQ(BitsOf(y.At(0, bits)), static_cast<uint32_t>(bits) << 16);
  }
}

using ElementwiseDeathTest = ElementwiseTest;
INSTANTIATE_TEST_SUITE_P(Scalar, ElementwiseDeathTest, testing::Values(Isa::kScalar), IsaTestName);

TEST_P(ElementwiseDeathTest, ShapesThatDoNotFitAbort) {
  const Matrix<float> x(2, 8);
  Matrix<float> y(2, 7);
  const std::vector<float> w(8);
  EXPECT_DEATH(RmsNorm(context_, x.View(), w, 1e-6f, y.View()), "cols");
  EXPECT_DEATH(AddScaled(context_, x.View(), 1.0f, y.View()), "cols");
  EXPECT_DEATH(DotRows(context_, x.View(), y.View(), y.View()), "cols");
}

TEST_P(ElementwiseDeathTest, APositionOutsideTheTableAborts) {
  const Matrix<float> table(4, 2);
  Matrix<float> x(1, 8);
  for (const int32_t position : {-1, 4}) {
    const std::vector<int32_t> positions = {position};
    EXPECT_DEATH(RotateHalfSplit(context_, table.View(), table.View(), positions, 2, 4, x.View()),
                 "position");
  }
}

}  // namespace
}  // namespace conclave::kernels
