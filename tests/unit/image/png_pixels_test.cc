// Goal: rows N03 to N05 of the bad-input catalogue: only the legal kinds of PNG decode, each to
// Pillow's pixels. Method: noise in every colour type and depth, plain and interlaced, compared
// pixel by pixel with what spec 3.1 says.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "bad_image.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

bool IsLegal(int colour, int depth) {
  const bool is_small = depth == 1 || depth == 2 || depth == 4;
  switch (colour) {
    case 0:
      return is_small || depth == 8 || depth == 16;
    case 3:
      return is_small || depth == 8;
    case 2:
    case 4:
    case 6:
      return depth == 8 || depth == 16;
    default:
      return false;
  }
}

TEST(ColourTypeTest, N03_OnlyTheLegalPairsDecode) {
  int num_legal = 0;
  for (int colour = 0; colour < 8; ++colour) {
    for (const int depth : {0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 255}) {
      const PngHeader header{.width = 3,
                             .height = 2,
                             .bit_depth = static_cast<uint8_t>(depth),
                             .colour = static_cast<uint8_t>(colour)};
      SCOPED_TRACE("colour type " + std::to_string(colour) + " depth " + std::to_string(depth));
      if (IsLegal(colour, depth)) {
        ExpectDecodes(MakePng(header, PngNoise(header, 9), colour == 3 ? PngPalette(2) : Bytes()));
        ++num_legal;
      } else {
        ExpectRefused(Concat({PngSignature(), PngHeaderChunk(header), PngPalette(2),
                              PngChunk("IDAT", Deflate(Bytes(100, 0))), PngChunk("IEND", {})}),
                      "image_corrupt");
      }
    }
  }
  EXPECT_EQ(num_legal, 15);
}

// Spec 3.1 for one pixel of `samples`.
std::array<uint8_t, 3> Expected(const PngHeader& header, const uint16_t* samples) {
  const auto narrow = [&header](uint16_t sample) {
    return static_cast<uint8_t>(
        header.bit_depth == 16 ? sample >> 8 : sample * (255 / ((1 << header.bit_depth) - 1)));
  };
  switch (header.colour) {
    case 0: {
      const uint8_t grey = header.bit_depth == 16
                               ? static_cast<uint8_t>(std::min<uint16_t>(samples[0], 255))
                               : narrow(samples[0]);
      return {grey, grey, grey};
    }
    case 4:
      return {narrow(samples[0]), narrow(samples[0]), narrow(samples[0])};
    case 3: {
      const auto i = static_cast<uint8_t>(samples[0]);
      return {i, static_cast<uint8_t>(255 - i), static_cast<uint8_t>(7 * i)};
    }
    default:
      return {narrow(samples[0]), narrow(samples[1]), narrow(samples[2])};
  }
}

struct Kind {
  int colour;
  int depth;
};

class PixelsTest : public testing::TestWithParam<Kind> {
 protected:
  void ExpectPixels(const PngHeader& header) {
    std::vector<uint16_t> samples = PngNoise(header, header.width * 31 + header.height);
    if (header.bit_depth == 16) {
      // Both sides of Pillow's clipping at 255.
      for (size_t i = 0; i < samples.size(); i += 3) {
        samples[i] %= 300;
      }
    }
    const Bytes palette = header.colour == 3 ? PngPalette(1 << header.bit_depth) : Bytes();
    // A transparent colour changes nothing.
    const size_t num_values = header.colour == 3 ? 2 : header.colour == 0 ? 2 : 6;
    const Bytes transparency =
        header.colour == 4 || header.colour == 6 ? Bytes() : PngChunk("tRNS", Bytes(num_values, 0));
    const absl::StatusOr<RgbImage> image =
        Decode(AsInput(MakePng(header, samples, Concat({palette, transparency}))), {});
    ASSERT_TRUE(image.ok()) << image.status();
    ASSERT_EQ(image->width, static_cast<int32_t>(header.width));
    ASSERT_EQ(image->height, static_cast<int32_t>(header.height));
    const auto channels = static_cast<size_t>(PngChannels(header.colour));
    for (size_t i = 0; i < size_t{header.width} * header.height; ++i) {
      const std::array<uint8_t, 3> expected = Expected(header, samples.data() + i * channels);
      for (size_t c = 0; c < 3; ++c) {
        ASSERT_EQ(int{image->pixels[3 * i + c]}, int{expected[c]}) << "pixel " << i;
      }
    }
  }
};

TEST_P(PixelsTest, N05_EqualWhatTheSpecSays) {
  for (const uint32_t width : {1U, 2U, 3U, 7U, 8U, 9U, 33U}) {
    for (const uint32_t height : {1U, 2U, 5U, 9U}) {
      for (const uint8_t interlace : {0, 1}) {
        SCOPED_TRACE(std::to_string(width) + "x" + std::to_string(height) +
                     (interlace != 0 ? " interlaced" : ""));
        ASSERT_NO_FATAL_FAILURE(ExpectPixels({.width = width,
                                              .height = height,
                                              .bit_depth = static_cast<uint8_t>(GetParam().depth),
                                              .colour = static_cast<uint8_t>(GetParam().colour),
                                              .interlace = interlace}));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Png, PixelsTest,
                         testing::Values(Kind{0, 1}, Kind{0, 2}, Kind{0, 4}, Kind{0, 8},
                                         Kind{0, 16}, Kind{2, 8}, Kind{2, 16}, Kind{3, 1},
                                         Kind{3, 2}, Kind{3, 4}, Kind{3, 8}, Kind{4, 8},
                                         Kind{4, 16}, Kind{6, 8}, Kind{6, 16}),
                         [](const auto& param) {
                           return "Colour" + std::to_string(param.param.colour) + "Depth" +
                                  std::to_string(param.param.depth);
                         });

TEST(PaletteTest, N04_IndexBeyondThePaletteIsBlack) {
  const PngHeader header{.width = 3, .height = 1, .bit_depth = 8, .colour = 3};
  const absl::StatusOr<RgbImage> image =
      Decode(AsInput(MakePng(header, {1, 2, 255}, PngPalette(2))), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->pixels, (Bytes{1, 254, 7, 0, 0, 0, 0, 0, 0}));
}

}  // namespace
}  // namespace conclave::image
