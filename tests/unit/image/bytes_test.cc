// Goal: rows I10 and I11: a file cut anywhere is refused, never half decoded; a file with any one
// bit flipped decodes or is refused, and nothing breaks. Method: every prefix and every bit of
// small files of all kinds. PNG checksums catch nearly every flip before the decoder proper is
// reached, so the compressed data are flipped once more with the checksum made right.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "bad_image.h"
#include "conclave/base/status.h"
#include "jpeg_samples.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

struct Sample {
  std::string name;
  std::function<Bytes()> file;
};

void PrintTo(const Sample& sample, std::ostream* out) { *out << sample.name; }

Sample Golden(const std::string& file) {
  std::string name = file;
  std::replace(name.begin(), name.end(), '.', '_');
  return {name, [file] { return ReadFileBytes(GoldenPath(file)); }};
}

Sample Jpeg(const std::string& name, const JpegOptions& options) {
  return {name, [options] { return EncodeJpeg(options); }};
}

Sample Png(const std::string& name, const PngHeader& header) {
  return {name, [header] {
            return MakePng(header, PngNoise(header, 4),
                           header.colour == 3 ? PngPalette(1 << header.bit_depth) : Bytes());
          }};
}

std::vector<Sample> JpegSamples() {
  return {
      Golden("jpeg_gray.jpg"),
      Golden("jpeg_odd_422.jpg"),
      Jpeg("jpeg_cmyk", {.width = 16, .height = 16, .colour = JpegColour::kCmyk, .quality = 60}),
      Jpeg("jpeg_ycck", {.width = 16, .height = 16, .colour = JpegColour::kYcck, .quality = 60}),
      Jpeg("jpeg_restarts", {.width = 40, .height = 24, .quality = 50, .restart_interval = 2}),
  };
}

Sample ProgressiveSample() {
  return Jpeg("jpeg_progressive",
              {.width = 24, .height = 16, .quality = 80, .is_progressive = true});
}

std::vector<Sample> Samples() {
  std::vector<Sample> samples = JpegSamples();
  samples.push_back(ProgressiveSample());
  for (const char* file :
       {"png_gray_alpha.png", "png_palette.png", "png_1bit.png", "png_gray16.png"}) {
    samples.push_back(Golden(file));
  }
  samples.push_back(
      Png("png_interlaced_rgba", {.width = 19, .height = 13, .colour = 6, .interlace = 1}));
  samples.push_back(Png("png_rgb16", {.width = 17, .height = 9, .bit_depth = 16}));
  samples.push_back(Png("png_palette2", {.width = 30, .height = 9, .bit_depth = 2, .colour = 3}));
  return samples;
}

class EveryByteTest : public testing::TestWithParam<Sample> {
 protected:
  const Bytes file_ = GetParam().file();
};

TEST_P(EveryByteTest, I10_CutAnywhereIsTruncated) {
  ASSERT_FALSE(file_.empty());
  ExpectDecodes(file_);
  for (size_t size = 1; size < file_.size(); ++size) {
    // A copy of exactly that size, so that reading past the cut is seen by the sanitizer.
    const Bytes cut(file_.begin(), file_.begin() + static_cast<ptrdiff_t>(size));
    const absl::Status status = Decode(AsInput(cut), {}).status();
    ASSERT_EQ(ReasonOf(status), "image_truncated") << "cut at " << size << ": " << status;
  }
}

TEST_P(EveryByteTest, I11_EveryFlippedBitDecodesOrIsRefused) {
  Bytes flipped = file_;
  for (size_t bit = 0; bit < 8 * file_.size(); ++bit) {
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    ASSERT_NO_FATAL_FAILURE(ExpectSane(flipped)) << "bit " << bit;
    flipped[bit / 8] = file_[bit / 8];
  }
}

INSTANTIATE_TEST_SUITE_P(Samples, EveryByteTest, testing::ValuesIn(Samples()),
                         [](const auto& param) { return param.param.name; });

// Calls `check` with every prefix of `file` of at least a start marker, the end marker put back
// behind it: the structure is whole then, but the data are not.
void ForEachCutWithEnd(const Bytes& file,
                       const std::function<void(size_t, const absl::StatusOr<RgbImage>&)>& check) {
  for (size_t size = 2; size + 2 < file.size(); ++size) {
    Bytes cut(file.begin(), file.begin() + static_cast<ptrdiff_t>(size));
    cut.push_back(0xFF);
    cut.push_back(0xD9);
    check(size, Decode(AsInput(cut), {}));
  }
}

class CutJpegDataTest : public testing::TestWithParam<Sample> {};

TEST_P(CutJpegDataTest, I10_AreNeverGreyFill) {
  const Bytes file = GetParam().file();
  const absl::StatusOr<RgbImage> whole = Decode(AsInput(file), {});
  ASSERT_TRUE(whole.ok());
  ForEachCutWithEnd(file, [&](size_t size, const absl::StatusOr<RgbImage>& image) {
    if (image.ok()) {
      // What was cut was padding.
      EXPECT_GT(size + 8, file.size());
      EXPECT_EQ(image->pixels, whole->pixels);
      return;
    }
    const std::string reason = ReasonOf(image.status());
    EXPECT_TRUE(reason == "image_corrupt" || reason == "image_truncated")
        << "cut at " << size << ": " << image.status();
  });
}

INSTANTIATE_TEST_SUITE_P(Samples, CutJpegDataTest, testing::ValuesIn(JpegSamples()),
                         [](const auto& param) { return param.param.name; });

// A progressive picture without its last scans is a whole picture of lower quality; but no scan may
// end early.
TEST(CutProgressiveDataTest, I10_EndOnlyBetweenScans) {
  const Bytes file = ProgressiveSample().file();
  std::vector<size_t> scan_ends{file.size() - 2};
  for (const JpegSegment& segment : SegmentsOf(file)) {
    scan_ends.push_back(segment.offset);
  }
  int num_decoded = 0;
  ForEachCutWithEnd(file, [&](size_t size, const absl::StatusOr<RgbImage>& image) {
    if (image.ok()) {
      ++num_decoded;
      // One FF of the marker that follows a scan reads as a fill byte.
      const bool is_at_end = std::any_of(scan_ends.begin(), scan_ends.end(), [size](size_t end) {
        return size == end || size == end + 1;
      });
      EXPECT_TRUE(is_at_end) << "cut at " << size;
    }
  });
  EXPECT_GT(num_decoded, 5);
}

struct PngKind {
  std::string name;
  PngHeader header;
};

void PrintTo(const PngKind& kind, std::ostream* out) { *out << kind.name; }

class CompressedDataTest : public testing::TestWithParam<PngKind> {};

TEST_P(CompressedDataTest, I11_EveryFlippedBitBehindARightChecksumDecodesOrIsRefused) {
  const PngHeader& header = GetParam().header;
  const Bytes data = Deflate(PngRows(header, PngNoise(header, 5)));
  const Bytes palette = header.colour == 3 ? PngPalette(3) : Bytes();
  Bytes flipped = data;
  for (size_t bit = 0; bit < 8 * data.size(); ++bit) {
    flipped[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    const Bytes file = Concat({PngSignature(), PngHeaderChunk(header), palette,
                               PngChunk("IDAT", flipped), PngChunk("IEND", {})});
    ASSERT_NO_FATAL_FAILURE(ExpectSane(file)) << "bit " << bit;
    flipped[bit / 8] = data[bit / 8];
  }
}

TEST_P(CompressedDataTest, I10_CompressedDataCutBehindARightChecksumAreCorrupt) {
  const PngHeader& header = GetParam().header;
  const Bytes data = Deflate(PngRows(header, PngNoise(header, 5)));
  const Bytes palette = header.colour == 3 ? PngPalette(4) : Bytes();
  // The last four bytes are zlib's checksum of the rows; without them every pixel is still there.
  for (size_t size = 0; size < data.size() - 6; ++size) {
    const Bytes cut(data.begin(), data.begin() + static_cast<ptrdiff_t>(size));
    const Bytes file = Concat({PngSignature(), PngHeaderChunk(header), palette,
                               PngChunk("IDAT", cut), PngChunk("IEND", {})});
    const absl::Status status = Decode(AsInput(file), {}).status();
    ASSERT_EQ(ReasonOf(status), "image_corrupt") << "cut at " << size << ": " << status;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Kinds, CompressedDataTest,
    testing::Values(
        PngKind{"rgb", {.width = 9, .height = 7}},
        PngKind{"interlaced_rgba16",
                {.width = 5, .height = 5, .bit_depth = 16, .colour = 6, .interlace = 1}},
        PngKind{"palette2", {.width = 21, .height = 9, .bit_depth = 2, .colour = 3}},
        PngKind{"interlaced_grey1",
                {.width = 23, .height = 23, .bit_depth = 1, .colour = 0, .interlace = 1}}),
    [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace conclave::image
