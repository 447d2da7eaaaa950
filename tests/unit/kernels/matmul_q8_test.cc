// Goal: the q8 MatMul computes the chain over blocks of quantize.h, on every path.
// Method: bit by bit against that chain written here over integers that are unpacked from the
// panels, with every GEMM that the CPU can run; and against double sums within derived bounds.
#include <limits>

#include "conclave/kernels/matmul.h"
#include "kernel_table.h"
#include "kernels_testing.h"
#include "q8_kernels.h"

namespace conclave::kernels {
namespace {

float ScaleAt(const PackedMatrix& w, int64_t n, int64_t block) {
  const auto* at = w.Panel(n / kPanelColumns) + block * 2176;
  return ToFloat(reinterpret_cast<const Bf16*>(at)[n % kPanelColumns]);
}

int32_t WeightAt(const PackedMatrix& w, int64_t n, int64_t k) {
  const auto* at = w.Panel(n / kPanelColumns) + k / 32 * 2176 + 128;
  return static_cast<int32_t>(at[k % 32 / 4 * 256 + n % kPanelColumns * 4 + k % 4]) - 128;
}

std::vector<float> Expected(const Q8Rows& x, const PackedMatrix& w,
                            const std::vector<float>& bias) {
  const DenormalsOff denormals_off;
  std::vector<float> y;
  for (int64_t m = 0; m < x.rows; ++m) {
    for (int64_t n = 0; n < w.n(); ++n) {
      float acc = 0.0f;
      for (int64_t b = 0; b < x.num_blocks(); ++b) {
        int32_t sum = 0;
        for (int64_t i = 0; i < 32; ++i) {
          sum += x.values[(m * x.num_blocks() + b) * 32 + i] * WeightAt(w, n, b * 32 + i);
        }
        acc = std::fma(static_cast<float>(sum), x.scales[m * x.num_blocks() + b] * ScaleAt(w, n, b),
                       acc);
      }
      y.push_back(bias.empty() ? acc : acc + bias[static_cast<size_t>(n)]);
    }
  }
  return y;
}

class MatMulQ8Test : public testing::TestWithParam<Isa> {
 protected:
  ThreadPool pool_{2};
  Context context_{GetParam(), pool_};
  Random random_{5};

  // Runs fn(context, number) with every q8 GEMM of the path that this CPU has, with and without
  // VPDPBUSD.
  template <typename Fn>
  void ForKernels(const Fn& fn) {
    size_t number = 0;
    for (const Q8Kernel kernel : Q8KernelsFor(GetParam())) {
      KernelTable table = *context_.table;
      table.matmul_q8 = kernel;
      Context context = context_;
      context.table = &table;
      fn(context, number++);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Paths, MatMulQ8Test, testing::ValuesIn(SupportedIsas()), IsaTestName);

struct Sizes {
  int64_t m, n, k;
};
constexpr Sizes kSizes[] = {{1, 1, 1},   {1, 64, 2},   {2, 65, 3},   {3, 63, 17},  {5, 7, 64},
                            {6, 128, 9}, {7, 130, 31}, {13, 72, 80}, {4, 20, 515}, {2, 33, 1025}};

TEST_P(MatMulQ8Test, EqualsTheChainBitByBitOnHostileInputs) {
  for (const Sizes& s : kSizes) {
    const Matrix<float> x = HostileMatrix(random_, s.m, s.k);
    PackedMatrix w(s.n, s.k, DType::kQ8);
    w.PackRows(0, HostileMatrix(random_, s.n, s.k).View(), pool_);
    const std::vector<float> bias = UniformVector(random_, s.n, -1.0f, 1.0f);
    Q8Scratch scratch(s.m, s.k);
    const Q8Rows rows = scratch.Quantize(context_, x.View());
    const std::vector<float> expected = Expected(rows, w, bias);
    ForKernels([&](const Context& context, size_t kernel) {
      Matrix<float> y(s.m, s.n);
      MatMul(context, rows, w, bias, y.View());
      EXPECT_TRUE(SameBytes(y.values, expected))
          << "kernel " << kernel << ": " << s.m << " " << s.n << " " << s.k;
    });
  }
}

// More blocks than a group has for few tiles (8), for many without VPDPBUSD (32) and with it (256):
// sums are parked in y between groups.
TEST_P(MatMulQ8Test, LongChainsEqualTheChainAcrossGroupsOfBlocks) {
  for (const Sizes& s : {Sizes{1, 5, 1090}, {9, 70, 300}, {14, 5, 8300}, {26, 66, 1090}}) {
    const Matrix<float> x = UniformMatrix(random_, s.m, s.k);
    PackedMatrix w(s.n, s.k, DType::kQ8);
    w.PackRows(0, UniformMatrix(random_, s.n, s.k).View(), pool_);
    const std::vector<float> bias = UniformVector(random_, s.n, -1.0f, 1.0f);
    Q8Scratch scratch(s.m, s.k);
    const Q8Rows rows = scratch.Quantize(context_, x.View());
    const std::vector<float> expected = Expected(rows, w, bias);
    ForKernels([&](const Context& context, size_t kernel) {
      Matrix<float> y(s.m, s.n);
      MatMul(context, rows, w, bias, y.View());
      EXPECT_TRUE(SameBytes(y.values, expected))
          << "kernel " << kernel << ": " << s.m << " " << s.n << " " << s.k;
    });
  }
}

// All integers at their limits: 32 · 255 · 127 is the largest sum on the way, and pairs of such
// products saturate 16 bits.
TEST_P(MatMulQ8Test, ExtremeIntegersDoNotSaturate) {
  for (const float sign : {1.0f, -1.0f}) {
    const Matrix<float> x = UniformMatrix(random_, 5, 64, 127.0f, 127.0f);
    const Matrix<float> source = UniformMatrix(random_, 65, 64, sign * 127.0f, sign * 127.0f);
    PackedMatrix w(65, 64, DType::kQ8);
    w.PackRows(0, source.View(), pool_);
    Q8Scratch scratch(5, 64);
    const Q8Rows rows = scratch.Quantize(context_, x.View());
    ForKernels([&](const Context& context, size_t kernel) {
      Matrix<float> y(5, 65);
      MatMul(context, rows, w, {}, y.View());
      for (const float value : y.values) {
        ASSERT_EQ(value, sign * 64 * 127 * 127) << "kernel " << kernel;
      }
    });
  }
}

// A term is rounded once in the product of its scales and then at most once per block, by the fused
// multiply-adds of the chain.
TEST_P(MatMulQ8Test, StaysWithinTheBoundOfAChainOverBlocks) {
  const Matrix<float> x = UniformMatrix(random_, 9, 700);
  PackedMatrix w(90, 700, DType::kQ8);
  w.PackRows(0, UniformMatrix(random_, 90, 700).View(), pool_);
  Q8Scratch scratch(9, 700);
  const Q8Rows rows = scratch.Quantize(context_, x.View());
  const int64_t blocks = rows.num_blocks();
  Matrix<float> y(9, 90);
  MatMul(context_, rows, w, {}, y.View());
  for (int64_t m = 0; m < 9; ++m) {
    for (int64_t n = 0; n < 90; ++n) {
      double sum = 0.0;
      double magnitude = 0.0;
      for (int64_t b = 0; b < blocks; ++b) {
        int64_t dot = 0;
        for (int64_t i = 0; i < 32; ++i) {
          dot += int64_t{rows.values[(m * blocks + b) * 32 + i]} * WeightAt(w, n, b * 32 + i);
        }
        const double term = static_cast<double>(dot) * double{rows.scales[m * blocks + b]} *
                            double{ScaleAt(w, n, b)};
        sum += term;
        magnitude += std::abs(term);
      }
      ASSERT_NEAR(y.At(m, n), sum, Gamma(blocks + 1) * magnitude) << m << " " << n;
    }
  }
}

// With |x|, |w| <= 1: half a step of x is at most 1/254, one of w 1.008/254 as its scale is rounded
// up, and a product of both smaller still.
TEST_P(MatMulQ8Test, IsNearTheProductOfTheUnquantized) {
  const Matrix<float> x = UniformMatrix(random_, 9, 700);
  const Matrix<float> source = UniformMatrix(random_, 90, 700);
  PackedMatrix w(90, 700, DType::kQ8);
  w.PackRows(0, source.View(), pool_);
  Q8Scratch scratch(9, 700);
  Matrix<float> y(9, 90);
  MatMul(context_, scratch.Quantize(context_, x.View()), w, {}, y.View());
  for (int64_t m = 0; m < 9; ++m) {
    for (int64_t n = 0; n < 90; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < 700; ++k) {
        sum += double{x.At(m, k)} * double{source.At(n, k)};
      }
      ASSERT_NEAR(y.At(m, n), sum, 700 * (2.008 / 254.0 + 1.008 / (254.0 * 254.0)) + 1e-3)
          << m << " " << n;
    }
  }
}

TEST_P(MatMulQ8Test, ARowThatHoldsNoNumberStaysAlone) {
  for (const float poison : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    Matrix<float> x = UniformMatrix(random_, 6, 70);
    x.At(2, 3) = poison;
    PackedMatrix w(65, 70, DType::kQ8);
    w.PackRows(0, UniformMatrix(random_, 65, 70).View(), pool_);
    Q8Scratch scratch(6, 70);
    const Q8Rows rows = scratch.Quantize(context_, x.View());
    ForKernels([&](const Context& context, size_t kernel) {
      Matrix<float> y(6, 65);
      MatMul(context, rows, w, {}, y.View());
      for (int64_t m = 0; m < 6; ++m) {
        EXPECT_EQ(std::isfinite(y.At(m, 64)), m != 2) << m << ", kernel " << kernel;
      }
    });
  }
}

TEST_P(MatMulQ8Test, NoRowsNoInputsAndWhatLiesBetweenRows) {
  PackedMatrix empty(70, 0, DType::kQ8);
  const std::vector<float> bias = UniformVector(random_, 70, -1.0f, 1.0f);
  Q8Scratch scratch(3, 33);
  PackedMatrix w(70, 33, DType::kQ8);
  w.PackRows(0, UniformMatrix(random_, 70, 33).View(), pool_);
  ForKernels([&](const Context& context, size_t /*kernel*/) {
    Matrix<float> y(2, 70);
    const Matrix<float> no_inputs(2, 0);
    MatMul(context, scratch.Quantize(context, no_inputs.View()), empty, bias, y.View());
    EXPECT_EQ(std::vector<float>(y.values.begin() + 70, y.values.end()), bias);

    Matrix<float> none(0, 70);
    MatMul(context, scratch.Quantize(context, Matrix<float>(0, 33).View()), w, bias, none.View());

    Matrix<float> wide(3, 70, 75);
    std::fill(wide.values.begin(), wide.values.end(), 99.0f);
    const Matrix<float> x = UniformMatrix(random_, 3, 33);
    MatMul(context, scratch.Quantize(context, x.View()), w, {}, wide.View());
    for (int64_t m = 0; m < 3; ++m) {
      EXPECT_NE(wide.At(m, 69), 99.0f);
      for (int64_t gap = 70; gap < 75; ++gap) {
        EXPECT_EQ(wide.At(m, gap), 99.0f);
      }
    }
  });
}

using MatMulQ8DeathTest = MatMulQ8Test;
INSTANTIATE_TEST_SUITE_P(Scalar, MatMulQ8DeathTest, testing::Values(Isa::kScalar), IsaTestName);

TEST_P(MatMulQ8DeathTest, WhatDoesNotFitAborts) {
  const PackedMatrix w(4, 40, DType::kQ8);
  const PackedMatrix bf16(4, 40, DType::kBf16);
  const Matrix<float> x(2, 40);
  Matrix<float> y(2, 4);
  Q8Scratch scratch(2, 64);
  const Q8Rows rows = scratch.Quantize(context_, x.View());
  EXPECT_DEATH(MatMul(context_, rows, bf16, {}, y.View()), "dtype");
  EXPECT_DEATH(MatMul(context_, x.View(), w, {}, y.View()), "dtype");
  const Matrix<float> short_x(2, 39);
  EXPECT_DEATH(MatMul(context_, scratch.Quantize(context_, short_x.View()), w, {}, y.View()),
               "w.k");
  const Matrix<float> long_x(3, 40);
  EXPECT_DEATH(scratch.Quantize(context_, long_x.View()), "rows");
}

}  // namespace
}  // namespace conclave::kernels
