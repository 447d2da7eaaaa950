#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <string_view>

#include "byte_order.h"
#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "decoders.h"
#include "time_limit.h"
#include "verdict.h"

namespace conclave::image {
namespace {

// The longest prefix that any of the formats below needs; less cannot be told apart.
constexpr size_t kMagicBytes = 12;
constexpr std::string_view kAccepted = "JPEG, PNG, WebP, GIF or BMP";

bool HasAt(std::span<const uint8_t> encoded, size_t offset, std::string_view magic) {
  return encoded.size() >= offset + magic.size() &&
         std::equal(magic.begin(), magic.end(), encoded.begin() + static_cast<ptrdiff_t>(offset),
                    [](char want, uint8_t have) { return static_cast<uint8_t>(want) == have; });
}

// A frequent format that is not accepted gets its name into the message; the rest is "unknown
// bytes".
std::string NameOfForeign(std::span<const uint8_t> encoded) {
  struct Foreign {
    size_t offset;
    std::string_view magic;
    std::string_view name;
  };
  static constexpr std::array kForeign{
      Foreign{0, std::string_view("II*\0", 4), "TIFF"},
      Foreign{0, std::string_view("MM\0*", 4), "TIFF"},
      Foreign{4, "ftypavif", "AVIF"},
      Foreign{4, "ftyphei", "HEIC"},
      Foreign{4, "ftyp", "MP4"},
      Foreign{4, "jP  ", "JPEG 2000"},
      Foreign{0, "\xFF\x4F\xFF\x51", "JPEG 2000"},
      Foreign{0, "\xFF\x0A", "JPEG XL"},
      Foreign{4, "JXL ", "JPEG XL"},
      Foreign{0, "%PDF", "PDF"},
      Foreign{0, "<svg", "SVG"},
  };
  for (const Foreign& foreign : kForeign) {
    if (HasAt(encoded, foreign.offset, foreign.magic)) {
      return std::string(foreign.name);
    }
  }
  return "unknown bytes";
}

// Many a text begins with "BM"; the size of the second header, at byte 14, is one of few.
bool IsBmp(std::span<const uint8_t> encoded) {
  static constexpr std::array<uint32_t, 7> kHeaderBytes{12, 40, 52, 56, 64, 108, 124};
  return HasAt(encoded, 0, "BM") && encoded.size() >= 18 &&
         std::find(kHeaderBytes.begin(), kHeaderBytes.end(), ReadU32Le(encoded.data() + 14)) !=
             kHeaderBytes.end();
}

// A JPEG that lost its first marker still starts with one that hardly anything else starts with.
bool IsJpegWithoutStart(std::span<const uint8_t> encoded) {
  static constexpr std::array<uint8_t, 9> kMarkers{0xC0, 0xC2, 0xC4, 0xD9, 0xDA,
                                                   0xDB, 0xE0, 0xE1, 0xEE};
  return encoded.size() >= 2 && encoded[0] == 0xFF &&
         std::find(kMarkers.begin(), kMarkers.end(), encoded[1]) != kMarkers.end();
}

std::span<const uint8_t> AsOctets(std::span<const std::byte> encoded) {
  return {reinterpret_cast<const uint8_t*>(encoded.data()), encoded.size()};
}

}  // namespace

ImageFormat DetectFormat(std::span<const std::byte> encoded) {
  const std::span<const uint8_t> octets = AsOctets(encoded);
  if (HasAt(octets, 0, "\xFF\xD8")) {
    return ImageFormat::kJpeg;
  }
  if (HasAt(octets, 0, "\x89PNG")) {
    return ImageFormat::kPng;
  }
  if (HasAt(octets, 0, "RIFF") && HasAt(octets, 8, "WEBP")) {
    return ImageFormat::kWebp;
  }
  if (HasAt(octets, 0, "GIF87a") || HasAt(octets, 0, "GIF89a")) {
    return ImageFormat::kGif;
  }
  return IsBmp(octets) ? ImageFormat::kBmp : ImageFormat::kUnknown;
}

namespace {

absl::StatusOr<RgbImage> DecodeWithin(std::span<const std::byte> encoded,
                                      const DecodeLimits& limits, TimeLimit& time) {
  if (encoded.empty()) {
    return InvalidArgument("image_empty",
                           "image: no bytes; expected a " + std::string(kAccepted) + " file");
  }
  if (encoded.size() > static_cast<size_t>(std::max<int64_t>(limits.encoded_bytes_max, 0))) {
    return InvalidArgument("image_too_large", "image: file too large; expected at most " +
                                                  std::to_string(limits.encoded_bytes_max) +
                                                  " bytes, found " +
                                                  std::to_string(encoded.size()));
  }
  const std::span<const uint8_t> octets = AsOctets(encoded);
  switch (DetectFormat(encoded)) {
    case ImageFormat::kJpeg:
      return DecodeJpeg(octets, limits, time);
    case ImageFormat::kPng:
      return DecodePng(octets, limits, time);
    case ImageFormat::kWebp:
      return DecodeWebp(octets, limits, time);
    case ImageFormat::kGif:
      return DecodeGif(octets, limits, time);
    case ImageFormat::kBmp:
      return DecodeBmp(octets, limits, time);
    case ImageFormat::kUnknown:
      break;
  }
  if (IsJpegWithoutStart(octets)) {
    return Corrupt("JPEG", "the start marker is missing");
  }
  if (encoded.size() < kMagicBytes) {
    return InvalidArgument("image_truncated", "image: too short to be one; expected a " +
                                                  std::string(kAccepted) + " file, found " +
                                                  std::to_string(encoded.size()) + " bytes");
  }
  return Error(absl::StatusCode::kUnimplemented, "image_format_unsupported",
               "image: format not supported; expected " + std::string(kAccepted) + ", found " +
                   NameOfForeign(octets));
}

}  // namespace

absl::StatusOr<RgbImage> Decode(std::span<const std::byte> encoded, const DecodeLimits& limits) {
  TimeLimit time(limits.cpu_time_max);
  absl::StatusOr<RgbImage> image = DecodeWithin(encoded, limits, time);
  // What a decoder says that was stopped is not about the file.
  if (time.IsOver()) {
    return InvalidArgument(
        "image_decode_timeout",
        "image: too long to decode; expected at most " +
            std::to_string(
                std::chrono::ceil<std::chrono::milliseconds>(limits.cpu_time_max).count()) +
            " ms of one core");
  }
  return image;
}

}  // namespace conclave::image
