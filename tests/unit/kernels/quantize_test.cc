// Goal: Q8Scratch quantizes rows as quantize.h says, on every path with the same bytes.
// Method: against the words of the header written here, over ordinary, hostile and special blocks.
#include "conclave/kernels/quantize.h"

#include <limits>

#include "kernels_testing.h"

namespace conclave::kernels {
namespace {

// Copies, since the scratch is used again.
struct Quantized {
  std::vector<int8_t> values;
  std::vector<float> scales;
  std::vector<int32_t> sums;
};

Quantized CopyOf(const Q8Rows& rows) {
  const int64_t blocks = rows.rows * rows.num_blocks();
  return {std::vector<int8_t>(rows.values, rows.values + blocks * kQ8Block),
          std::vector<float>(rows.scales, rows.scales + blocks),
          std::vector<int32_t>(rows.sums, rows.sums + blocks)};
}

template <typename T>
Quantized Expected(const Matrix<T>& x) {
  const DenormalsOff denormals_off;
  Quantized out;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t begin = 0; begin < x.cols; begin += kQ8Block) {
      float w[kQ8Block] = {};
      float max = 0.0f;
      bool is_finite = true;
      for (int64_t i = 0; i < std::min(kQ8Block, x.cols - begin); ++i) {
        if constexpr (std::is_same_v<T, float>) {
          w[i] = x.At(r, begin + i);
        } else {
          w[i] = ToFloat(x.At(r, begin + i));
        }
        is_finite = is_finite && std::isfinite(w[i]);
        max = std::max(max, std::abs(w[i]));
      }
      const bool is_zero = !is_finite || max < std::ldexp(1.0f, -100);
      out.scales.push_back(!is_finite ? std::nanf("") : is_zero ? 0.0f : max / 127.0f);
      int32_t sum = 0;
      for (const float value : w) {
        const auto q = static_cast<int8_t>(is_zero ? 0 : std::lrint(value * (127.0f / max)));
        out.values.push_back(q);
        sum += q;
      }
      out.sums.push_back(-128 * sum);
    }
  }
  return out;
}

void ExpectSame(const Quantized& found, const Quantized& expected) {
  EXPECT_EQ(found.values, expected.values);
  EXPECT_EQ(found.sums, expected.sums);
  ASSERT_EQ(found.scales.size(), expected.scales.size());
  for (size_t i = 0; i < found.scales.size(); ++i) {
    // What a NaN carries is not promised.
    EXPECT_TRUE(BitsOf(found.scales[i]) == BitsOf(expected.scales[i]) ||
                (std::isnan(found.scales[i]) && std::isnan(expected.scales[i])))
        << "block " << i << ": " << found.scales[i] << ", expected " << expected.scales[i];
  }
}

class QuantizeTest : public testing::TestWithParam<Isa> {
 protected:
  ThreadPool pool_{2};
  Context context_{GetParam(), pool_};
  Random random_{9};
};

INSTANTIATE_TEST_SUITE_P(Paths, QuantizeTest, testing::ValuesIn(SupportedIsas()), IsaTestName);

TEST_P(QuantizeTest, RowsEqualTheHeadersWordsForAllWidths) {
  Q8Scratch scratch(7, 1000);
  for (const int64_t cols : {1, 15, 16, 17, 31, 32, 33, 47, 64, 65, 100, 1000}) {
    const Matrix<float> x = HostileMatrix(random_, 7, cols);
    ExpectSame(CopyOf(scratch.Quantize(context_, x.View())), Expected(x));
    const Matrix<Bf16> rounded = Rounded(x);
    ExpectSame(CopyOf(scratch.Quantize(context_, rounded.View())), Expected(rounded));
  }
}

TEST_P(QuantizeTest, StridedRowsSkipWhatLiesBetween) {
  Matrix<float> wide(5, 40, 47);
  random_.Fill(wide.values, -3.0f, 3.0f);
  Q8Scratch scratch(5, 40);
  ExpectSame(CopyOf(scratch.Quantize(context_, std::as_const(wide).View())), Expected(wide));
}

TEST_P(QuantizeTest, EveryElementIsWithinHalfAStep) {
  const Matrix<float> x = UniformMatrix(random_, 20, 640, -5.0f, 5.0f);
  Q8Scratch scratch(20, 640);
  const Q8Rows rows = scratch.Quantize(context_, x.View());
  for (int64_t r = 0; r < 20; ++r) {
    for (int64_t i = 0; i < 640; ++i) {
      const double scale = rows.scales[r * 20 + i / 32];
      // Three roundings of f32 on values up to 127.
      ASSERT_NEAR(rows.values[r * 640 + i] * scale, x.At(r, i), scale * (0.5 + 3e-5))
          << r << " " << i;
    }
  }
}

TEST_P(QuantizeTest, TiesGoToEven) {
  Matrix<float> x(1, 32);
  const float values[] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 126.5f};
  const int8_t expected[] = {127, 0, 2, 2, 0, -2, -126, 126};
  std::copy(std::begin(values), std::end(values), x.values.begin());
  Q8Scratch scratch(1, 32);
  const Q8Rows rows = scratch.Quantize(context_, x.View());
  EXPECT_EQ(rows.scales[0], 1.0f);
  for (size_t i = 0; i < std::size(values); ++i) {
    EXPECT_EQ(rows.values[i], expected[i]) << values[i];
  }
}

TEST_P(QuantizeTest, SpecialBlocks) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::nanf("");
  // The largest of a block that is otherwise 1/1000 of it; NaN and infinity at both ends.
  const std::vector<float> specials = {0.0f,
                                       -0.0f,
                                       std::ldexp(1.0f, -130),
                                       std::ldexp(0.999f, -100),
                                       std::ldexp(1.0f, -100),
                                       std::numeric_limits<float>::max(),
                                       -std::numeric_limits<float>::max(),
                                       inf,
                                       -inf,
                                       nan};
  for (const float special : specials) {
    for (const int64_t place : {0, 7, 15, 16, 31}) {
      Matrix<float> x(1, 96);
      random_.Fill(x.values, -1.0f, 1.0f);
      for (int64_t i = 32; i < 64; ++i) {
        x.At(0, i) = std::isfinite(special) ? special / 1000.0f : 0.25f;
      }
      x.At(0, 32 + place) = special;
      Q8Scratch scratch(1, 96);
      const Quantized found = CopyOf(scratch.Quantize(context_, x.View()));
      ExpectSame(found, Expected(x));
      EXPECT_EQ(std::isnan(found.scales[1]), !std::isfinite(special)) << special;
      EXPECT_FALSE(std::isnan(found.scales[0]) || std::isnan(found.scales[2]));
    }
  }
}

TEST_P(QuantizeTest, AScratchForgetsTheRowsBefore) {
  Q8Scratch scratch(4, 100);
  scratch.Quantize(context_, UniformMatrix(random_, 4, 100).View());
  const Matrix<float> x = UniformMatrix(random_, 3, 33);
  ExpectSame(CopyOf(scratch.Quantize(context_, x.View())), Expected(x));
}

}  // namespace
}  // namespace conclave::kernels
