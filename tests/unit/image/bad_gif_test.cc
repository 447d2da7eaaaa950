// Goal: row GIF01 of the bad-input catalogue, and rows I05 to I11 for GIF: the first frame as
// Pillow shows it, or a refusal. Method: files made byte by byte.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <vector>

#include "bad_image.h"
#include "conclave/base/cpu_time.h"
#include "conclave/image/image.h"
#include "gif_samples.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

Bytes GifEnd() { return {';'}; }

// A frame of 2 x 2 whose stream is given.
Bytes WithStream(const std::vector<uint32_t>& codes, int width) {
  const Bytes header{'G', 'I', 'F', '8', '7', 'a', 2, 0, 2, 0, 0, 0, 0};
  const Bytes frame{',', 0, 0, 0, 0, 2, 0, 2, 0, 0, 2};
  return Concat({header, frame, GifParts(GifCodes(codes, width)), GifEnd()});
}

Bytes WithFrames(size_t num_frames) {
  const Bytes frame = GifFrame({.frame_width = 1, .frame_height = 1, .pixels = {1}});
  Bytes file = GifWithoutEnd({});
  file.reserve(file.size() + num_frames * frame.size() + 1);
  for (size_t i = 0; i < num_frames; ++i) {
    file.insert(file.end(), frame.begin(), frame.end());
  }
  file.push_back(';');
  return file;
}

// NOLINTNEXTLINE(readability-function-size): a table.
const std::vector<BadImage>& Rows() {
  static const std::vector<BadImage> rows{
      {"GIF01_CodeBeyondTheTable",
       [] {
         return WithStream({4, 7, 1, 1, 1, 5}, 3);
       },
       "image_corrupt"},
      {"GIF01_FirstCodeIsNoPixel",
       [] {
         return WithStream({6, 1, 1, 1, 5}, 3);
       },
       "image_corrupt"},
      {"GIF01_StreamEndsBeforeThePicture",
       [] {
         return WithStream({4, 0, 1, 5}, 3);
       },
       "image_corrupt"},
      {"GIF01_StreamIsEmpty", [] { return WithStream({}, 3); }, "image_corrupt"},
      {"GIF01_CodesOf9Bits",
       [] {
         Bytes file = MakeGif({});
         file[23] = 9;
         return file;
       },
       "image_corrupt"},
      {"GIF01_FrameWidthZero", [] { return MakeGif({.frame_width = 0}); }, "image_bad_dimensions"},
      {"GIF01_FrameHeightZero", [] { return MakeGif({.frame_height = 0}); },
       "image_bad_dimensions"},
      {"GIF01_ScreenOfNothing", [] { return MakeGif({.width = 0, .height = 0}); }, ""},
      {"GIF01_FrameOutsideTheScreen", [] { return MakeGif({.left = 100, .top = 100}); }, ""},
      {"GIF01_FrameFarOutside", [] { return MakeGif({.left = 65535, .top = 65535}); },
       "image_too_many_pixels"},
      {"GIF01_FrameTooFarRight", [] { return MakeGif({.left = 9000, .top = 300}); },
       "image_bad_dimensions"},
      {"GIF01_ScreenTooFlat", [] { return MakeGif({.width = 500}); }, "image_aspect_ratio"},
      {"GIF01_Disposal3InTwoFrames",
       [] {
         Bytes second = GifFrame({.transparent = 1});
         second[3] = 3 << 2 | 1;
         Bytes first = GifWithoutEnd({.transparent = 1});
         first[16] = 3 << 2 | 1;
         return Concat({first, second, GifEnd()});
       },
       ""},
      {"GIF01_100000Frames", [] { return WithFrames(100'000); }, ""},
      {"GIF01_NoTerminator", [] { return GifWithoutEnd({}); }, "image_truncated"},
      {"GIF01_NoFrame",
       [] { return Bytes{'G', 'I', 'F', '8', '9', 'a', 2, 0, 2, 0, 0, 0, 0, ';'}; },
       "image_corrupt"},
      {"GIF01_UnknownBlock",
       [] {
         Bytes file = MakeGif({});
         file[13] = 'x';
         return file;
       },
       "image_corrupt"},
      {"I10_SecondFrameCut",
       [] {
         Bytes file = Concat({GifWithoutEnd({}), GifFrame({})});
         file.pop_back();
         return file;
       },
       "image_truncated"},
      {"I05_Tail",
       [] {
         return Concat({MakeGif({}), Bytes(64 << 10, 'x')});
       },
       ""},
      {"I05_TailTooLong",
       [] {
         return Concat({MakeGif({}), Bytes((64 << 10) + 1, 'x')});
       },
       "image_trailing_data"},
      {"I05_TailInsteadOfTheEnd",
       [] {
         return Concat({GifWithoutEnd({}), Bytes((64 << 10) + 1, 'x')});
       },
       "image_trailing_data"},
      {"GIF01_LongComment",
       [] {
         const Bytes gif = MakeGif({});
         const auto frame = gif.begin() + 13;
         return Concat({Bytes(gif.begin(), frame), Bytes{'!', 0xFE}, GifParts(Bytes(9 << 20, 'c')),
                        Bytes(frame, gif.end())});
       },
       ""},
      {"GIF01_ShortControlBlock",
       [] {
         const Bytes gif = MakeGif({});
         const auto frame = gif.begin() + 13;
         return Concat(
             {Bytes(gif.begin(), frame), Bytes{'!', 0xF9, 1, 1, 0}, Bytes(frame, gif.end())});
       },
       ""},
  };
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Gif, BadImageTest, testing::ValuesIn(Rows()), BadImageName);

TEST(BadGifTest, I10_CutAnywhereIsNoPicture) {
  const Bytes whole =
      MakeGif({.palette = Bytes(24, 5), .frame_palette = Bytes(12, 7), .transparent = 1});
  for (size_t length = 6; length < whole.size(); ++length) {
    Bytes cut = whole;
    cut.resize(length);
    ExpectRefused(cut, "image_truncated");
  }
}

TEST(BadGifTest, I11_EveryBitFlipDecodesOrIsRefused) {
  const Bytes whole = MakeGif({.is_interlaced = true, .palette = Bytes(24, 5)});
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes flipped = whole;
    flipped[bit / 8] = static_cast<uint8_t>(flipped[bit / 8] ^ (1U << bit % 8));
    ExpectSane(flipped);
  }
}

// What follows the first frame costs a walk, not a decode: 18 bytes each, far below a microsecond.
TEST(BadGifTest, GIF01_AFileFullOfFramesIsQuick) {
  const Bytes file = WithFrames(500'000);
  const std::chrono::nanoseconds begin = ThreadCpuTime();
  ExpectDecodes(file);
  EXPECT_LT(ThreadCpuTime() - begin, std::chrono::seconds(2));
}

std::vector<uint8_t> PixelsOf(const GifSpec& spec) {
  const absl::StatusOr<RgbImage> image = Decode(AsInput(MakeGif(spec)), {});
  return image.ok() ? image->pixels : std::vector<uint8_t>();
}

Bytes Colours() { return {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}; }

TEST(GifPixelsTest, WhatTheFrameLeavesFreeHasTheTransparentColourOrTheFirst) {
  GifSpec spec{.width = 2,
               .height = 1,
               .left = 1,
               .frame_width = 1,
               .frame_height = 1,
               .palette = Colours(),
               .pixels = {3}};
  EXPECT_EQ(PixelsOf(spec), (Bytes{1, 2, 3, 10, 11, 12}));
  spec.transparent = 2;
  EXPECT_EQ(PixelsOf(spec), (Bytes{7, 8, 9, 10, 11, 12}));
}

TEST(GifPixelsTest, AFrameThatLeavesTheScreenMakesItLarger) {
  const absl::StatusOr<RgbImage> image =
      Decode(AsInput(MakeGif({.width = 2, .height = 5, .left = 1, .frame_width = 4})), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->width, 5);
  EXPECT_EQ(image->height, 5);
}

TEST(GifPixelsTest, TransparentPixelsKeepTheirColour) {
  EXPECT_EQ(PixelsOf({.width = 1,
                      .height = 1,
                      .frame_width = 1,
                      .frame_height = 1,
                      .palette = Colours(),
                      .transparent = 1,
                      .pixels = {1}}),
            (Bytes{4, 5, 6}));
}

TEST(GifPixelsTest, ThePaletteOfTheFrameComesFirst) {
  EXPECT_EQ(PixelsOf({.width = 1,
                      .height = 1,
                      .frame_width = 1,
                      .frame_height = 1,
                      .palette = Colours(),
                      .frame_palette = {20, 21, 22, 23, 24, 25},
                      .pixels = {1}}),
            (Bytes{23, 24, 25}));
}

TEST(GifPixelsTest, WithoutAPaletteAnIndexIsAGrey) {
  EXPECT_EQ(PixelsOf({.width = 1, .height = 1, .frame_width = 1, .frame_height = 1, .pixels = {6}}),
            (Bytes{6, 6, 6}));
}

TEST(GifPixelsTest, InterlacedRowsComeInFourPasses) {
  std::vector<uint8_t> stored{0, 4, 2, 6, 1, 3, 5, 7};  // rows in the order of the file
  const std::vector<uint8_t> pixels = PixelsOf({.width = 1,
                                                .height = 8,
                                                .frame_width = 1,
                                                .frame_height = 8,
                                                .is_interlaced = true,
                                                .pixels = stored});
  ASSERT_EQ(pixels.size(), 24U);
  for (size_t y = 0; y < 8; ++y) {
    EXPECT_EQ(pixels[3 * y], y);
  }
}

}  // namespace
}  // namespace conclave::image
