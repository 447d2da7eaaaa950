// Goal: the resize is Pillow's, on rows computed by hand (spec 11.2) and by an independent
// transcription of the spec. Method: a plain reference in this file (whole picture, no window, no
// skipped pass) against the library.
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

RgbImage RandomImage(int32_t width, int32_t height, uint32_t seed) {
  std::mt19937 random(seed);
  RgbImage image{
      width, height,
      std::vector<uint8_t>(size_t{3} * static_cast<size_t>(width) * static_cast<size_t>(height))};
  for (uint8_t& value : image.pixels) {
    // Many extremes: they make the filter overshoot, which the clamp must catch.
    const uint32_t drawn = random();
    value = drawn % 3 == 0 ? 0 : drawn % 3 == 1 ? 255 : static_cast<uint8_t>(drawn >> 24);
  }
  return image;
}

double ReferenceKernel(double t) {
  t = std::fabs(t);
  if (t < 1) {
    return (1.5 * t - 2.5) * t * t + 1;
  }
  return t < 2 ? -0.5 * (((t - 5) * t + 8) * t - 4) : 0;
}

// Spec 3.2 word by word for one line of values.
std::vector<uint8_t> ReferenceLine(const std::vector<uint8_t>& in, int32_t num_out) {
  const auto num_in = static_cast<int32_t>(in.size());
  if (num_in == num_out) {
    return in;
  }
  std::vector<uint8_t> out;
  const double scale = static_cast<double>(num_in) / num_out;
  const double filter_scale = std::max(scale, 1.0);
  for (int32_t i = 0; i < num_out; ++i) {
    const double center = (i + 0.5) * scale;
    // NOLINTBEGIN(bugprone-incorrect-roundings): the spec truncates exactly so.
    const int first = std::max(0, static_cast<int>(center - 2 * filter_scale + 0.5));
    const int last = std::min(num_in, static_cast<int>(center + 2 * filter_scale + 0.5));
    // NOLINTEND(bugprone-incorrect-roundings)
    std::vector<double> weights;
    double sum = 0;
    for (int x = first; x < last; ++x) {
      weights.push_back(ReferenceKernel((x - center + 0.5) * (1.0 / filter_scale)));
      sum += weights.back();
    }
    int64_t total = 1 << 21;
    for (int x = first; x < last; ++x) {
      const double weight = weights[static_cast<size_t>(x - first)] / sum;
      total += std::lround(weight * 4194304.0) * in[static_cast<size_t>(x)];
    }
    out.push_back(static_cast<uint8_t>(std::clamp<int64_t>(total >> 22, 0, 255)));
  }
  return out;
}

RgbImage ReferenceResize(const RgbImage& source, int32_t width, int32_t height) {
  const auto at = [](int32_t w, int32_t x, int32_t y, int32_t c) {
    return static_cast<size_t>((int64_t{y} * w + x) * 3 + c);
  };
  RgbImage narrowed{width, source.height, std::vector<uint8_t>(at(width, 0, source.height, 0))};
  RgbImage out{width, height, std::vector<uint8_t>(at(width, 0, height, 0))};
  for (int32_t c = 0; c < 3; ++c) {
    for (int32_t y = 0; y < source.height; ++y) {
      std::vector<uint8_t> line(static_cast<size_t>(source.width));
      for (int32_t x = 0; x < source.width; ++x) {
        line[static_cast<size_t>(x)] = source.pixels[at(source.width, x, y, c)];
      }
      line = ReferenceLine(line, width);
      for (int32_t x = 0; x < width; ++x) {
        narrowed.pixels[at(width, x, y, c)] = line[static_cast<size_t>(x)];
      }
    }
    for (int32_t x = 0; x < width; ++x) {
      std::vector<uint8_t> line(static_cast<size_t>(source.height));
      for (int32_t y = 0; y < source.height; ++y) {
        line[static_cast<size_t>(y)] = narrowed.pixels[at(width, x, y, c)];
      }
      line = ReferenceLine(line, height);
      for (int32_t y = 0; y < height; ++y) {
        out.pixels[at(width, x, y, c)] = line[static_cast<size_t>(y)];
      }
    }
  }
  return out;
}

struct Row {
  std::string name;
  std::vector<uint8_t> in;
  std::vector<uint8_t> out;
};

const std::vector<Row>& Rows() {
  static const std::vector<Row> rows{
      {"halved", {0, 50, 100, 150, 200, 250, 30, 60}, {27, 126, 207, 63}},
      {"doubled", {10, 200, 30, 250}, {0, 50, 170, 174, 54, 67, 205, 255}},
      {"ten_to_three", {0, 0, 255, 255, 0, 0, 255, 255, 0, 0}, {105, 128, 105}},
      {"two_to_five", {0, 255}, {0, 17, 128, 238, 255}},
  };
  return rows;
}

RgbImage Grey(const std::vector<uint8_t>& values, bool is_row) {
  const auto length = static_cast<int32_t>(values.size());
  RgbImage image{is_row ? length : 1, is_row ? 1 : length, {}};
  for (const uint8_t value : values) {
    image.pixels.insert(image.pixels.end(), 3, value);
  }
  return image;
}

class RecordedRowTest : public testing::TestWithParam<Row> {};

TEST_P(RecordedRowTest, HorizontalPassGivesTheRecordedRow) {
  const Row& row = GetParam();
  const RgbImage out = ResizeBicubic(Grey(row.in, true), static_cast<int32_t>(row.out.size()), 1);
  EXPECT_EQ(out.pixels, Grey(row.out, true).pixels);
}

TEST_P(RecordedRowTest, VerticalPassGivesTheSame) {
  const Row& row = GetParam();
  const RgbImage out = ResizeBicubic(Grey(row.in, false), 1, static_cast<int32_t>(row.out.size()));
  EXPECT_EQ(out.pixels, Grey(row.out, false).pixels);
}

INSTANTIATE_TEST_SUITE_P(Spec, RecordedRowTest, testing::ValuesIn(Rows()),
                         [](const auto& param) { return param.param.name; });

TEST(ResizeTest, EqualsTheReferenceOnRandomPicturesAndSizes) {
  constexpr uint32_t kSeed = 20240611;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  std::mt19937 random(kSeed);
  const auto edge = [&random](uint32_t max) { return static_cast<int32_t>(1 + random() % max); };
  for (int round = 0; round < 60; ++round) {
    const RgbImage source = RandomImage(edge(90), edge(90), random());
    const int32_t width = edge(120);
    const int32_t height = edge(120);
    SCOPED_TRACE(std::to_string(source.width) + "x" + std::to_string(source.height) + " to " +
                 std::to_string(width) + "x" + std::to_string(height));
    const RgbImage out = ResizeBicubic(source, width, height);
    ASSERT_EQ(out.width, width);
    ASSERT_EQ(out.height, height);
    ASSERT_EQ(out.pixels, ReferenceResize(source, width, height).pixels);
  }
}

TEST(ResizeTest, IdenticalSizeIsACopy) {
  const RgbImage source = RandomImage(31, 17, 5);
  EXPECT_EQ(ResizeBicubic(source, 31, 17).pixels, source.pixels);
}

TEST(ResizeTest, OneUnchangedEdgeSkipsThatPass) {
  const RgbImage source = RandomImage(31, 17, 6);
  EXPECT_EQ(ResizeBicubic(source, 31, 40).pixels, ReferenceResize(source, 31, 40).pixels);
  EXPECT_EQ(ResizeBicubic(source, 9, 17).pixels, ReferenceResize(source, 9, 17).pixels);
}

TEST(ResizeTest, OnePixelBecomesAFlatPicture) {
  const RgbImage source{1, 1, {7, 200, 255}};
  const RgbImage out = ResizeBicubic(source, 13, 5);
  for (size_t i = 0; i < out.pixels.size(); ++i) {
    ASSERT_EQ(out.pixels[i], source.pixels[i % 3]);
  }
}

TEST(ResizeDeathTest, MalformedPicturesAreBrokenInvariants) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(ResizeBicubic({2, 2, {0, 0, 0}}, 1, 1), "pixels");
  EXPECT_DEATH(ResizeBicubic({0, 0, {}}, 1, 1), "width");
  EXPECT_DEATH(ResizeBicubic({1, 1, {0, 0, 0}}, 0, 1), "width");
}

}  // namespace
}  // namespace conclave::image
