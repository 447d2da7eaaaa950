// Goal: rows I01 to I09 and I12 of the bad-input catalogue: refused from the first bytes, at no
// cost. Method: a table of files; peak memory is measured around the bombs.
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <ostream>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "bad_image.h"
#include "bmp_samples.h"
#include "conclave/base/status.h"
#include "gif_samples.h"
#include "jpeg_samples.h"
#include "peak_memory.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

Bytes FromText(std::string_view text) { return {text.begin(), text.end()}; }

// Magic bytes of a format, padded to the size of a small file.
Bytes Foreign(std::string_view magic) {
  Bytes file = FromText(magic);
  file.resize(512, 0x20);
  return file;
}

Bytes RandomBytes(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  Bytes out(count);
  for (uint8_t& byte : out) {
    byte = static_cast<uint8_t>(random() >> 24);
  }
  return out;
}

Bytes SmallPng() {
  const PngHeader header{.width = 5, .height = 4};
  return MakePng(header, PngNoise(header, 2));
}

Bytes Resized(Bytes file, size_t size) {
  file.resize(size);
  return file;
}

// A whole PNG of these dimensions, its data far too short for them.
Bytes PngClaiming(uint32_t width, uint32_t height, uint8_t bit_depth, uint8_t colour,
                  size_t data_bytes = 1000) {
  const PngHeader header{
      .width = width, .height = height, .bit_depth = bit_depth, .colour = colour};
  return Concat({PngSignature(), PngHeaderChunk(header),
                 PngChunk("IDAT", Deflate(Bytes(data_bytes, 0))), PngChunk("IEND", {})});
}

Bytes JpegClaiming(uint32_t width, uint32_t height) {
  Bytes jpeg = EncodeJpeg({});
  jpeg = WithFrameByte(jpeg, 4, static_cast<uint8_t>(height >> 8));
  jpeg = WithFrameByte(jpeg, 5, static_cast<uint8_t>(height));
  jpeg = WithFrameByte(jpeg, 6, static_cast<uint8_t>(width >> 8));
  return WithFrameByte(jpeg, 7, static_cast<uint8_t>(width));
}

Bytes PngOf(uint32_t width, uint32_t height) {
  const PngHeader header{.width = width, .height = height, .bit_depth = 1, .colour = 0};
  return MakePng(header, PngNoise(header, 3));
}

// NOLINTNEXTLINE(readability-function-size): a table.
const std::vector<BadImage>& Rows() {
  static const std::vector<BadImage> rows{
      {"I01_Empty", [] { return Bytes(); }, "image_empty"},
      {"I01_OneByteOfJpeg", [] { return Bytes{0xFF}; }, "image_truncated"},
      {"I01_OneByteOfPng", [] { return Bytes{0x89}; }, "image_truncated"},
      {"I01_ElevenBytesOfJpeg", [] { return Resized(EncodeJpeg({}), 11); }, "image_truncated"},
      {"I01_ElevenBytesOfPng", [] { return Resized(SmallPng(), 11); }, "image_truncated"},
      {"I01_ElevenOtherBytes", [] { return Bytes(11, 'a'); }, "image_truncated"},
      {"I02_RandomKibibyte", [] { return RandomBytes(1 << 10, 21); }, "image_format_unsupported"},
      {"I02_RandomMebibyte", [] { return RandomBytes(1 << 20, 22); }, "image_format_unsupported"},
      {"I02_Text", [] { return FromText("What is in this picture?"); }, "image_format_unsupported"},
      {"I02_TextInUtf16", [] { return Foreign("\xFF\xFEh"); }, "image_format_unsupported"},
      {"I02_Html", [] { return FromText("<!DOCTYPE html><html></html>"); },
       "image_format_unsupported"},
      {"I02_Json", [] { return FromText(R"({"model": "demo", "n": 1})"); },
       "image_format_unsupported"},
      {"I05_JpegWithZipTail",
       [] {
         return Concat({EncodeJpeg({}), FromText("PK\x03\x04"), Bytes(1000, 'z')});
       },
       ""},
      {"I05_PngWithHtmlTail",
       [] {
         return Concat({SmallPng(), FromText("<script></script>")});
       },
       ""},
      {"I05_JpegWithLongestTail",
       [] {
         return Concat({EncodeJpeg({}), Bytes(64 << 10, 0xFF)});
       },
       ""},
      {"I05_PngWithLongestTail",
       [] {
         return Concat({SmallPng(), Bytes(64 << 10, 'x')});
       },
       ""},
      {"I05_JpegTailTooLong",
       [] {
         return Concat({EncodeJpeg({}), Bytes((64 << 10) + 1, 'x')});
       },
       "image_trailing_data"},
      {"I05_PngTailTooLong",
       [] {
         return Concat({SmallPng(), Bytes((64 << 10) + 1, 'x')});
       },
       "image_trailing_data"},
      {"I07_PngWidthZero", [] { return PngClaiming(0, 5, 8, 2); }, "image_bad_dimensions"},
      {"I07_PngHeightZero", [] { return PngClaiming(5, 0, 8, 2); }, "image_bad_dimensions"},
      {"I07_JpegWidthZero", [] { return JpegClaiming(0, 24); }, "image_bad_dimensions"},
      {"I07_JpegHeightZero", [] { return JpegClaiming(24, 0); }, "image_bad_dimensions"},
      {"I07_EdgeTooLong", [] { return PngOf(8193, 100); }, "image_bad_dimensions"},
      {"I08_OnePixel", [] { return PngOf(1, 1); }, ""},
      {"I08_OneJpegPixel", [] { return EncodeJpeg({.width = 1, .height = 1}); }, ""},
      {"I08_TwoByTwo", [] { return PngOf(2, 2); }, ""},
      {"I08_HundredToOne", [] { return PngOf(100, 1); }, ""},
      {"I08_LongestEdge", [] { return PngOf(8192, 82); }, ""},
      {"I08_TooFlat", [] { return PngOf(101, 1); }, "image_aspect_ratio"},
      {"I08_OneByLongest", [] { return PngOf(1, 8192); }, "image_aspect_ratio"},
      {"I08_LongestByOne", [] { return PngOf(8192, 1); }, "image_aspect_ratio"},
      {"I08_JpegTooNarrow", [] { return EncodeJpeg({.width = 3, .height = 400}); },
       "image_aspect_ratio"},
      {"I09_ProductOverflows32Bits", [] { return PngClaiming(65536, 65536, 8, 6); },
       "image_too_many_pixels"},
      {"I09_BytesOverflow32Bits", [] { return PngClaiming(32768, 32768, 8, 6); },
       "image_too_many_pixels"},
      {"I09_LargestWidth", [] { return PngClaiming(0x7FFFFFFF, 1, 8, 2); },
       "image_too_many_pixels"},
      {"I09_LargestBoth", [] { return PngClaiming(0x7FFFFFFF, 0x7FFFFFFF, 16, 6); },
       "image_too_many_pixels"},
      {"I09_BeyondTheFormat", [] { return PngClaiming(0xFFFFFFFF, 0xFFFFFFFF, 16, 6); },
       "image_too_many_pixels"},
  };
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Common, BadImageTest, testing::ValuesIn(Rows()), BadImageName);

struct ForeignFormat {
  std::string name;
  std::string magic;
  std::string in_message;
};

class ForeignFormatTest : public testing::TestWithParam<ForeignFormat> {};

TEST_P(ForeignFormatTest, IsRefusedWithTheAcceptedFormats) {
  const Bytes file = Foreign(GetParam().magic);
  ExpectRefused(file, "image_format_unsupported");
  const std::string message = MessageOf(Decode(AsInput(file), {}).status());
  EXPECT_NE(message.find("expected JPEG, PNG, WebP, GIF or BMP, found " + GetParam().in_message),
            std::string::npos)
      << message;
}

std::vector<ForeignFormat> ForeignFormats() {
  using namespace std::string_literals;
  return {
      {"Tiff", "II*\0\x08\0\0\0"s, "TIFF"},
      {"TiffBigEndian", "MM\0*\0\0\0\x08"s, "TIFF"},
      {"Svg", "<svg xmlns=\"http://www.w3.org/2000/svg\">", "SVG"},
      {"Pdf", "%PDF-1.7\n", "PDF"},
      {"Heic",
       "\0\0\0\x18"
       "ftypheic"s,
       "HEIC"},
      {"Avif",
       "\0\0\0\x18"
       "ftypavif"s,
       "AVIF"},
      {"Mp4",
       "\0\0\0\x18"
       "ftypisom"s,
       "MP4"},
      {"Jpeg2000", "\0\0\0\x0CjP  \r\n\x87\n"s, "JPEG 2000"},
      {"Jpeg2000Codestream", "\xFF\x4F\xFF\x51"s, "JPEG 2000"},
      {"JpegXl", "\xFF\x0A\xFA"s, "JPEG XL"},
      {"JpegXlContainer", "\0\0\0\x0CJXL \r\n\x87\n"s, "JPEG XL"},
      {"GifOfAnotherVersion", "GIF88a", "unknown bytes"},
      {"TextThatBeginsLikeBmp", "BMW sells cars", "unknown bytes"},
      {"Wave", "RIFF\x10\0\0\0WAVEfmt "s, "unknown bytes"},
      {"Ico", "\0\0\x01\0\x01\0"s, "unknown bytes"},
      {"Psd", "8BPS\0\x01"s, "unknown bytes"},
      {"Exr", "\x76\x2F\x31\x01"s, "unknown bytes"},
      {"Netpbm", "P6\n10 10\n255\n", "unknown bytes"},
      {"Mng", "\x8AMNG\r\n\x1A\n"s, "unknown bytes"},
  };
}

INSTANTIATE_TEST_SUITE_P(I03, ForeignFormatTest, testing::ValuesIn(ForeignFormats()),
                         [](const auto& param) { return param.param.name; });

TEST(DetectFormatTest, I04_LooksAtTheBytesOnly) {
  EXPECT_EQ(DetectFormat(AsInput(EncodeJpeg({}))), ImageFormat::kJpeg);
  EXPECT_EQ(DetectFormat(AsInput(SmallPng())), ImageFormat::kPng);
  EXPECT_EQ(DetectFormat(AsInput(Bytes{})), ImageFormat::kUnknown);
  EXPECT_EQ(DetectFormat(AsInput(Bytes{0xFF})), ImageFormat::kUnknown);
  EXPECT_EQ(DetectFormat(AsInput(Foreign("GIF89a"))), ImageFormat::kGif);
  EXPECT_EQ(DetectFormat(AsInput(MakeBmp({.width = 2, .height = 2}))), ImageFormat::kBmp);
  EXPECT_EQ(DetectFormat(AsInput(Foreign("BM"))), ImageFormat::kUnknown);
}

struct Bomb {
  std::string name;
  std::function<Bytes()> file;
  std::string reason;
};

void PrintTo(const Bomb& bomb, std::ostream* out) { *out << bomb.name; }

class BombTest : public testing::TestWithParam<Bomb> {};

TEST_P(BombTest, IsRefusedWithFlatMemory) {
  const Bytes file = GetParam().file();
  ExpectRefused(file, GetParam().reason);
  const std::optional<int64_t> growth =
      PeakGrowthBytes([&file] { EXPECT_FALSE(Decode(AsInput(file), {}).ok()); });
  if (!growth) {
    GTEST_SKIP() << "this kernel does not let a process reset its peak";
  }
  EXPECT_LT(*growth, 1 << 20);
}

// The meter sees what a picture within the limits costs, or the tests above could not fail.
TEST(PeakMemoryTest, SeesADecodedPicture) {
  const Bytes file = PngOf(2000, 2000);
  const std::optional<int64_t> growth = PeakGrowthBytes([&file] { ExpectDecodes(file); });
  if (!growth) {
    GTEST_SKIP() << "this kernel does not let a process reset its peak";
  }
  EXPECT_GT(*growth, 10 << 20);
}

INSTANTIATE_TEST_SUITE_P(
    Common, BombTest,
    testing::Values(
        Bomb{"I06_PngOf65535Squared", [] { return PngClaiming(65535, 65535, 1, 0, 60'000'000); },
             "image_too_many_pixels"},
        Bomb{"I06_BmpOf65535Squared",
             [] { return MakeBmp({.width = 65535, .height = 65535, .bits = 1, .num_rows = 1}); },
             "image_too_many_pixels"},
        Bomb{"I06_GifOf65535Squared",
             [] {
               return MakeGif(
                   {.width = 65535, .height = 65535, .frame_width = 65535, .frame_height = 65535});
             },
             "image_too_many_pixels"},
        Bomb{"I06_JpegOf65535Squared", [] { return JpegClaiming(65535, 65535); },
             "image_too_many_pixels"},
        Bomb{"I12_ManyScansOverManyPixels",
             [] {
               Bytes jpeg = EncodeJpeg({.is_progressive = true});
               const JpegSegment scan = FindSegment(jpeg, 0xDA);
               Bytes scans;
               const auto begin = jpeg.begin() + static_cast<ptrdiff_t>(scan.offset);
               for (int i = 0; i < 10000; ++i) {
                 scans.insert(scans.end(), begin, begin + static_cast<ptrdiff_t>(scan.size));
               }
               jpeg = WithSegmentAt(jpeg, scan.offset, scans);
               for (const auto& [index, value] : {std::pair{4, 0x1F}, {5, 0x40}, {6, 0x0F}}) {
                 jpeg =
                     WithFrameByte(jpeg, static_cast<size_t>(index), static_cast<uint8_t>(value));
               }
               return jpeg;
             },
             "image_too_complex"}),
    [](const auto& param) { return param.param.name; });

TEST(LimitsTest, I10_TheEncodedSizeIsCheckedFirst) {
  const Bytes png = SmallPng();
  DecodeLimits limits;
  limits.encoded_bytes_max = static_cast<int64_t>(png.size());
  ExpectDecodes(png, limits);
  --limits.encoded_bytes_max;
  ExpectRefused(png, "image_too_large", limits);
  ExpectRefused(Bytes(png.size(), 'x'), "image_too_large", limits);
}

TEST(LimitsTest, PixelLimitIsInclusive) {
  const Bytes png = PngOf(20, 10);
  DecodeLimits limits;
  limits.pixels_max = 200;
  ExpectDecodes(png, limits);
  limits.pixels_max = 199;
  ExpectRefused(png, "image_too_many_pixels", limits);
}

TEST(LimitsTest, SideLimitIsInclusive) {
  DecodeLimits limits;
  limits.side_max = 20;
  ExpectDecodes(PngOf(20, 10), limits);
  ExpectRefused(PngOf(21, 10), "image_bad_dimensions", limits);
  ExpectRefused(PngOf(10, 21), "image_bad_dimensions", limits);
}

}  // namespace
}  // namespace conclave::image
