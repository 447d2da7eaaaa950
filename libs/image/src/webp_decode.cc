// WebP stills, lossy and lossless, by libwebp.
#include <webp/decode.h>

#include <algorithm>
#include <string>

#include "conclave/base/status.h"
#include "decoders.h"
#include "verdict.h"

namespace conclave::image {
namespace {

// "RIFF", the size of what follows, "WEBP".
constexpr size_t kRiffHeaderBytes = 12;

// Length of the RIFF container, header included; an odd size may lack its padding byte.
uint64_t ContainerBytes(std::span<const uint8_t> encoded) {
  const uint64_t size = uint64_t{encoded[4]} | uint64_t{encoded[5]} << 8 |
                        uint64_t{encoded[6]} << 16 | uint64_t{encoded[7]} << 24;
  return size + 8;
}

}  // namespace

absl::StatusOr<RgbImage> DecodeWebp(std::span<const uint8_t> encoded, const DecodeLimits& limits) {
  if (encoded.size() <= kRiffHeaderBytes) {
    return Truncated("WebP", "the file ends in its header");
  }
  const uint64_t container = ContainerBytes(encoded);
  if (container > encoded.size()) {
    return Truncated("WebP", "the container says " + std::to_string(container) +
                                 " bytes, the file has " + std::to_string(encoded.size()));
  }
  if (container <= kRiffHeaderBytes) {
    return Corrupt("WebP", "the container is empty");
  }
  const uint64_t trailing = encoded.size() - container;
  CONCLAVE_RETURN_IF_ERROR(
      CheckTrailing("WebP", trailing > container % 2 ? trailing - container % 2 : 0, limits));
  WebPBitstreamFeatures features;
  // Also refuses a frame that differs from its canvas.
  if (WebPGetFeatures(encoded.data(), container, &features) != VP8_STATUS_OK) {
    return Corrupt("WebP", "its headers contradict each other or the format");
  }
  CONCLAVE_RETURN_IF_ERROR(
      CheckDimensions("WebP", static_cast<uint32_t>(std::max(features.width, 0)),
                      static_cast<uint32_t>(std::max(features.height, 0)), limits));
  if (features.has_animation != 0) {
    return Error(absl::StatusCode::kUnimplemented, "image_animated",
                 "image: animated WebP; expected a still picture");
  }
  RgbImage picture;
  picture.width = features.width;
  picture.height = features.height;
  const size_t stride = static_cast<size_t>(picture.width) * 3;
  picture.pixels.resize(stride * static_cast<size_t>(picture.height));
  // All or nothing: a stream that ends early gives no picture. Alpha is dropped, not blended, as
  // Pillow does.
  if (WebPDecodeRGBInto(encoded.data(), container, picture.pixels.data(), picture.pixels.size(),
                        static_cast<int>(stride)) == nullptr) {
    return Corrupt("WebP", "the bitstream breaks the format or ends early");
  }
  return picture;
}

}  // namespace conclave::image
