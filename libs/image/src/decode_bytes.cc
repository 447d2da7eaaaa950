// What decoding a file will take, told from its header. Every number is checked again by the
// decoder: a header that lies gets a wrong estimate here and a refusal there.
#include <webp/decode.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <span>

#include "byte_order.h"
#include "conclave/image/image.h"

namespace conclave::image {
namespace {

constexpr int64_t kResultBytes = 3;  // per pixel, as the numbers below
// A JPEG of several scans is held as 16-bit coefficients; four components are the most.
constexpr int64_t kCoefficientBytes = 2;
constexpr int64_t kComponentsMax = 4;
// A lossless WebP is decoded to 32-bit pixels; the other kind may have a plane of alpha beside it.
constexpr int64_t kWebpBytes = 5;
constexpr int64_t kWorstBytes = kResultBytes + kCoefficientBytes * kComponentsMax;

struct Need {
  uint64_t num_pixels = 0;
  int64_t pixel_bytes = kResultBytes;
};

// By the first frame header. Segments are stepped over by their length; noise between them, which
// the decoder forgives, is not.
std::optional<Need> JpegNeed(std::span<const uint8_t> encoded) {
  constexpr size_t kSegmentHeaderBytes = 4;
  constexpr size_t kFrameBytes = 10;  // marker, length, precision, height, width, components
  for (size_t at = 2; at + kFrameBytes <= encoded.size() && encoded[at] == 0xFF;) {
    const uint8_t* segment = encoded.data() + at;
    const uint8_t marker = segment[1];
    if (marker == 0xFF) {  // a fill byte
      ++at;
    } else if (marker >= 0xC0 && marker <= 0xC2) {
      return Need{uint64_t{ReadU16(segment + 5)} * ReadU16(segment + 7),
                  kResultBytes + kCoefficientBytes * std::min<int64_t>(segment[9], kComponentsMax)};
    } else {
      at += std::max<size_t>(2 + ReadU16(segment + 2), kSegmentHeaderBytes);
    }
  }
  return std::nullopt;
}

std::optional<Need> PngNeed(std::span<const uint8_t> encoded) {
  constexpr size_t kEdgesAt = 16;
  if (encoded.size() < kEdgesAt + 8) {
    return std::nullopt;
  }
  const uint8_t* edges = encoded.data() + kEdgesAt;
  return Need{uint64_t{ReadU32(edges)} * ReadU32(edges + 4)};
}

std::optional<Need> BmpNeed(std::span<const uint8_t> encoded) {
  constexpr size_t kHeaderAt = 14;
  constexpr uint32_t kOldHeaderBytes = 12;
  if (encoded.size() < kHeaderAt + kOldHeaderBytes) {
    return std::nullopt;
  }
  const uint8_t* header = encoded.data() + kHeaderAt;
  if (ReadU32Le(header) == kOldHeaderBytes) {
    return Need{uint64_t{ReadU16Le(header + 4)} * ReadU16Le(header + 6)};
  }
  // Negative: top-down.
  const auto height = static_cast<int32_t>(ReadU32Le(header + 8));
  return Need{uint64_t{ReadU32Le(header + 4)} * static_cast<uint64_t>(std::abs(int64_t{height}))};
}

std::optional<Need> WebpNeed(std::span<const uint8_t> encoded) {
  int width = 0;
  int height = 0;
  if (WebPGetInfo(encoded.data(), encoded.size(), &width, &height) == 0) {
    return std::nullopt;
  }
  return Need{static_cast<uint64_t>(width) * static_cast<uint64_t>(height),
              kResultBytes + kWebpBytes};
}

std::optional<Need> NeedOf(std::span<const std::byte> encoded) {
  const std::span octets(reinterpret_cast<const uint8_t*>(encoded.data()), encoded.size());
  switch (DetectFormat(encoded)) {
    case ImageFormat::kJpeg:
      return JpegNeed(octets);
    case ImageFormat::kPng:
      return PngNeed(octets);
    case ImageFormat::kBmp:
      return BmpNeed(octets);
    case ImageFormat::kWebp:
      return WebpNeed(octets);
    case ImageFormat::kGif:  // its first frame, anywhere in the file, may be larger than the screen
    case ImageFormat::kUnknown:
      break;
  }
  return std::nullopt;
}

}  // namespace

int64_t DecodeBytes(std::span<const std::byte> encoded, const DecodeLimits& limits) {
  const auto pixels_max = static_cast<uint64_t>(std::max<int64_t>(limits.pixels_max, 0));
  const std::optional<Need> need = NeedOf(encoded);
  if (!need.has_value() || need->num_pixels == 0 || need->num_pixels > pixels_max) {
    return kWorstBytes * static_cast<int64_t>(pixels_max);
  }
  return need->pixel_bytes * static_cast<int64_t>(need->num_pixels);
}

}  // namespace conclave::image
