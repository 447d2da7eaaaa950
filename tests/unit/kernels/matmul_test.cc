// Goal: MatMul computes x·Wᵀ + b as the chains of matmul.h, on every path.
// Method: bit by bit against a chain written here with std::fma, and against double sums within the
// bound of a chain of K roundings.
#include "conclave/kernels/matmul.h"

#include "kernel_table.h"
#include "kernels_testing.h"

namespace conclave::kernels {
namespace {

// One output, by the words of matmul.h. FTZ and DAZ come from the caller.
float Chain(const float* x, const float* w, int64_t k) {
  float acc = 0.0f;
  for (int64_t i = 0; i < k; ++i) {
    acc = std::fma(x[i], w[i], acc);
  }
  return acc;
}

float Chain(const Bf16* x, const Bf16* w, int64_t k) {
  float acc = 0.0f;
  for (int64_t j = 0; j < k; j += 2) {
    const bool has_odd = j + 1 < k;
    acc = std::fma(has_odd ? ToFloat(x[j + 1]) : 0.0f, has_odd ? ToFloat(w[j + 1]) : 0.0f, acc);
    acc = std::fma(ToFloat(x[j]), ToFloat(w[j]), acc);
  }
  return acc;
}

template <typename T>
Matrix<float> Expected(const Matrix<T>& x, const Matrix<T>& w, const std::vector<float>& bias) {
  const DenormalsOff denormals_off;
  Matrix<float> y(x.rows, w.rows);
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t n = 0; n < w.rows; ++n) {
      const float acc = Chain(&x.At(m, 0), &w.At(n, 0), x.cols);
      y.At(m, n) = bias.empty() ? acc : acc + bias[static_cast<size_t>(n)];
    }
  }
  return y;
}

template <typename T>
Matrix<float> Found(const Context& context, const Matrix<T>& x, const Matrix<T>& w,
                    const std::vector<float>& bias) {
  PackedMatrix packed(w.rows, w.cols, std::is_same_v<T, float> ? DType::kF32 : DType::kBf16);
  packed.PackRows(0, w.View(), *context.pool);
  Matrix<float> y(x.rows, w.rows);
  MatMul(context, x.View(), packed, bias, y.View());
  return y;
}

class MatMulTest : public testing::TestWithParam<Isa> {
 protected:
  ThreadPool pool_{2};
  Context context_{GetParam(), pool_};
  Random random_{5};
};

INSTANTIATE_TEST_SUITE_P(Paths, MatMulTest, testing::ValuesIn(SupportedIsas()), IsaTestName);

struct Sizes {
  int64_t m, n, k;
};
// Rows around the tile heights, columns around the panel width, K odd, tiny and beyond one block.
constexpr Sizes kSizes[] = {{1, 1, 1},
                            {1, 64, 2},
                            {2, 65, 3},
                            {3, 63, 17},
                            {5, 7, 64},
                            {6, 128, 9},
                            {7, 130, 31},
                            {13, 72, 80},
                            {4, 20, 515},
                            {2, 33, 1025},
                            // Tall: rows and panels are widened by blocks of 240 and of 256 inputs.
                            {48, 65, 31},
                            {64, 70, 259},
                            {245, 5, 300}};

TEST_P(MatMulTest, Bf16EqualsTheChainBitByBitOnHostileInputs) {
  for (const Sizes& s : kSizes) {
    const Matrix<Bf16> x = Rounded(HostileMatrix(random_, s.m, s.k));
    const Matrix<Bf16> w = Rounded(HostileMatrix(random_, s.n, s.k));
    const std::vector<float> bias = UniformVector(random_, s.n, -1.0f, 1.0f);
    EXPECT_TRUE(SameBytes(Found(context_, x, w, bias).values, Expected(x, w, bias).values))
        << s.m << " " << s.n << " " << s.k;
  }
}

TEST_P(MatMulTest, F32EqualsTheChainBitByBitOnHostileInputs) {
  for (const Sizes& s : kSizes) {
    const Matrix<float> x = HostileMatrix(random_, s.m, s.k);
    const Matrix<float> w = HostileMatrix(random_, s.n, s.k);
    EXPECT_TRUE(SameBytes(Found(context_, x, w, {}).values, Expected(x, w, {}).values))
        << s.m << " " << s.n << " " << s.k;
  }
}

// The rows that a layer's experts got: none, one, several and tall ones, of one matrix or another.
constexpr int64_t kRowsOfExperts[] = {1, 0, 5, 64, 2};

TEST_P(MatMulTest, ManyProductsInOneLoopHaveTheBitsOfEachAlone) {
  constexpr int64_t kInputs = 70;
  constexpr int64_t kOutputs = 200;
  std::vector<Matrix<Bf16>> xs;
  std::vector<Matrix<float>> ys;
  std::vector<PackedMatrix> ws;
  const std::vector<float> bias = UniformVector(random_, kOutputs, -1.0f, 1.0f);
  // More than one loop takes.
  for (int64_t i = 0; i < 70; ++i) {
    xs.push_back(Rounded(UniformMatrix(random_, kRowsOfExperts[i % 5], kInputs)));
    ys.emplace_back(kRowsOfExperts[i % 5], kOutputs);
    ws.emplace_back(kOutputs, kInputs, DType::kBf16);
    ws.back().PackRows(0, Rounded(UniformMatrix(random_, kOutputs, kInputs)).View(), pool_);
  }
  std::vector<Product<MatView<const Bf16>>> products;
  for (size_t i = 0; i < xs.size(); ++i) {
    products.push_back({xs[i].View(), &ws[i], bias, ys[i].View()});
  }
  MatMulAll(context_, products);
  for (size_t i = 0; i < xs.size(); ++i) {
    Matrix<float> alone(xs[i].rows, kOutputs);
    MatMul(context_, xs[i].View(), ws[i], bias, alone.View());
    EXPECT_TRUE(SameBytes(ys[i].values, alone.values)) << i;
  }
}

// Gated and plain, to bf16, q8 and f32, against the operations one after another.
TEST_P(MatMulTest, ActivatedProductsHaveTheBitsOfTheOperationsOneByOne) {
  constexpr int64_t kInputs = 96;
  constexpr int64_t kInner = 128;
  for (const bool is_gated : {true, false}) {
    const int64_t outputs = is_gated ? 2 * kInner : kInner;
    PackedMatrix w(outputs, kInputs, DType::kBf16);
    w.PackRows(0, Rounded(UniformMatrix(random_, outputs, kInputs)).View(), pool_);
    const std::vector<float> bias = UniformVector(random_, outputs, -1.0f, 1.0f);
    for (const int64_t rows : kRowsOfExperts) {
      const Matrix<Bf16> x = Rounded(UniformMatrix(random_, rows, kInputs));
      Matrix<float> sums(rows, outputs);
      Matrix<float> expected(rows, kInner);
      MatMul(context_, x.View(), w, bias, sums.View());
      if (is_gated) {
        GatedActivate(context_, Activation::kSilu, sums.View(), expected.View());
      } else {
        Activate(context_, Activation::kSilu, sums.View());
        expected = sums;
      }
      Matrix<Bf16> expected_bf16(rows, kInner);
      RoundToBf16(context_, expected.View(), expected_bf16.View());
      Q8Scratch expected_scratch(rows, kInner);
      const Q8Rows expected_q8 = expected_scratch.Quantize(context_, expected.View());

      Matrix<float> scratch(rows, outputs);
      const Product<MatView<const Bf16>> product{x.View(), &w, bias, scratch.View()};
      Matrix<float> f32(rows, kInner);
      Matrix<Bf16> bf16(rows, kInner);
      Q8Scratch q8_scratch(rows, kInner);
      const Q8Rows q8 = q8_scratch.Rows(0, rows, kInner);
      for (const ActivatedRows& out :
           {ActivatedRows{.f32 = f32.View()}, ActivatedRows{.bf16 = bf16.View()},
            ActivatedRows{.q8 = q8}}) {
        MatMulActivated(context_, Activation::kSilu, is_gated, {&product, 1}, {&out, 1});
      }
      EXPECT_TRUE(SameBytes(f32.values, expected.values)) << rows << " gated " << is_gated;
      EXPECT_TRUE(SameBytes(bf16.values, expected_bf16.values)) << rows << " gated " << is_gated;
      const auto blocks = static_cast<size_t>(rows * q8.num_blocks());
      EXPECT_TRUE(std::equal(q8.values, q8.values + blocks * kQ8Block, expected_q8.values));
      EXPECT_TRUE(std::equal(q8.scales, q8.scales + blocks, expected_q8.scales));
      EXPECT_TRUE(std::equal(q8.sums, q8.sums + blocks, expected_q8.sums));
    }
  }
}

// Both ways to use a dot product, whichever of them this CPU has chosen.
TEST(MatMulDotTest, TheWayThatThisCpuDoesNotTakeGivesTheSameBytes) {
  if (!IsSupported(Isa::kAvx512Bf16)) {
    GTEST_SKIP() << "this CPU has no AVX-512-BF16";
  }
  ThreadPool pool(2);
  Random random(7);
  for (const Sizes& s : kSizes) {
    const Matrix<Bf16> x = Rounded(HostileMatrix(random, s.m, s.k));
    const Matrix<Bf16> w = Rounded(HostileMatrix(random, s.n, s.k));
    const Matrix<float> expected = Expected(x, w, {});
    for (const bool is_dot_fast : {false, true}) {
      Context context(Isa::kAvx512Bf16, pool);
      context.table = &Avx512Bf16TableFor(is_dot_fast);
      EXPECT_TRUE(SameBytes(Found(context, x, w, {}).values, expected.values))
          << s.m << " " << s.n << " " << s.k << " fast " << is_dot_fast;
    }
  }
}

// K beyond the block of the widened x (512) and beyond that of the dot product (6144), where
// accumulators are parked in y.
TEST_P(MatMulTest, LongChainsEqualTheChainAcrossBlocksOfK) {
  const Matrix<Bf16> x = Rounded(UniformMatrix(random_, 3, 12301));
  const Matrix<Bf16> w = Rounded(UniformMatrix(random_, 5, 12301));
  const std::vector<float> bias = UniformVector(random_, 5, -1.0f, 1.0f);
  EXPECT_TRUE(SameBytes(Found(context_, x, w, bias).values, Expected(x, w, bias).values));
}

TEST_P(MatMulTest, StaysWithinTheBoundOfAChainOfKRoundings) {
  const Matrix<Bf16> x = Rounded(UniformMatrix(random_, 9, 700));
  const Matrix<Bf16> w = Rounded(UniformMatrix(random_, 90, 700));
  const Matrix<float> y = Found(context_, x, w, {});
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t n = 0; n < w.rows; ++n) {
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t k = 0; k < x.cols; ++k) {
        const double term = double{ToFloat(x.At(m, k))} * double{ToFloat(w.At(n, k))};
        sum += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(y.At(m, n), sum, Gamma(x.cols) * magnitude) << m << " " << n;
    }
  }
}

TEST_P(MatMulTest, DenormalProductsAndInputsAreFlushedWhateverTheCallersMode) {
  Matrix<Bf16> x(1, 2);
  Matrix<Bf16> w(2, 2);
  x.values = {ToBf16(std::ldexp(1.0f, -70)), Bf16{0x0001}};
  w.values = {ToBf16(std::ldexp(1.0f, -70)), ToBf16(1.0f), Bf16{0x0040}, ToBf16(1.0f)};
  const Matrix<float> y = Found(context_, x, w, {});
  EXPECT_EQ(BitsOf(y.At(0, 0)), 0u);
  EXPECT_EQ(BitsOf(y.At(0, 1)), 0u);
  const DenormalsOff denormals_off;
  EXPECT_TRUE(SameBytes(Found(context_, x, w, {}).values, y.values));
}

TEST_P(MatMulTest, ZeroRowsWriteNothing) {
  const Matrix<Bf16> x(0, 8);
  const Matrix<Bf16> w(4, 8);
  EXPECT_TRUE(Found(context_, x, w, {}).values.empty());
}

TEST_P(MatMulTest, ZeroInputsGiveTheBias) {
  const Matrix<float> x(2, 0);
  const Matrix<float> w(70, 0);
  const std::vector<float> bias = UniformVector(random_, 70, -1.0f, 1.0f);
  const Matrix<float> y = Found(context_, x, w, bias);
  for (int64_t n = 0; n < 70; ++n) {
    EXPECT_EQ(y.At(1, n), bias[static_cast<size_t>(n)]);
  }
}

TEST_P(MatMulTest, NothingOutsideYIsWritten) {
  const Matrix<Bf16> x = Rounded(UniformMatrix(random_, 7, 10));
  const Matrix<Bf16> w = Rounded(UniformMatrix(random_, 70, 10));
  PackedMatrix packed(70, 10, DType::kBf16);
  packed.PackRows(0, w.View(), pool_);
  Matrix<float> y(7, 70, 75);
  std::fill(y.values.begin(), y.values.end(), 99.0f);
  MatMul(context_, x.View(), packed, {}, y.View());
  for (int64_t m = 0; m < 7; ++m) {
    for (int64_t gap = 70; gap < 75; ++gap) {
      EXPECT_EQ(y.At(m, gap), 99.0f);
    }
  }
}

TEST_P(MatMulTest, ANanInOneRowStaysInThatRow) {
  Matrix<Bf16> x = Rounded(UniformMatrix(random_, 6, 8));
  x.At(2, 3) = ToBf16(std::nanf(""));
  const Matrix<Bf16> w = Rounded(UniformMatrix(random_, 64, 8));
  const Matrix<float> y = Found(context_, x, w, {});
  for (int64_t m = 0; m < 6; ++m) {
    EXPECT_EQ(std::isnan(y.At(m, 0)), m == 2) << m;
  }
}

using MatMulDeathTest = MatMulTest;
INSTANTIATE_TEST_SUITE_P(Scalar, MatMulDeathTest, testing::Values(Isa::kScalar), IsaTestName);

TEST_P(MatMulDeathTest, ShapesThatDoNotFitAbort) {
  const PackedMatrix w(4, 8, DType::kBf16);
  Matrix<float> y(2, 4);
  Matrix<float> narrow(2, 3);
  const Matrix<Bf16> x(2, 8);
  const Matrix<Bf16> short_x(2, 7);
  const std::vector<float> bias(3);
  EXPECT_DEATH(MatMul(context_, short_x.View(), w, {}, y.View()), "w.k");
  EXPECT_DEATH(MatMul(context_, x.View(), w, {}, narrow.View()), "w.n");
  EXPECT_DEATH(MatMul(context_, x.View(), w, bias, y.View()), "bias");
}

TEST_P(MatMulDeathTest, InputsOfAnotherTypeThanTheWeightsAbort) {
  const PackedMatrix w(4, 8, DType::kBf16);
  const Matrix<float> x(2, 8);
  Matrix<float> y(2, 4);
  EXPECT_DEATH(MatMul(context_, x.View(), w, {}, y.View()), "dtype");
}

}  // namespace
}  // namespace conclave::kernels
