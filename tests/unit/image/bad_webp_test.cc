// Goal: a WebP file that breaks its container, its format or a limit is refused whole, with the
// reason that says which. Method: the recorded lossless and lossy samples, cut, flipped and
// patched.
#include <gtest/gtest.h>

#include <string>

#include "bad_image.h"
#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "files.h"

namespace conclave::image {
namespace {

Bytes Sample(const std::string& name) { return ReadFileBytes(GoldenPath(name)); }

absl::Status StatusOf(const Bytes& file) { return Decode(AsInput(file), {}).status(); }

void SetContainerSize(Bytes& file, uint32_t size) {
  for (size_t i = 0; i < 4; ++i) {
    file[4 + i] = static_cast<uint8_t>(size >> (8 * i));
  }
}

class BadWebpTest : public testing::TestWithParam<std::string> {};

TEST_P(BadWebpTest, TheSampleItselfDecodes) { EXPECT_TRUE(StatusOf(Sample(GetParam())).ok()); }

TEST_P(BadWebpTest, I10_CutAnywhereIsNoPicture) {
  const Bytes whole = Sample(GetParam());
  for (size_t length = 12; length < whole.size(); length += length < 64 ? 1 : 37) {
    const absl::Status status =
        StatusOf(Bytes(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(length)));
    ASSERT_EQ(ReasonOf(status), "image_truncated") << "cut at " << length << ": " << status;
  }
}

TEST_P(BadWebpTest, W01_AContainerThatLiesAboutItsSize) {
  const Bytes whole = Sample(GetParam());
  Bytes longer = whole;
  SetContainerSize(longer, static_cast<uint32_t>(whole.size()));
  EXPECT_EQ(ReasonOf(StatusOf(longer)), "image_truncated");
  Bytes huge = whole;
  SetContainerSize(huge, 0xFFFFFFFFu);
  EXPECT_EQ(ReasonOf(StatusOf(huge)), "image_truncated");
  Bytes none = whole;
  SetContainerSize(none, 0);
  EXPECT_EQ(ReasonOf(StatusOf(none)), "image_corrupt");
  // A shorter container cuts the bitstream although the bytes are there.
  Bytes shorter = whole;
  SetContainerSize(shorter, static_cast<uint32_t>(whole.size() / 2));
  EXPECT_EQ(ReasonOf(StatusOf(shorter)), "image_corrupt");
}

TEST_P(BadWebpTest, I05_ATailIsIgnoredUpToTheLimit) {
  Bytes file = Sample(GetParam());
  file.resize(file.size() + (64 << 10), 0x5A);
  EXPECT_TRUE(StatusOf(file).ok());
  file.resize(file.size() + 16, 0x5A);
  EXPECT_EQ(ReasonOf(StatusOf(file)), "image_trailing_data");
}

TEST_P(BadWebpTest, I11_EveryBitFlipDecodesOrIsRefused) {
  const Bytes whole = Sample(GetParam());
  int num_refused = 0;
  for (size_t bit = 0; bit < size_t{200} * 8; ++bit) {
    Bytes flipped = whole;
    flipped[bit / 8] = static_cast<uint8_t>(flipped[bit / 8] ^ (1u << (bit % 8)));
    const absl::StatusOr<RgbImage> picture = Decode(AsInput(flipped), {});
    if (picture.ok()) {
      ASSERT_EQ(picture->pixels.size(),
                static_cast<size_t>(picture->width) * static_cast<size_t>(picture->height) * 3);
    } else {
      ASSERT_FALSE(ReasonOf(picture.status()).empty()) << "bit " << bit;
      ++num_refused;
    }
  }
  EXPECT_GT(num_refused, 64) << "flips of the magic bytes and sizes alone must be refused";
}

INSTANTIATE_TEST_SUITE_P(Samples, BadWebpTest,
                         testing::Values("webp_lossless.webp", "webp_lossy.webp"),
                         [](const auto& param) {
                           return param.param.substr(5, param.param.find('.') - 5);
                         });

// "VP8X" with the given flags and canvas, then the chunks of `still`.
Bytes Extended(const Bytes& still, uint8_t flags, uint32_t width, uint32_t height) {
  Bytes file(still.begin(), still.begin() + 12);
  const std::string tag = "VP8X";
  file.insert(file.end(), tag.begin(), tag.end());
  for (const uint32_t value : {uint32_t{10}, uint32_t{flags}}) {
    for (int i = 0; i < 4; ++i) {
      file.push_back(static_cast<uint8_t>(value >> (8 * i)));
    }
  }
  for (const uint32_t edge : {width - 1, height - 1}) {
    for (int i = 0; i < 3; ++i) {
      file.push_back(static_cast<uint8_t>(edge >> (8 * i)));
    }
  }
  file.insert(file.end(), still.begin() + 12, still.end());
  SetContainerSize(file, static_cast<uint32_t>(file.size() - 8));
  return file;
}

TEST(BadWebpTest, W02_ACanvasThatIsNotTheFramesSize) {
  const Bytes still = Sample("webp_lossy.webp");
  const absl::StatusOr<RgbImage> picture = Decode(AsInput(still), {});
  ASSERT_TRUE(picture.ok());
  const auto width = static_cast<uint32_t>(picture->width);
  const auto height = static_cast<uint32_t>(picture->height);
  EXPECT_TRUE(StatusOf(Extended(still, 0, width, height)).ok());
  EXPECT_EQ(ReasonOf(StatusOf(Extended(still, 0, width + 1, height))), "image_corrupt");
}

TEST(BadWebpTest, W04_AnAnimationIsRefused) {
  const absl::Status status = StatusOf(Extended(Sample("webp_lossy.webp"), 0x02, 64, 48));
  EXPECT_EQ(ReasonOf(status), "image_animated");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
}

// Appends the lowest `count` bits of `value` to a bitstream that fills its bytes from below.
void PutBits(Bytes& out, size_t& bit, uint32_t value, int count) {
  for (int i = 0; i < count; ++i, ++bit) {
    out.resize(bit / 8 + 1);
    out[bit / 8] = static_cast<uint8_t>(out[bit / 8] | (value >> i & 1) << bit % 8);
  }
}

// CVE-2023-4863 wrote beyond the tables of such a code.
TEST(BadWebpTest, W03_AHuffmanCodeOfMoreLeavesThanItHasRoomFor) {
  Bytes stream{0x2F};
  size_t bit = 8;
  PutBits(stream, bit, 15, 14);  // width and height, less one
  PutBits(stream, bit, 15, 14);
  PutBits(stream, bit, 0, 1 + 3);      // no alpha, version
  PutBits(stream, bit, 0, 1 + 1 + 1);  // no transform, no colour cache, one group of codes
  PutBits(stream, bit, 0, 1);          // a code that is written out
  PutBits(stream, bit, 15, 4);         // 19 lengths of its own code follow
  for (int i = 0; i < 19; ++i) {
    PutBits(stream, bit, 1, 3);  // of which two of one bit would be all
  }
  PutBits(stream, bit, 0xFFFFFFFF, 32);
  stream.resize(stream.size() + 200, 0xA5);
  Bytes file;
  const std::string head = "RIFF....WEBPVP8L";
  file.insert(file.end(), head.begin(), head.end());
  for (int i = 0; i < 4; ++i) {
    file.push_back(static_cast<uint8_t>(stream.size() >> (8 * i)));
  }
  file.insert(file.end(), stream.begin(), stream.end());
  file.resize(file.size() + file.size() % 2);
  SetContainerSize(file, static_cast<uint32_t>(file.size() - 8));
  EXPECT_EQ(ReasonOf(StatusOf(file)), "image_corrupt");
}

// Alpha is dropped, so a broken plane of it need not spoil the picture; nothing else may happen.
TEST(BadWebpTest, W05_AlphaOfAnUnknownKind) {
  const Bytes still = Sample("webp_lossy.webp");
  Bytes with_alpha(still.begin(), still.begin() + 12);
  for (const uint8_t byte : {'A', 'L', 'P', 'H', '\2', '\0', '\0', '\0', '\xFF', '\xFF'}) {
    with_alpha.push_back(byte);
  }
  with_alpha.insert(with_alpha.end(), still.begin() + 12, still.end());
  const absl::StatusOr<RgbImage> picture = Decode(AsInput(still), {});
  ASSERT_TRUE(picture.ok());
  const Bytes file = Extended(with_alpha, 0x10, static_cast<uint32_t>(picture->width),
                              static_cast<uint32_t>(picture->height));
  const absl::StatusOr<RgbImage> found = Decode(AsInput(file), {});
  if (found.ok()) {
    EXPECT_EQ(found->pixels, picture->pixels);
  } else {
    EXPECT_EQ(ReasonOf(found.status()), "image_corrupt");
  }
}

TEST(BadWebpTest, W05_DimensionsAreJudgedBeforeDecoding) {
  // A lossless header of 16383 x 16383 with nothing behind it.
  Bytes bomb;
  const std::string head = "RIFF....WEBPVP8L";
  bomb.insert(bomb.end(), head.begin(), head.end());
  for (const uint8_t byte : {32, 0, 0, 0, 0x2F, 0xFE, 0xBF, 0xFF, 0x0F}) {
    bomb.push_back(byte);
  }
  bomb.resize(52, 0);
  SetContainerSize(bomb, static_cast<uint32_t>(bomb.size() - 8));
  const std::string reason = ReasonOf(StatusOf(bomb));
  EXPECT_TRUE(reason == "image_too_many_pixels" || reason == "image_bad_dimensions") << reason;
}

}  // namespace
}  // namespace conclave::image
