// Goal: packing puts every weight where matmul.h says, rounded as it says, and leaves the padding
// zero.
#include <limits>

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

// A q8 panel, by the words of matmul.h.
float Q8ScaleAt(const PackedMatrix& w, int64_t n, int64_t block) {
  const std::byte* at = w.Panel(n / kPanelColumns) + block * 2176;
  return ToFloat(reinterpret_cast<const Bf16*>(at)[n % kPanelColumns]);
}
int Q8ByteAt(const PackedMatrix& w, int64_t n, int64_t k) {
  const std::byte* at = w.Panel(n / kPanelColumns) + k / 32 * 2176 + 128;
  return static_cast<int>(at[k % 32 / 4 * 256 + n % kPanelColumns * 4 + k % 4]);
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

TEST_F(PackedMatrixTest, Q8BlocksAreWithinHalfAStepAndPaddingIsZero) {
  for (const auto& [rows, cols] :
       {std::pair<int64_t, int64_t>{70, 37}, {64, 64}, {1, 1}, {129, 95}}) {
    const Matrix<float> source = HostileMatrix(random_, rows, cols);
    PackedMatrix w(rows, cols, DType::kQ8);
    w.PackRows(0, source.View(), pool_);
    const int64_t blocks = (cols + 31) / 32;
    EXPECT_EQ(w.panel_bytes(), blocks * 2176);
    EXPECT_EQ(w.size_bytes(), PackedMatrix::BytesOf(rows, cols, DType::kQ8));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(w.Panel(w.num_panels() - 1)) % 64, 0u);
    for (int64_t n = 0; n < w.num_panels() * kPanelColumns; ++n) {
      for (int64_t b = 0; b < blocks; ++b) {
        double max = 0.0;
        for (int64_t k = b * 32; k < std::min(cols, b * 32 + 32) && n < rows; ++k) {
          max = std::max(max, std::abs(double{source.At(n, k)}));
        }
        const double d = Q8ScaleAt(w, n, b);
        if (max < std::ldexp(1.0, -100)) {
          ASSERT_EQ(d, 0.0) << n << " " << b;
        } else {
          // Rounded up by at most one step of bf16's eight bits.
          ASSERT_GE(d * 127.0 * (1.0 + std::ldexp(1.0, -23)), max) << n << " " << b;
          ASSERT_LE(d * 127.0, max * (1.0 + std::ldexp(1.0, -7))) << n << " " << b;
        }
        for (int64_t k = b * 32; k < b * 32 + 32; ++k) {
          const bool exists = n < rows && k < cols;
          const int q = Q8ByteAt(w, n, k) - 128;
          ASSERT_LE(std::abs(q), 127);
          ASSERT_TRUE(exists || q == 0) << n << " " << k;
          if (exists && d > 0.0) {
            ASSERT_NEAR(q, double{source.At(n, k)} / d, 0.5 + 1e-4) << n << " " << k;
          }
        }
      }
    }
  }
}

TEST_F(PackedMatrixTest, Q8RoundsTiesToEvenAndDropsWhatIsTooSmall) {
  Matrix<float> source(3, 32);
  // d = 1 exactly: 127 is the largest.
  source.At(0, 0) = 127.0f;
  source.At(0, 1) = 2.5f;
  source.At(0, 2) = -3.5f;
  source.At(0, 3) = 0.5f;
  source.At(1, 5) = std::ldexp(0.99f, -100);
  source.At(2, 5) = -std::ldexp(1.0f, -100);
  PackedMatrix w(3, 32, DType::kQ8);
  w.PackRows(0, source.View(), pool_);
  EXPECT_EQ(Q8ScaleAt(w, 0, 0), 1.0f);
  EXPECT_EQ(Q8ByteAt(w, 0, 0), 255);
  EXPECT_EQ(Q8ByteAt(w, 0, 1), 130);
  EXPECT_EQ(Q8ByteAt(w, 0, 2), 124);
  EXPECT_EQ(Q8ByteAt(w, 0, 3), 128);
  EXPECT_EQ(Q8ScaleAt(w, 1, 0), 0.0f);
  EXPECT_EQ(Q8ByteAt(w, 1, 5), 128);
  EXPECT_GT(Q8ScaleAt(w, 2, 0), 0.0f);
  // Rounding the scale up leaves less than 127 of it.
  EXPECT_LT(Q8ByteAt(w, 2, 5), 5);
}

TEST_F(PackedMatrixTest, Q8BlocksThatHoldNoNumbersHaveAScaleThatIsNone) {
  Matrix<float> source = UniformMatrix(random_, 2, 64);
  source.At(0, 40) = std::nanf("");
  source.At(1, 3) = -std::numeric_limits<float>::infinity();
  PackedMatrix w(2, 64, DType::kQ8);
  w.PackRows(0, source.View(), pool_);
  EXPECT_FALSE(std::isnan(Q8ScaleAt(w, 0, 0)));
  EXPECT_TRUE(std::isnan(Q8ScaleAt(w, 0, 1)));
  EXPECT_TRUE(std::isnan(Q8ScaleAt(w, 1, 0)));
  EXPECT_EQ(Q8ByteAt(w, 0, 41), 128);
}

TEST_F(PackedMatrixTest, Q8IsTheSameFromAllSourcesOfEqualValuesAndFromRangesOfThem) {
  // Eight significant bits or less: exact in all three.
  Matrix<float> f32(150, 45);
  Matrix<uint16_t> f16(150, 45);
  for (size_t i = 0; i < f32.values.size(); ++i) {
    f32.values[i] = static_cast<float>(random_.Int(-255, 255)) / 64.0f;
    f16.values[i] = FloatToHalf(f32.values[i]);
  }
  PackedMatrix whole(150, 45, DType::kQ8);
  whole.PackRows(0, f32.View(), pool_);
  PackedMatrix from_bf16(150, 45, DType::kQ8);
  from_bf16.PackRows(0, std::as_const(f32).View().Rows(0, 0), pool_);
  from_bf16.PackRows(100, Rounded(f32).View().Rows(100, 50), pool_);
  from_bf16.PackRows(0, Rounded(f32).View().Rows(0, 100), pool_);
  PackedMatrix from_f16(150, 45, DType::kQ8);
  from_f16.PackRowsF16(0, f16.View(), pool_);
  EXPECT_EQ(std::memcmp(whole.Panel(0), from_bf16.Panel(0), whole.size_bytes()), 0);
  EXPECT_EQ(std::memcmp(whole.Panel(0), from_f16.Panel(0), whole.size_bytes()), 0);
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
