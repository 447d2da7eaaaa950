// WebP stills, lossy and lossless, by libwebp.
#include <webp/decode.h>

#include <algorithm>
#include <memory>
#include <string>

#include "conclave/base/status.h"
#include "decoders.h"
#include "verdict.h"

namespace conclave::image {
namespace {

// "RIFF", the size of what follows, "WEBP".
constexpr size_t kRiffHeaderBytes = 12;
// So much of the file goes to the library before the clock is looked at again. It cannot be stopped
// in between; there the number of pixels is what bounds it.
constexpr size_t kStepBytes = 64 << 10;

// Length of the RIFF container, header included; an odd size may lack its padding byte.
uint64_t ContainerBytes(std::span<const uint8_t> encoded) {
  const uint64_t size = uint64_t{encoded[4]} | uint64_t{encoded[5]} << 8 |
                        uint64_t{encoded[6]} << 16 | uint64_t{encoded[7]} << 24;
  return size + 8;
}

// Fills out[height, width, 3] with the whole picture; false if the stream breaks the format, ends
// early, or the time is over.
bool ReadPixels(std::span<const uint8_t> container, size_t stride, std::span<uint8_t> out,
                TimeLimit& time) {
  const std::unique_ptr<WebPIDecoder, decltype(&WebPIDelete)> decoder(
      WebPINewRGB(MODE_RGB, out.data(), out.size(), static_cast<int>(stride)), WebPIDelete);
  if (decoder == nullptr) {
    return false;
  }
  VP8StatusCode status = VP8_STATUS_SUSPENDED;
  for (size_t end = 0; status == VP8_STATUS_SUSPENDED && end < container.size();) {
    if (time.IsOver()) {
      return false;
    }
    end = std::min(end + kStepBytes, container.size());
    status = WebPIUpdate(decoder.get(), container.data(), end);
  }
  return status == VP8_STATUS_OK;
}

}  // namespace

absl::StatusOr<RgbImage> DecodeWebp(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                    TimeLimit& time) {
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
  if (!ReadPixels(encoded.first(container), stride, picture.pixels, time)) {
    return Corrupt("WebP", "the bitstream breaks the format or ends early");
  }
  return picture;
}

}  // namespace conclave::image
