// Goal: rows J04 to J07 and J10 to J12 of the bad-input catalogue, where there is more to see than
// a reason: every frame type, every pair of sampling factors, the colours of each kind, and
// segments that must leave no trace. Method: valid files from the encoder, changed in one way each;
// pixels are compared.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "bad_image.h"
#include "jpeg_samples.h"
#include "peak_memory.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

constexpr uint8_t kSof2 = 0xC2;
constexpr uint8_t kSos = 0xDA;
constexpr uint8_t kApp1 = 0xE1;
constexpr uint8_t kApp2 = 0xE2;
constexpr uint8_t kCom = 0xFE;

Bytes Baseline() { return EncodeJpeg({}); }
Bytes Progressive() { return EncodeJpeg({.is_progressive = true}); }

class FrameTypeTest : public testing::TestWithParam<int> {};

TEST_P(FrameTypeTest, J05_IsRefusedAsUnsupported) {
  ExpectRefused(WithFrameByte(Baseline(), 0, static_cast<uint8_t>(GetParam())),
                "jpeg_process_unsupported");
}

INSTANTIATE_TEST_SUITE_P(Jpeg, FrameTypeTest,
                         testing::Values(0xC3, 0xC5, 0xC6, 0xC7, 0xC8, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE,
                                         0xCF),
                         [](const auto& param) {
                           return "Sof" + std::to_string(param.param - 0xC0);
                         });

TEST(ScanLimitTest, J04_LimitIsInclusive) {
  const Bytes file = Progressive();
  const std::vector<JpegSegment> segments = SegmentsOf(file);
  const auto num_scans = static_cast<int32_t>(
      std::count_if(segments.begin(), segments.end(),
                    [](const JpegSegment& segment) { return segment.marker == kSos; }));
  ASSERT_GT(num_scans, 2);
  DecodeLimits limits;
  limits.jpeg_scans_max = num_scans;
  ExpectDecodes(file, limits);
  limits.jpeg_scans_max = num_scans - 1;
  ExpectRefused(file, "image_too_complex", limits);
}

// One stored colour and the RGB that the spec's formulas give for it.
struct ColourCase {
  std::string name;
  JpegColour colour;
  Bytes stored;
  Bytes expected;
};

void PrintTo(const ColourCase& c, std::ostream* out) { *out << c.name; }

class ColourTest : public testing::TestWithParam<ColourCase> {};

TEST_P(ColourTest, J06_ConvertsAsPillowDoes) {
  const absl::StatusOr<RgbImage> image = Decode(AsInput(EncodeJpeg({.colour = GetParam().colour,
                                                                    .quality = 100,
                                                                    .luma_sampling = 1,
                                                                    .flat = GetParam().stored})),
                                                {});
  ASSERT_TRUE(image.ok()) << image.status();
  for (size_t i = 0; i < image->pixels.size(); ++i) {
    // Colour conversion there and back costs at most 2.
    ASSERT_NEAR(image->pixels[i], GetParam().expected[i % 3], 2) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Jpeg, ColourTest,
    testing::Values(ColourCase{"Grey", JpegColour::kGrey, {77}, {77, 77, 77}},
                    ColourCase{"Ycc", JpegColour::kYcc, {200, 100, 50}, {200, 100, 50}},
                    ColourCase{"Rgb", JpegColour::kRgb, {200, 100, 50}, {200, 100, 50}},
                    // Inverted: 255 is no ink. White · stored / 255.
                    ColourCase{
                        "CmykNoInk", JpegColour::kCmyk, {255, 255, 255, 255}, {255, 255, 255}},
                    ColourCase{"CmykAllBlack", JpegColour::kCmyk, {255, 255, 255, 0}, {0, 0, 0}},
                    ColourCase{"CmykMixed", JpegColour::kCmyk, {51, 102, 204, 128}, {26, 51, 102}},
                    ColourCase{"YcckMixed", JpegColour::kYcck, {51, 102, 204, 128}, {26, 51, 102}}),
    [](const auto& param) { return param.param.name; });

TEST(SamplingTest, J07_EveryPairOfFactorsDecodesOrIsRefused) {
  const Bytes file = Baseline();
  int num_decoded = 0;
  for (int luma = 0; luma < 16; ++luma) {
    for (int chroma = 0; chroma < 16; ++chroma) {
      const auto factors = [](int v) {
        return static_cast<uint8_t>((v / 4 + 1) << 4 | (v % 4 + 1));
      };
      const Bytes patched =
          WithFrameByte(WithFrameByte(file, 10, factors(luma)), 13, factors(chroma));
      ASSERT_NO_FATAL_FAILURE(ExpectSane(patched)) << luma << " " << chroma;
      num_decoded += Decode(AsInput(patched), {}).ok() ? 1 : 0;
    }
  }
  EXPECT_GE(num_decoded, 1);
}

TEST(SamplingTest, J07_UsualFactorsDecode) {
  for (const int luma : {1, 2}) {
    ExpectDecodes(EncodeJpeg({.width = 37, .height = 21, .luma_sampling = luma}));
  }
}

class IgnoredSegmentTest : public testing::TestWithParam<BadImage> {};

TEST_P(IgnoredSegmentTest, LeavesThePixelsAsTheyAre) {
  const absl::StatusOr<RgbImage> plain = Decode(AsInput(Baseline()), {});
  const absl::StatusOr<RgbImage> image = Decode(AsInput(GetParam().file()), {});
  ASSERT_TRUE(plain.ok());
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->width, plain->width);
  EXPECT_EQ(image->height, plain->height);
  EXPECT_EQ(image->pixels, plain->pixels);
}

// A little-endian TIFF block with one directory of one entry.
Bytes Exif(uint8_t orientation, uint8_t next_directory) {
  return MakeSegment(kApp1, {'E',
                             'x',
                             'i',
                             'f',
                             0,
                             0,
                             'I',
                             'I',
                             42,
                             0,
                             8,
                             0,
                             0,
                             0,
                             1,
                             0,
                             0x12,
                             0x01,
                             3,
                             0,
                             1,
                             0,
                             0,
                             0,
                             orientation,
                             0,
                             0,
                             0,
                             next_directory,
                             0,
                             0,
                             0});
}

Bytes IccChunk(uint8_t number, uint8_t total, size_t size) {
  const std::string name = "ICC_PROFILE";
  Bytes body(name.begin(), name.end());
  body.insert(body.end(), {0, number, total});
  body.resize(body.size() + size, 0xA5);
  return MakeSegment(kApp2, body);
}

std::vector<BadImage> IgnoredSegments() {
  std::vector<BadImage> cases;
  for (uint8_t orientation = 0; orientation <= 9; ++orientation) {
    cases.push_back({"J11_Orientation" + std::to_string(orientation),
                     [orientation] { return WithSegment(Baseline(), Exif(orientation, 0)); }, ""});
  }
  cases.push_back({"J11_DirectoryLoop", [] { return WithSegment(Baseline(), Exif(1, 8)); }, ""});
  cases.push_back({"J11_ThumbnailBomb",
                   [] {
                     Bytes bomb = WithFrameByte(Baseline(), 4, 0xFF);
                     bomb = WithFrameByte(bomb, 6, 0xFF);
                     const std::string name = "Exif";
                     Bytes body(name.begin(), name.end());
                     body.insert(body.end(), bomb.begin(), bomb.end());
                     return WithSegment(Baseline(), MakeSegment(kApp1, body));
                   },
                   ""});
  cases.push_back({"J12_NineMebibytesOfProfile",
                   [] {
                     Bytes profile;
                     for (uint8_t i = 1; i <= 144; ++i) {
                       profile = Concat({profile, IccChunk(i, 144, 65519)});
                     }
                     return WithSegment(Baseline(), profile);
                   },
                   ""});
  cases.push_back({"J12_ProfileWithoutItsFirstPart",
                   [] { return WithSegment(Baseline(), IccChunk(7, 3, 100)); }, ""});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Jpeg, IgnoredSegmentTest, testing::ValuesIn(IgnoredSegments()),
                         BadImageName);

TEST(IgnoredSegmentTest, J10_CommentsWithinTheLimitCostNoMemory) {
  Bytes comments;
  const Bytes one = MakeSegment(kCom, Bytes(65533, 'c'));
  for (int i = 0; i < 140; ++i) {
    comments.insert(comments.end(), one.begin(), one.end());
  }
  const Bytes file = WithSegment(Baseline(), comments);
  const std::optional<int64_t> growth = PeakGrowthBytes([&file] { ExpectDecodes(file); });
  if (!growth) {
    GTEST_SKIP() << "this kernel does not let a process reset its peak";
  }
  EXPECT_LT(*growth, 1 << 20);
}

// Spectral selection that baseline files must not have, but some have: the picture does not depend
// on it.
TEST(ScanHeaderTest, UnusedFieldsOfABaselineScanDoNotMatter) {
  Bytes file = Baseline();
  const JpegSegment scan = FindSegment(file, kSos);
  file[scan.offset + scan.size - 2] = 5;
  const absl::StatusOr<RgbImage> image = Decode(AsInput(file), {});
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->pixels, Decode(AsInput(Baseline()), {})->pixels);
}

TEST(ScanHeaderTest, ABaselineFrameCalledProgressiveIsRefused) {
  ExpectRefused(WithFrameByte(Baseline(), 0, kSof2), "image_corrupt");
}

}  // namespace
}  // namespace conclave::image
