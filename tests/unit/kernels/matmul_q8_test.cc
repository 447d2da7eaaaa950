// Goal: the q8 MatMul computes the chain over blocks of quantize.h, on every path.
// Method: bit by bit against that chain written here over integers that are unpacked from the
// panels.
#include "conclave/kernels/matmul.h"
#include "kernels_testing.h"

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
    Matrix<float> y(s.m, s.n);
    MatMul(context_, rows, w, bias, y.View());
    EXPECT_TRUE(SameBytes(y.values, Expected(rows, w, bias))) << s.m << " " << s.n << " " << s.k;
  }
}

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
      // Half a step of 1/127 on either side of every product, and steps rounded up by bf16.
      ASSERT_NEAR(y.At(m, n), sum, 700 * 1.02 / 127.0) << m << " " << n;
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
