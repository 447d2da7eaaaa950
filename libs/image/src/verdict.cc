#include "verdict.h"

#include <algorithm>
#include <limits>

#include "conclave/base/status.h"

namespace conclave::image {
namespace {

std::string Limit(const std::string& format, const std::string& what, int64_t limit,
                  const std::string& unit, const std::string& found) {
  return format + " image: " + what + "; expected at most " + std::to_string(limit) + unit +
         ", found " + found;
}

}  // namespace

absl::Status Corrupt(const std::string& format, const std::string& why) {
  return InvalidArgument("image_corrupt", format + " image: " + why);
}

absl::Status Truncated(const std::string& format, const std::string& why) {
  return InvalidArgument("image_truncated", format + " image: " + why);
}

absl::Status Stopped(const std::string& format) {
  return InvalidArgument("image_decode_timeout", format + " image: stopped");
}

absl::Status CheckDimensions(const std::string& format, uint32_t width, uint32_t height,
                             const DecodeLimits& limits) {
  // With spaces: 10x2000000 would read as an address to who looks for leaked ones.
  const std::string found = std::to_string(width) + " x " + std::to_string(height);
  if (width == 0 || height == 0) {
    return InvalidArgument(
        "image_bad_dimensions",
        format + " image: an edge is 0; expected at least 1 x 1, found " + found);
  }
  const uint64_t pixels = uint64_t{width} * height;
  if (pixels > static_cast<uint64_t>(std::max<int64_t>(limits.pixels_max, 0))) {
    return InvalidArgument("image_too_many_pixels",
                           Limit(format, "too many pixels", limits.pixels_max, "", found));
  }
  const int64_t longest = std::max(width, height);
  const int64_t shortest = std::min(width, height);
  if (longest > limits.side_max || longest > std::numeric_limits<int32_t>::max()) {
    return InvalidArgument("image_bad_dimensions",
                           Limit(format, "an edge is too long", limits.side_max, "", found));
  }
  if (longest > limits.aspect_ratio_max * shortest) {
    return InvalidArgument("image_aspect_ratio", Limit(format, "too narrow or too flat",
                                                       limits.aspect_ratio_max, ":1", found));
  }
  return absl::OkStatus();
}

absl::Status CheckTrailing(const std::string& format, size_t trailing_bytes,
                           const DecodeLimits& limits) {
  if (trailing_bytes > static_cast<size_t>(std::max<int64_t>(limits.trailing_bytes_max, 0))) {
    return InvalidArgument("image_trailing_data", Limit(format, "other data follows the picture",
                                                        limits.trailing_bytes_max, " bytes",
                                                        std::to_string(trailing_bytes)));
  }
  return absl::OkStatus();
}

}  // namespace conclave::image
