#include "bad_image.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "conclave/base/status.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

constexpr std::array<std::string_view, 12> kReasons{
    "image_empty",          "image_truncated",          "image_corrupt",
    "image_bad_dimensions", "image_aspect_ratio",       "image_too_many_pixels",
    "image_too_large",      "image_too_complex",        "image_trailing_data",
    "image_decode_timeout", "jpeg_process_unsupported", "image_format_unsupported"};

absl::StatusCode CodeOf(std::string_view reason) {
  return reason.ends_with("_unsupported") ? absl::StatusCode::kUnimplemented
                                          : absl::StatusCode::kInvalidArgument;
}

// Nothing that looks like an address, a path or the words of a library.
void ExpectCleanMessage(const absl::Status& status) {
  const std::string message = MessageOf(status);
  EXPECT_FALSE(message.empty());
  EXPECT_LT(message.size(), 250U) << message;
  for (const char* leak :
       {"0x", "/usr", "/lib", "libpng", "libjpeg", "zlib", "IDAT:", "\n", "\r"}) {
    EXPECT_EQ(message.find(leak), std::string::npos) << message;
  }
}

Bytes GoodPicture() {
  const PngHeader header{.width = 4, .height = 3};
  return MakePng(header, PngNoise(header, 1));
}

}  // namespace

void ExpectRefused(const Bytes& file, const std::string& reason, const DecodeLimits& limits) {
  const absl::Status status = Decode(AsInput(file), limits).status();
  ASSERT_FALSE(status.ok()) << "decoded, expected " << reason;
  EXPECT_EQ(ReasonOf(status), reason) << status;
  EXPECT_EQ(status.code(), CodeOf(reason));
  ExpectCleanMessage(status);
}

void ExpectDecodes(const Bytes& file, const DecodeLimits& limits) {
  const absl::StatusOr<RgbImage> image = Decode(AsInput(file), limits);
  ASSERT_TRUE(image.ok()) << image.status();
  EXPECT_EQ(image->pixels.size(),
            size_t{3} * static_cast<size_t>(image->width) * static_cast<size_t>(image->height));
}

void ExpectSane(const Bytes& file) {
  const absl::StatusOr<RgbImage> image = Decode(AsInput(file), {});
  if (image.ok()) {
    ASSERT_EQ(image->pixels.size(),
              size_t{3} * static_cast<size_t>(image->width) * static_cast<size_t>(image->height));
    return;
  }
  const std::string reason = ReasonOf(image.status());
  ASSERT_NE(std::find(kReasons.begin(), kReasons.end(), reason), kReasons.end()) << image.status();
  ASSERT_EQ(image.status().code(), CodeOf(reason));
}

void PrintTo(const BadImage& bad, std::ostream* out) { *out << bad.name; }

void BadImageTest::SetUp() { ExpectDecodes(GoodPicture()); }

void BadImageTest::TearDown() { ExpectDecodes(GoodPicture()); }

TEST_P(BadImageTest, IsAnsweredAsTheCatalogueSays) {
  if (GetParam().reason.empty()) {
    ExpectDecodes(GetParam().file());
  } else {
    ExpectRefused(GetParam().file(), GetParam().reason);
  }
}

std::string BadImageName(const testing::TestParamInfo<BadImage>& info) { return info.param.name; }

}  // namespace conclave::image
