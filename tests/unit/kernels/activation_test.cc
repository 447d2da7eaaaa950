// Goal: the activations follow their formulas on every path.
// Method: the golden values of the reference classes, and dense ranges against double.
#include "conclave/kernels/elementwise.h"
#include "kernels_testing.h"

namespace conclave::kernels {
namespace {

double Exact(Activation activation, double x) {
  switch (activation) {
    case Activation::kSilu:
      return x / (1.0 + std::exp(-x));
    case Activation::kGeluTanh:
      return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluErf:
      return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    case Activation::kQuickGelu:
      return x / (1.0 + std::exp(-1.702 * x));
  }
  return NAN;
}

constexpr Activation kAll[] = {Activation::kSilu, Activation::kGeluTanh, Activation::kGeluErf,
                               Activation::kQuickGelu};

class ActivationTest : public testing::TestWithParam<Isa> {
 protected:
  std::vector<float> Apply(Activation activation, std::vector<float> x) {
    const auto n = static_cast<int64_t>(x.size());
    Activate(context_, activation, MatView<float>(x.data(), 1, n));
    return x;
  }

  ThreadPool pool_{2};
  Context context_{GetParam(), pool_};
};

INSTANTIATE_TEST_SUITE_P(Paths, ActivationTest, testing::ValuesIn(SupportedIsas()), IsaTestName);

// Recorded from the model classes; quick_gelu, gelu tanh, gelu erf, silu.
TEST_P(ActivationTest, GoldenValuesOfTheReference) {
  const std::vector<float> x = {-2.0f, -1.0f, -0.5f, 0.5f, 1.0f, 2.0f};
  const std::pair<Activation, std::vector<float>> golden[] = {
      {Activation::kQuickGelu,
       {-0.0643414f, -0.1542042f, -0.1496116f, 0.3503884f, 0.8457958f, 1.9356586f}},
      {Activation::kGeluTanh,
       {-0.0454023f, -0.1588080f, -0.1542860f, 0.3457140f, 0.8411920f, 1.9545977f}},
      {Activation::kGeluErf,
       {-0.0455003f, -0.1586553f, -0.1542688f, 0.3457312f, 0.8413447f, 1.9544997f}},
      {Activation::kSilu,
       {-0.2384058f, -0.2689414f, -0.1887703f, 0.3112297f, 0.7310586f, 1.7615942f}}};
  for (const auto& [activation, expected] : golden) {
    EXPECT_THAT(Apply(activation, x), testing::Pointwise(testing::FloatNear(1.5e-7f), expected))
        << static_cast<int>(activation);
  }
}

// The bound is that of the gate function (2e-7 relative to |x| at worst) plus the roundings of the
// product.
TEST_P(ActivationTest, DenseRangesAreWithin3e7OfTheFormulas) {
  std::vector<float> x;
  for (int i = -20000; i <= 20000; ++i) {
    x.push_back(static_cast<float>(i) * 1e-3f + 1e-4f);
  }
  for (const Activation activation : kAll) {
    const std::vector<float> y = Apply(activation, x);
    for (size_t i = 0; i < x.size(); ++i) {
      const double tolerance = 3.0e-7 * std::max(1.0, std::abs(double{x[i]}));
      ASSERT_NEAR(y[i], Exact(activation, double{x[i]}), tolerance)
          << x[i] << " activation " << static_cast<int>(activation);
    }
  }
}

TEST_P(ActivationTest, LargeInputsPassOnTheRightAndVanishOnTheLeft) {
  for (const Activation activation : kAll) {
    EXPECT_THAT(Apply(activation, {100.0f, 3.0e38f, -100.0f, -1.0e30f, 0.0f}),
                testing::ElementsAre(100.0f, 3.0e38f, 0.0f, 0.0f, 0.0f))
        << static_cast<int>(activation);
  }
}

TEST_P(ActivationTest, NansStayNans) {
  for (const Activation activation : kAll) {
    EXPECT_TRUE(std::isnan(Apply(activation, {1.0f, NAN})[1]));
  }
}

TEST_P(ActivationTest, GatedIsTheActivationOfTheLeftHalfTimesTheRightHalf) {
  Random random(3);
  for (const Activation activation : kAll) {
    Matrix<float> gate_up = UniformMatrix(random, 5, 74, -4.0f, 4.0f);
    Matrix<float> out(5, 37, 40);
    GatedActivate(context_, activation, std::as_const(gate_up).View(), out.View());
    for (int64_t r = 0; r < 5; ++r) {
      const float* row = &gate_up.At(r, 0);
      const std::vector<float> gate = Apply(activation, std::vector<float>(row, row + 37));
      for (int64_t f = 0; f < 37; ++f) {
        ASSERT_EQ(out.At(r, f), gate[static_cast<size_t>(f)] * gate_up.At(r, 37 + f));
      }
      EXPECT_EQ(out.At(r, 37 + (r < 4 ? 0 : 2)), 0.0f) << "the gap between rows stays";
    }
  }
}

using ActivationDeathTest = ActivationTest;
INSTANTIATE_TEST_SUITE_P(Scalar, ActivationDeathTest, testing::Values(Isa::kScalar), IsaTestName);

TEST_P(ActivationDeathTest, AGateThatIsNotTwiceAsWideAborts) {
  const Matrix<float> gate_up(1, 9);
  Matrix<float> out(1, 4);
  EXPECT_DEATH(GatedActivate(context_, Activation::kSilu, gate_up.View(), out.View()), "out.cols");
}

}  // namespace
}  // namespace conclave::kernels
