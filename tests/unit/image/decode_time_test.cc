// Goal: row I12 of the bad-input catalogue: decoding stops when its time is over, and a limit that
// is not reached changes nothing; and what DecodeBytes says is enough.
// Method: a limit that every decode exceeds, for all formats; limits far below what large pictures
// take, with the thread's CPU time measured; the recorded pictures.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <ostream>
#include <string>

#include "bad_image.h"
#include "bmp_samples.h"
#include "conclave/base/cpu_time.h"
#include "conclave/base/status.h"
#include "gif_samples.h"
#include "jpeg_samples.h"
#include "peak_memory.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

using std::chrono::nanoseconds;

struct Sample {
  std::string name;
  std::function<Bytes()> file;
};

void PrintTo(const Sample& sample, std::ostream* out) { *out << sample.name; }

Bytes FlatPng(uint32_t width, uint32_t height, uint8_t interlace = 0) {
  const PngHeader header{.width = width, .height = height, .interlace = interlace};
  // Adam7 has a filter byte in every row of every pass: about two for a row of the picture.
  const size_t num_rows = interlace == 0 ? height : 2 * size_t{height};
  return Concat({PngSignature(), PngHeaderChunk(header),
                 PngChunk("IDAT", Deflate(Bytes(size_t{3} * width * height + num_rows, 0))),
                 PngChunk("IEND", {})});
}

Bytes GifOf(uint16_t width, uint16_t height) {
  return MakeGif({.width = width,
                  .height = height,
                  .frame_width = width,
                  .frame_height = height,
                  .pixels = Bytes(size_t{width} * height, 1)});
}

Bytes BmpOf(int32_t width, int32_t height) {
  return MakeBmp({.width = width, .height = height, .rows = {1, 2, 3}});
}

class FormatTimeTest : public testing::TestWithParam<Sample> {};

TEST_P(FormatTimeTest, I12_ADecodeBeyondTheLimitIsRefused) {
  const Bytes file = GetParam().file();
  DecodeLimits limits;
  limits.cpu_time_max = nanoseconds(1);
  ExpectRefused(file, "image_decode_timeout", limits);
}

TEST_P(FormatTimeTest, ALimitThatIsNotReachedChangesNothing) {
  const Bytes file = GetParam().file();
  DecodeLimits limits;
  limits.cpu_time_max = std::chrono::hours(1);
  const auto limited = Decode(AsInput(file), limits);
  const auto free = Decode(AsInput(file), {});
  ASSERT_TRUE(limited.ok() && free.ok()) << limited.status();
  EXPECT_EQ(limited->pixels, free->pixels);
}

TEST_P(FormatTimeTest, TheEstimatedMemoryHoldsThePixels) {
  const Bytes file = GetParam().file();
  const auto image = Decode(AsInput(file), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_GE(DecodeBytes(AsInput(file), {}), static_cast<int64_t>(image->pixels.size()));
}

INSTANTIATE_TEST_SUITE_P(
    Formats, FormatTimeTest,
    testing::Values(
        Sample{"Jpeg", [] { return EncodeJpeg({}); }},
        Sample{"ProgressiveJpeg", [] { return EncodeJpeg({.is_progressive = true}); }},
        Sample{"Png", [] { return FlatPng(5, 4); }}, Sample{"Gif", [] { return GifOf(4, 4); }},
        Sample{"Bmp", [] { return BmpOf(5, 4); }},
        Sample{"LosslessWebp", [] { return ReadFileBytes(GoldenPath("webp_lossless.webp")); }},
        Sample{"LossyWebp", [] { return ReadFileBytes(GoldenPath("webp_lossy.webp")); }}),
    [](const auto& param) { return param.param.name; });

class LargeTimeTest : public testing::TestWithParam<Sample> {};

TEST_P(LargeTimeTest, I12_TheWorkStopsInTheMiddle) {
  const Bytes file = GetParam().file();
  const nanoseconds begin = ThreadCpuTime();
  ExpectDecodes(file);
  const nanoseconds whole = ThreadCpuTime() - begin;
  DecodeLimits limits;
  limits.cpu_time_max = whole / 20;
  const nanoseconds again = ThreadCpuTime();
  ExpectRefused(file, "image_decode_timeout", limits);
  EXPECT_LT(ThreadCpuTime() - again, whole * 3 / 4) << "of " << whole.count() << " ns";
}

// The kinds whose decoding costs far more than the memory of the result, which is taken first.
INSTANTIATE_TEST_SUITE_P(
    Formats, LargeTimeTest,
    testing::Values(
        Sample{"ProgressiveJpeg",
               [] { return EncodeJpeg({.width = 2000, .height = 2000, .is_progressive = true}); }},
        Sample{"InterlacedPng", [] { return FlatPng(3000, 3000, 1); }}),
    [](const auto& param) { return param.param.name; });

TEST(DecodeBytesTest, IsToldFromTheHeader) {
  EXPECT_EQ(DecodeBytes(AsInput(FlatPng(50, 40)), {}), 3 * 50 * 40);
  EXPECT_EQ(DecodeBytes(AsInput(BmpOf(50, 40)), {}), 3 * 50 * 40);
  EXPECT_EQ(DecodeBytes(AsInput(MakeBmp({.width = 50, .height = -40})), {}), 3 * 50 * 40);
  EXPECT_EQ(DecodeBytes(AsInput(EncodeJpeg({.width = 50, .height = 40})), {}), 9 * 50 * 40);
  EXPECT_EQ(DecodeBytes(
                AsInput(EncodeJpeg({.width = 50, .height = 40, .colour = JpegColour::kCmyk})), {}),
            11 * 50 * 40);
}

TEST(DecodeBytesTest, WhatDoesNotSayCountsAsTheLargestPicture) {
  DecodeLimits limits;
  limits.pixels_max = 1000;
  EXPECT_EQ(DecodeBytes(AsInput(Bytes()), limits), 11 * 1000);
  EXPECT_EQ(DecodeBytes(AsInput(Bytes(100, 'x')), limits), 11 * 1000);
  EXPECT_EQ(DecodeBytes(AsInput(GifOf(4, 4)), limits), 11 * 1000);
  EXPECT_EQ(DecodeBytes(AsInput(FlatPng(50, 40)), limits), 11 * 1000) << "beyond the limit";
}

TEST(DecodeBytesTest, AnyCutIsAnswered) {
  for (const Bytes& whole : {EncodeJpeg({}), FlatPng(5, 4), BmpOf(5, 4), GifOf(4, 4),
                             ReadFileBytes(GoldenPath("webp_lossy.webp"))}) {
    for (size_t size = 0; size < whole.size() && size < 700; ++size) {
      const Bytes cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
      EXPECT_GT(DecodeBytes(AsInput(cut), {}), 0);
    }
  }
}

// The estimate of the kind with the largest working memory is no lower than what is seen.
TEST(DecodeBytesTest, CoversAProgressiveJpeg) {
  const Bytes file = EncodeJpeg({.width = 2000, .height = 2000, .is_progressive = true});
  const std::optional<int64_t> growth = PeakGrowthBytes([&file] { ExpectDecodes(file); });
  if (!growth) {
    GTEST_SKIP() << "this kernel does not let a process reset its peak";
  }
  EXPECT_LT(*growth, DecodeBytes(AsInput(file), {}) + (4 << 20));
}

}  // namespace
}  // namespace conclave::image
