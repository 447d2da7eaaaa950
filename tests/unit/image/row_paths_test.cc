// Goal: every version of the inner loops gives the bytes and floats of the scalar one. Method:
// random pictures of odd sizes and extreme shapes through all fits, and the loops themselves at
// every length around the width of a register.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "conclave/image/image.h"
#include "row_ops.h"

namespace conclave::image {
namespace {

const char* NameOf(RowPath path) {
  return path == RowPath::kScalar ? "scalar" : path == RowPath::kAvx2 ? "avx2" : "avx512";
}

// Many extremes: they make the filter overshoot, and sums as large as they get.
std::vector<uint8_t> RandomBytes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(count);
  for (uint8_t& value : bytes) {
    const uint32_t drawn = random();
    value = drawn % 3 == 0 ? 0 : drawn % 3 == 1 ? 255 : static_cast<uint8_t>(drawn >> 24);
  }
  return bytes;
}

RgbImage RandomImage(int32_t width, int32_t height, uint32_t seed) {
  return {width, height,
          RandomBytes(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height), seed)};
}

// Bit for bit, so that a zero's sign counts too.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Restores the choice of the CPU.
class RowPathTest : public testing::TestWithParam<RowPath> {
 protected:
  ~RowPathTest() override { UseRowPath(SupportedRowPaths().back()); }
};

TEST_P(RowPathTest, EveryFitGivesTheBytesOfTheScalarLoops) {
  constexpr std::pair<int32_t, int32_t> kSizes[] = {
      {1, 1},    {2, 3},  {5, 4},   {7, 31},  {17, 16}, {33, 65},   {64, 48},
      {101, 67}, {1, 97}, {211, 2}, {400, 4}, {3, 300}, {129, 130}, {641, 479}};
  for (const auto& [width, height] : kSizes) {
    const RgbImage source =
        RandomImage(width, height, static_cast<uint32_t>(width * 1000 + height));
    for (const int32_t size : {1, 5, 14, 33, 64, 130}) {
      for (const Fit fit : {Fit::kPad, Fit::kCrop, Fit::kStretch}) {
        const PreprocessSpec spec{size, fit, {0.48F, 0.45F, 0.40F}, {0.26F, 0.27F, 0.28F}};
        UseRowPath(RowPath::kScalar);
        const RgbImage wanted = FitAndResize(source, spec);
        const std::vector<float> wanted_planes = Normalize(wanted, spec);
        UseRowPath(GetParam());
        const RgbImage found = FitAndResize(source, spec);
        ASSERT_EQ(found.pixels, wanted.pixels)
            << width << "×" << height << " to " << size << ", fit " << static_cast<int>(fit);
        ASSERT_TRUE(SameBits(Normalize(found, spec), wanted_planes))
            << width << "×" << height << " to " << size << ", fit " << static_cast<int>(fit);
      }
    }
  }
}

TEST_P(RowPathTest, EitherAxisAlone) {
  const RgbImage source = RandomImage(53, 37, 1);
  for (const auto& [width, height] : {std::pair{53, 90}, {20, 37}, {53, 37}, {300, 11}}) {
    UseRowPath(RowPath::kScalar);
    const RgbImage wanted = ResizeBicubic(source, width, height);
    UseRowPath(GetParam());
    ASSERT_EQ(ResizeBicubic(source, width, height).pixels, wanted.pixels)
        << width << ", " << height;
  }
}

// The longest sums: thousands of taps, every one of them white.
TEST_P(RowPathTest, ThousandsOfTaps) {
  UseRowPath(GetParam());
  RgbImage white{8192, 1, std::vector<uint8_t>(size_t{3} * 8192, 255)};
  EXPECT_EQ(ResizeBicubic(white, 1, 1).pixels, std::vector<uint8_t>(3, 255));
  std::swap(white.width, white.height);
  EXPECT_EQ(ResizeBicubic(white, 20, 1).pixels, std::vector<uint8_t>(60, 255));
  const RgbImage noise = RandomImage(8192, 2, 3);
  const RgbImage found = ResizeBicubic(noise, 3, 5);
  UseRowPath(RowPath::kScalar);
  EXPECT_EQ(found.pixels, ResizeBicubic(noise, 3, 5).pixels);
}

TEST_P(RowPathTest, ColumnsOfEveryCount) {
  const RowOps& ops = RowOpsOf(GetParam());
  const std::vector<int16_t> high = {-60, 512, 700, -100, 3, 0, 0, 0};
  const std::vector<int16_t> low = {-2048, 2047, 5, -9, 1000, 0, 0, 0};
  for (int64_t row_bytes = 1; row_bytes <= 140; ++row_bytes) {
    for (int32_t num_taps = 1; num_taps <= 5; ++num_taps) {
      // The weights behind the last tap are 0.
      std::vector<int16_t> highs = high;
      std::vector<int16_t> lows = low;
      std::fill(highs.begin() + num_taps, highs.end(), int16_t{0});
      std::fill(lows.begin() + num_taps, lows.end(), int16_t{0});
      const SplitWeights weights{highs.data(), lows.data()};
      const std::vector<uint8_t> in =
          RandomBytes(static_cast<size_t>(row_bytes * num_taps), static_cast<uint32_t>(row_bytes));
      // One byte more, which nobody may touch.
      std::vector<uint8_t> wanted(static_cast<size_t>(row_bytes) + 1, 77);
      std::vector<uint8_t> found = wanted;
      ScalarRowOps().columns(in.data(), row_bytes, weights, num_taps, wanted.data());
      ops.columns(in.data(), row_bytes, weights, num_taps, found.data());
      ASSERT_EQ(found, wanted) << row_bytes << " columns, " << num_taps << " taps";
    }
  }
}

TEST_P(RowPathTest, NormalizeOfEveryCountAndValue) {
  const RowOps& ops = RowOpsOf(GetParam());
  const float mean[3] = {0.48145466F, 0.5F, 0.0F};
  const float std[3] = {0.26862954F, 0.5F, 3e-39F};  // the last: results beyond f32
  for (int64_t count = 1; count <= 300; count += count < 40 ? 1 : 37) {
    std::vector<uint8_t> rgb(static_cast<size_t>(3 * count));
    for (size_t i = 0; i < rgb.size(); ++i) {
      rgb[i] = static_cast<uint8_t>(i / 3 + 85 * (i % 3));
    }
    std::vector<float> wanted(static_cast<size_t>(3 * count) + 1, 7.0F);
    std::vector<float> found = wanted;
    const auto run = [&](const RowOps& of, std::vector<float>& out) {
      float* const plane[3] = {out.data(), out.data() + count, out.data() + 2 * count};
      of.normalize(rgb.data(), count, mean, std, plane);
    };
    run(ScalarRowOps(), wanted);
    run(ops, found);
    ASSERT_TRUE(SameBits(found, wanted)) << count << " pixels";
  }
}

INSTANTIATE_TEST_SUITE_P(Paths, RowPathTest, testing::ValuesIn(SupportedRowPaths()),
                         [](const auto& chosen) { return std::string(NameOf(chosen.param)); });

TEST(RowPathsTest, TheBaselineIsAlwaysThereAndTheFastestIsTaken) {
  const std::vector<RowPath> paths = SupportedRowPaths();
  EXPECT_EQ(paths.front(), RowPath::kScalar);
  EXPECT_EQ(&CurrentRowOps(), &RowOpsOf(paths.back()));
}

}  // namespace
}  // namespace conclave::image
