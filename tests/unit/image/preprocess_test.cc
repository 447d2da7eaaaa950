// Goal: fitting gives what the slow way gives (build the canvas or the whole resized picture, then
// cut), and the tensor is finite and in the documented order. Method: the slow way is written out
// here on top of ResizeBicubic, which has its own tests.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "conclave/image/image.h"

namespace conclave::image {
namespace {

RgbImage Flat(int32_t width, int32_t height, const std::vector<uint8_t>& colour) {
  RgbImage image{width, height, {}};
  for (int64_t i = 0; i < int64_t{width} * height; ++i) {
    image.pixels.insert(image.pixels.end(), colour.begin(), colour.end());
  }
  return image;
}

RgbImage RandomImage(int32_t width, int32_t height, uint32_t seed) {
  std::mt19937 random(seed);
  RgbImage image = Flat(width, height, {0, 0, 0});
  std::generate(image.pixels.begin(), image.pixels.end(),
                [&random] { return static_cast<uint8_t>(random() >> 24); });
  return image;
}

uint8_t* PixelAt(RgbImage& image, int32_t x, int32_t y) {
  return image.pixels.data() + (int64_t{y} * image.width + x) * 3;
}

PreprocessSpec ClipSpec(int32_t size, Fit fit) {
  return {.size = size,
          .fit = fit,
          .mean = {0.48145466F, 0.4578275F, 0.40821073F},
          .std = {0.26862954F, 0.26130258F, 0.27577711F}};
}

PreprocessSpec SiglipSpec(int32_t size, Fit fit) {
  return {.size = size, .fit = fit, .mean = {0.5F, 0.5F, 0.5F}, .std = {0.5F, 0.5F, 0.5F}};
}

RgbImage SlowPad(RgbImage source, int32_t size, const std::vector<uint8_t>& colour) {
  const int32_t side = std::max(source.width, source.height);
  RgbImage canvas = Flat(side, side, colour);
  const int32_t left = (side - source.width) / 2;
  const int32_t top = (side - source.height) / 2;
  for (int32_t y = 0; y < source.height; ++y) {
    std::copy_n(PixelAt(source, 0, y), int64_t{3} * source.width, PixelAt(canvas, left, top + y));
  }
  return ResizeBicubic(canvas, size, size);
}

RgbImage SlowCrop(const RgbImage& source, int32_t size) {
  const int64_t shortest = std::min(source.width, source.height);
  const int64_t longest = std::max(source.width, source.height);
  const auto long_edge = static_cast<int32_t>(size * longest / shortest);
  const bool is_tall = source.height > source.width;
  RgbImage whole = ResizeBicubic(source, is_tall ? size : long_edge, is_tall ? long_edge : size);
  RgbImage out = Flat(size, size, {0, 0, 0});
  for (int32_t y = 0; y < size; ++y) {
    std::copy_n(PixelAt(whole, (whole.width - size) / 2, (whole.height - size) / 2 + y),
                int64_t{3} * size, PixelAt(out, 0, y));
  }
  return out;
}

struct Shape {
  int32_t width;
  int32_t height;
};

class FitTest : public testing::TestWithParam<Shape> {
 protected:
  static constexpr int32_t kSize = 24;
  RgbImage source_ = RandomImage(GetParam().width, GetParam().height, 11);
};

TEST_P(FitTest, PadEqualsResizingTheCanvas) {
  EXPECT_EQ(FitAndResize(source_, ClipSpec(kSize, Fit::kPad)).pixels,
            SlowPad(source_, kSize, {122, 116, 104}).pixels);
  EXPECT_EQ(FitAndResize(source_, SiglipSpec(kSize, Fit::kPad)).pixels,
            SlowPad(source_, kSize, {127, 127, 127}).pixels);
}

TEST_P(FitTest, CropEqualsCuttingTheResizedPicture) {
  EXPECT_EQ(FitAndResize(source_, ClipSpec(kSize, Fit::kCrop)).pixels,
            SlowCrop(source_, kSize).pixels);
}

TEST_P(FitTest, StretchEqualsResizing) {
  EXPECT_EQ(FitAndResize(source_, SiglipSpec(kSize, Fit::kStretch)).pixels,
            ResizeBicubic(source_, kSize, kSize).pixels);
}

INSTANTIATE_TEST_SUITE_P(Shapes, FitTest,
                         testing::Values(Shape{1, 1}, Shape{2, 2}, Shape{24, 24}, Shape{24, 10},
                                         Shape{10, 24}, Shape{23, 24}, Shape{24, 23}, Shape{100, 3},
                                         Shape{3, 100}, Shape{1, 90}, Shape{90, 1}, Shape{61, 40},
                                         Shape{40, 61}, Shape{300, 299}, Shape{5, 7}),
                         [](const auto& param) {
                           return std::to_string(param.param.width) + "x" +
                                  std::to_string(param.param.height);
                         });

// The spec's check values: 0 and 255 through CLIP's normalisation.
TEST(NormalizeTest, GivesTheCheckValues) {
  const RgbImage image{2, 1, {0, 0, 0, 255, 255, 255}};
  const std::vector<float> out = Normalize(image, ClipSpec(1, Fit::kStretch));
  const std::vector<float> expected{-1.792263F, 1.930336F,  -1.752097F,
                                    2.074884F,  -1.480220F, 2.145897F};
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_NEAR(out[i], expected[i], 1e-6) << i;
  }
}

TEST(NormalizeTest, PutsTheChannelFirst) {
  const RgbImage image{2, 2, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};
  PreprocessSpec spec;
  const std::vector<float> out = Normalize(image, spec);
  const std::vector<int> expected{1, 4, 7, 10, 2, 5, 8, 11, 3, 6, 9, 12};
  ASSERT_EQ(out.size(), expected.size());
  for (size_t i = 0; i < out.size(); ++i) {
    EXPECT_EQ(out[i], static_cast<float>(expected[i] * (1.0 / 255.0))) << i;
  }
}

// A mean written as k/255 pads with exactly k although its f32 value may lie below.
TEST(FitTest, PadColourOfAnExactMeanIsThatColour) {
  const RgbImage source{3, 1, {0, 0, 0, 0, 0, 0, 0, 0, 0}};
  for (int k = 0; k < 256; ++k) {
    PreprocessSpec spec{.size = 3, .fit = Fit::kPad};
    std::fill_n(spec.mean, 3, static_cast<float>(k / 255.0));
    ASSERT_EQ(int{FitAndResize(source, spec).pixels[0]}, k);
  }
}

// X01: a picture of one colour, through every fit, gives a finite tensor and stays of one colour
// where there is no pad.
TEST(BadImageTest, X01_OneColourStaysFiniteAndFlat) {
  for (const uint8_t value : {0, 1, 127, 254, 255}) {
    const RgbImage source = Flat(50, 20, {value, value, value});
    for (const Fit fit : {Fit::kPad, Fit::kCrop, Fit::kStretch}) {
      const PreprocessSpec spec = ClipSpec(28, fit);
      const RgbImage resized = FitAndResize(source, spec);
      const std::vector<float> tensor = Normalize(resized, spec);
      EXPECT_TRUE(
          std::all_of(tensor.begin(), tensor.end(), [](float v) { return std::isfinite(v); }));
      if (fit != Fit::kPad) {
        EXPECT_TRUE(std::all_of(resized.pixels.begin(), resized.pixels.end(), [value](uint8_t v) {
          return v == value;
        })) << int{value};
      }
    }
  }
}

TEST(NormalizeDeathTest, AZeroDeviationIsABrokenInvariant) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  PreprocessSpec spec;
  spec.std[1] = 0;
  EXPECT_DEATH(Normalize({1, 1, {0, 0, 0}}, spec), "std");
}

}  // namespace
}  // namespace conclave::image
