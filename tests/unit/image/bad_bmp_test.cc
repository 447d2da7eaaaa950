// Goal: row B01 of the bad-input catalogue, and rows I10 and I11 for BMP: a file is decoded as
// Pillow does or refused whole. Method: files made byte by byte; pixels are compared with what the
// format says.
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "bad_image.h"
#include "bmp_samples.h"
#include "conclave/image/image.h"

namespace conclave::image {
namespace {

constexpr uint32_t kBitFields = 3;

Bytes Cut(Bytes file, size_t num_bytes) {
  file.resize(file.size() - num_bytes);
  return file;
}

// NOLINTNEXTLINE(readability-function-size): a table.
const std::vector<BadImage>& Rows() {
  static const std::vector<BadImage> rows{
      {"B01_TopDown", [] { return MakeBmp({.width = 3, .height = -2}); }, ""},
      {"B01_LowestHeight",
       [] {
         return MakeBmp({.width = 3, .height = std::numeric_limits<int32_t>::min(), .num_rows = 1});
       },
       "image_too_many_pixels"},
      {"B01_NegativeWidth", [] { return MakeBmp({.width = -3, .height = 2, .num_rows = 0}); },
       "image_too_many_pixels"},
      {"I07_WidthZero", [] { return MakeBmp({.width = 0, .height = 2}); }, "image_bad_dimensions"},
      {"I07_HeightZero", [] { return MakeBmp({.width = 2, .height = 0}); }, "image_bad_dimensions"},
      {"I09_EdgeTooLong", [] { return MakeBmp({.width = 9000, .height = 100, .num_rows = 1}); },
       "image_bad_dimensions"},
      {"B01_0Bits", [] { return MakeBmp({.width = 2, .height = 2, .bits = 0}); },
       "image_format_unsupported"},
      {"B01_2Bits", [] { return MakeBmp({.width = 2, .height = 2, .bits = 2}); },
       "image_format_unsupported"},
      {"B01_64Bits", [] { return MakeBmp({.width = 2, .height = 2, .bits = 64}); },
       "image_format_unsupported"},
      {"B01_Rle8", [] { return MakeBmp({.width = 2, .height = 2, .bits = 8, .compression = 1}); },
       "image_format_unsupported"},
      {"B01_Rle4", [] { return MakeBmp({.width = 2, .height = 2, .bits = 4, .compression = 2}); },
       "image_format_unsupported"},
      {"B01_JpegInside", [] { return MakeBmp({.width = 2, .height = 2, .compression = 4}); },
       "image_format_unsupported"},
      {"B01_MasksOverlap",
       [] {
         return MakeBmp({.width = 2,
                         .height = 2,
                         .bits = 32,
                         .compression = kBitFields,
                         .masks = {0xFF0000, 0xFFFF00, 0xFF}});
       },
       "image_format_unsupported"},
      {"B01_MasksZero",
       [] {
         return MakeBmp(
             {.width = 2, .height = 2, .bits = 16, .compression = kBitFields, .masks = {0, 0, 0}});
       },
       "image_format_unsupported"},
      {"B01_MasksOfAPalette",
       [] {
         return MakeBmp({.width = 2,
                         .height = 2,
                         .bits = 8,
                         .compression = kBitFields,
                         .masks = {0xFF0000, 0xFF00, 0xFF}});
       },
       "image_format_unsupported"},
      {"B01_Os2WithHuffman",
       [] {
         return MakeBmp({.width = 2, .height = 2, .header_bytes = 64, .compression = kBitFields});
       },
       "image_format_unsupported"},
      {"B01_MasksCutOff",
       [] {
         return MakeBmp(
             {.width = 2, .height = 2, .bits = 32, .compression = kBitFields, .num_rows = 0});
       },
       "image_truncated"},
      {"B01_PaletteLargerThanTheFile",
       [] {
         return MakeBmp({.width = 2,
                         .height = 2,
                         .bits = 8,
                         .palette = std::vector<uint8_t>(16),
                         .offset = 54,
                         .num_rows = 0});
       },
       "image_truncated"},
      {"B01_PaletteOfTooManyColours",
       [] {
         return MakeBmp({.width = 2,
                         .height = 2,
                         .bits = 8,
                         .num_colours = 257,
                         .palette = std::vector<uint8_t>(size_t{4} * 257)});
       },
       "image_corrupt"},
      {"B01_OffsetPastTheEnd", [] { return MakeBmp({.width = 2, .height = 2, .offset = 1 << 20}); },
       "image_truncated"},
      {"B01_HighestOffset", [] { return MakeBmp({.width = 2, .height = 2, .offset = 0xFFFFFFFF}); },
       "image_truncated"},
      {"B01_OffsetInTheHeader", [] { return MakeBmp({.width = 2, .height = 2, .offset = 30}); },
       "image_corrupt"},
      {"I10_HeaderAlone", [] { return MakeBmp({.width = 2, .height = 2, .num_rows = 0}); },
       "image_truncated"},
      {"I10_LastPixelCut", [] { return Cut(MakeBmp({.width = 4, .height = 2}), 1); },
       "image_truncated"},
      {"I10_LastPaddingCut", [] { return Cut(MakeBmp({.width = 3, .height = 2}), 3); }, ""},
      {"I05_TailTooLong",
       [] {
         Bytes file = MakeBmp({.width = 4, .height = 2});
         file.resize(file.size() + (64 << 10) + 1);
         return file;
       },
       "image_trailing_data"},
  };
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Bmp, BadImageTest, testing::ValuesIn(Rows()), BadImageName);

TEST(BadBmpTest, I10_CutAnywhereIsNoPicture) {
  const Bytes whole = MakeBmp({.width = 4, .height = 3});
  for (size_t length = 1; length < whole.size(); ++length) {
    Bytes cut = whole;
    cut.resize(length);
    // Less than what tells it from a text is of no known format.
    ExpectRefused(cut,
                  length < 12 || length >= 18 ? "image_truncated" : "image_format_unsupported");
  }
}

TEST(BadBmpTest, I11_EveryBitFlipDecodesOrIsRefused) {
  const Bytes whole = MakeBmp({.width = 5, .height = 3, .bits = 4, .palette = Bytes(64, 9)});
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes flipped = whole;
    flipped[bit / 8] = static_cast<uint8_t>(flipped[bit / 8] ^ (1U << bit % 8));
    ExpectSane(flipped);
  }
}

std::vector<uint8_t> PixelsOf(const Bytes& file) {
  const absl::StatusOr<RgbImage> image = Decode(AsInput(file), {});
  return image.ok() ? image->pixels : std::vector<uint8_t>();
}

TEST(BmpPixelsTest, RowsGoUpOrDown) {
  const Bytes rows{1, 2, 3, 0, 4, 5, 6, 0};  // two rows of one pixel: blue, green, red, padding
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 1, .height = 2, .rows = rows})), (Bytes{6, 5, 4, 3, 2, 1}));
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 1, .height = -2, .rows = rows})), (Bytes{3, 2, 1, 6, 5, 4}));
}

TEST(BmpPixelsTest, AlphaIsDropped) {
  const Bytes rows{1, 2, 3, 200};
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 1, .height = 1, .bits = 32, .rows = rows})),
            (Bytes{3, 2, 1}));
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 1,
                              .height = 1,
                              .bits = 32,
                              .header_bytes = 108,
                              .compression = kBitFields,
                              .masks = {0xFF, 0xFF00, 0xFF0000, 0xFF000000},
                              .rows = rows})),
            (Bytes{1, 2, 3}));
}

TEST(BmpPixelsTest, SixteenBitsAreScaledAndRoundedDown) {
  // 1 of 31 is 8.2, 2 of 31 is 16.5; 1 of 63 is 4.05.
  const Bytes rows{0x22, 0x04, 0, 0};  // 00001 00001 00010, or 00000 100001 00010
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 1, .height = 1, .bits = 16, .rows = rows})),
            (Bytes{8, 8, 16}));
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 1,
                              .height = 1,
                              .bits = 16,
                              .compression = kBitFields,
                              .masks = {0xF800, 0x7E0, 0x1F},
                              .rows = rows})),
            (Bytes{0, 133, 16}));
}

TEST(BmpPixelsTest, ColoursBeyondThePaletteAreBlack) {
  const Bytes palette{10, 20, 30, 0, 40, 50, 60, 0};
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 3,
                              .height = 1,
                              .bits = 4,
                              .num_colours = 2,
                              .palette = palette,
                              .rows = {0x01, 0x20, 0, 0}})),
            (Bytes{30, 20, 10, 60, 50, 40, 0, 0, 0}));
}

// Pillow takes the first as 8 bits per pixel and the second as 1.
TEST(BmpPixelsTest, GreyPalettesAreReadAtTheirOwnDepth) {
  Bytes greys;
  for (uint8_t grey = 0; grey < 16; ++grey) {
    greys.insert(greys.end(), {grey, grey, grey, 0});
  }
  EXPECT_EQ(PixelsOf(MakeBmp(
                {.width = 2, .height = 1, .bits = 4, .palette = greys, .rows = {0x3F, 0, 0, 0}})),
            (Bytes{3, 3, 3, 15, 15, 15}));
  EXPECT_EQ(PixelsOf(MakeBmp({.width = 2,
                              .height = 1,
                              .bits = 8,
                              .num_colours = 2,
                              .palette = {0, 0, 0, 0, 255, 255, 255, 0},
                              .rows = {1, 0, 0, 0}})),
            (Bytes{255, 255, 255, 0, 0, 0}));
}

}  // namespace
}  // namespace conclave::image
