// Goal: packing puts every weight where matmul.h says, rounded as it says, and leaves the padding
// zero.
#include "conclave/kernels/matmul.h"
#include "kernels_testing.h"

namespace conclave::kernels {
namespace {

float F32At(const PackedMatrix& w, int64_t n, int64_t k) {
  const auto* panel = reinterpret_cast<const float*>(w.Panel(n / kPanelColumns));
  return panel[k * kPanelColumns + n % kPanelColumns];
}

Bf16 Bf16At(const PackedMatrix& w, int64_t n, int64_t k) {
  const auto* panel = reinterpret_cast<const Bf16*>(w.Panel(n / kPanelColumns));
  return panel[(k / 2 * kPanelColumns + n % kPanelColumns) * 2 + k % 2];
}

class PackedMatrixTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Random random_{11};
};

TEST_F(PackedMatrixTest, F32PanelsHoldColumnsSideBySideAndZerosBeyondTheLast) {
  const Matrix<float> source = UniformMatrix(random_, 70, 5);
  PackedMatrix w(70, 5, DType::kF32);
  w.PackRows(0, source.View(), pool_);
  EXPECT_EQ(w.num_panels(), 2);
  for (int64_t n = 0; n < 128; ++n) {
    for (int64_t k = 0; k < 6; ++k) {
      EXPECT_EQ(F32At(w, n, k), n < 70 && k < 5 ? source.At(n, k) : 0.0f) << n << " " << k;
    }
  }
}

TEST_F(PackedMatrixTest, Bf16PanelsHoldPairsAndZerosBeyondAnOddK) {
  const Matrix<float> source = HostileMatrix(random_, 70, 37);
  PackedMatrix w(70, 37, DType::kBf16);
  w.PackRows(0, source.View(), pool_);
  for (int64_t n = 0; n < 128; ++n) {
    for (int64_t k = 0; k < 38; ++k) {
      EXPECT_EQ(Bf16At(w, n, k), n < 70 && k < 37 ? ToBf16(source.At(n, k)) : Bf16{})
          << n << " " << k;
    }
  }
}

TEST_F(PackedMatrixTest, RangesPackedOneByOneEqualTheWholeEvenWhereTheyShareAPanel) {
  const Matrix<Bf16> source = Rounded(UniformMatrix(random_, 200, 33));
  PackedMatrix whole(200, 33, DType::kBf16);
  whole.PackRows(0, source.View(), pool_);
  PackedMatrix parts(200, 33, DType::kBf16);
  for (const auto& [first, count] :
       {std::pair<int64_t, int64_t>{130, 70}, {0, 10}, {10, 0}, {10, 120}}) {
    parts.PackRows(first, source.View().Rows(first, count), pool_);
  }
  EXPECT_EQ(std::memcmp(whole.Panel(0), parts.Panel(0), whole.size_bytes()), 0);
}

TEST_F(PackedMatrixTest, HalfSourcesAreExactInF32AndRoundOnceToBf16) {
  Matrix<uint16_t> source(64, 1024);
  for (size_t i = 0; i < source.values.size(); ++i) {
    source.values[i] = static_cast<uint16_t>(i);  // Every half there is.
  }
  PackedMatrix f32(64, 1024, DType::kF32);
  f32.PackRowsF16(0, source.View(), pool_);
  PackedMatrix bf16(64, 1024, DType::kBf16);
  bf16.PackRowsF16(0, source.View(), pool_);
  for (int64_t n = 0; n < 64; ++n) {
    for (int64_t k = 0; k < 1024; ++k) {
      const float value = HalfToFloat(source.At(n, k));
      ASSERT_EQ(BitsOf(F32At(f32, n, k)), BitsOf(value)) << source.At(n, k);
      ASSERT_EQ(Bf16At(bf16, n, k), ToBf16(value)) << source.At(n, k);
    }
  }
}

TEST_F(PackedMatrixTest, StridedSourcesSkipWhatLiesBetweenRows) {
  Matrix<float> wide(3, 4, 9);
  for (size_t i = 0; i < wide.values.size(); ++i) {
    wide.values[i] = static_cast<float>(i);
  }
  PackedMatrix w(3, 4, DType::kF32);
  w.PackRows(0, wide.View(), pool_);
  EXPECT_EQ(F32At(w, 2, 3), 21.0f);
}

using PackedMatrixDeathTest = PackedMatrixTest;

TEST_F(PackedMatrixDeathTest, RowsBeyondTheMatrixAbort) {
  PackedMatrix w(8, 4, DType::kF32);
  const Matrix<float> source(4, 4);
  EXPECT_DEATH(w.PackRows(5, source.View(), pool_), "matrix.n");
  EXPECT_DEATH(w.PackRows(-1, source.View(), pool_), "first_row");
}

TEST_F(PackedMatrixDeathTest, AnotherKAborts) {
  PackedMatrix w(8, 4, DType::kF32);
  const Matrix<float> source(4, 5);
  EXPECT_DEATH(w.PackRows(0, source.View(), pool_), "matrix.k");
}

TEST_F(PackedMatrixDeathTest, OtherTypesAbort) {
  EXPECT_DEATH(PackedMatrix(8, 4, DType::kF16), "dtype");
}

}  // namespace
}  // namespace conclave::kernels
