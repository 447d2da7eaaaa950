// One decoder of libs/image; the build gives its format in CONCLAVE_FUZZ_FORMAT.
//
// Promises: a file is refused with a reason, or gives a picture within the limits of as many bytes
// as its size says; and a second decode does the same.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/image/image.h"

namespace conclave::image {
namespace {

constexpr ImageFormat kFormat = ImageFormat::CONCLAVE_FUZZ_FORMAT;

// Small enough that a run decodes thousands of pictures per second in little memory; every check of
// a limit is still reached.
constexpr DecodeLimits kLimits{
    .encoded_bytes_max = 1 << 20,
    .side_max = 1024,
    .pixels_max = 1 << 18,
    .aspect_ratio_max = 100,
    .jpeg_scans_max = 20,
    .trailing_bytes_max = 1 << 10,
};

void CheckDecode(std::span<const std::byte> file) {
  const absl::StatusOr<RgbImage> image = Decode(file, kLimits);
  const absl::StatusOr<RgbImage> again = Decode(file, kLimits);
  CONCLAVE_CHECK(image.ok() == again.ok());
  if (!image.ok()) {
    CONCLAVE_CHECK(!ReasonOf(image.status()).empty());
    CONCLAVE_CHECK(image.status() == again.status());
    return;
  }
  CONCLAVE_CHECK(std::min(image->width, image->height) >= 1);
  CONCLAVE_CHECK(std::max(image->width, image->height) <= kLimits.side_max);
  const int64_t pixels = int64_t{image->width} * image->height;
  CONCLAVE_CHECK(pixels <= kLimits.pixels_max);
  CONCLAVE_CHECK(static_cast<int64_t>(image->pixels.size()) == 3 * pixels);
  CONCLAVE_CHECK(image->width == again->width && image->pixels == again->pixels);
}

}  // namespace
}  // namespace conclave::image

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using conclave::image::DetectFormat;
  const auto file = std::as_bytes(std::span(bytes, size));
  // Each target spends its time on one decoder: files of the others are not kept.
  if (DetectFormat(file) != conclave::image::kFormat) {
    return -1;
  }
  conclave::image::CheckDecode(file);
  return 0;
}
