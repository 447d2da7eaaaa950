#include "http/image_url.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <span>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "chat_rules.h"
#include "conclave/base/status.h"
#include "conclave/image/image.h"
#include "http/base64.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

constexpr size_t kUrlBytesMax = 8 << 10;
// "image/svg+xml;charset=utf-8;base64" and the like; anything longer is no media type.
constexpr size_t kMediaTypeBytesMax = 256;

bool HasPrefix(std::string_view text, std::string_view prefix) {
  return absl::StartsWithIgnoreCase({text.data(), text.size()}, {prefix.data(), prefix.size()});
}

bool HasSuffix(std::string_view text, std::string_view suffix) {
  return absl::EndsWithIgnoreCase({text.data(), text.size()}, {suffix.data(), suffix.size()});
}

// In lower case, without parameters.
std::string TypeOf(std::string_view media_type) {
  return absl::AsciiStrToLower(std::string(media_type.substr(0, media_type.find(';'))));
}

// The names in use: registered ones, and what old programs send.
image::ImageFormat FormatNamed(std::string_view type) {
  using image::ImageFormat;
  struct Name {
    std::string_view type;
    ImageFormat format;
  };
  static constexpr std::array kNames{
      Name{"image/jpeg", ImageFormat::kJpeg},
      Name{"image/jpg", ImageFormat::kJpeg},
      Name{"image/pjpeg", ImageFormat::kJpeg},
      Name{"image/png", ImageFormat::kPng},
      Name{"image/apng", ImageFormat::kPng},
      Name{"image/x-png", ImageFormat::kPng},
      Name{"image/vnd.mozilla.apng", ImageFormat::kPng},
      Name{"image/webp", ImageFormat::kWebp},
      Name{"image/gif", ImageFormat::kGif},
      Name{"image/bmp", ImageFormat::kBmp},
      Name{"image/x-bmp", ImageFormat::kBmp},
      Name{"image/x-ms-bmp", ImageFormat::kBmp},
  };
  for (const Name& name : kNames) {
    if (name.type == type) {
      return name.format;
    }
  }
  return ImageFormat::kUnknown;
}

// A type that says nothing ("", "application/octet-stream", "image/*") cannot be wrong, and bytes
// of no known format are refused later, whatever they are called.
bool IsMislabelled(const std::string& type, std::string_view bytes) {
  const image::ImageFormat found = image::DetectFormat(std::as_bytes(std::span(bytes)));
  return found != image::ImageFormat::kUnknown && HasPrefix(type, "image/") && type != "image/*" &&
         FormatNamed(type) != found;
}

absl::Status CheckMediaType(const std::string& type) {
  if (type == "image/svg+xml") {
    return Error(absl::StatusCode::kUnimplemented, "image_format_unsupported",
                 "SVG is not supported; expected a JPEG, PNG, WebP, GIF or BMP picture");
  }
  // A wrong image type is harmless, since the bytes decide; a type that is no image says the client
  // is confused.
  if (type.empty() || type == "application/octet-stream" || HasPrefix(type, "image/")) {
    return absl::OkStatus();
  }
  return InvalidArgument("image_url_scheme", "a data URI of type \"" + Excerpt(type) +
                                                 "\" is no picture; expected data:image/...");
}

absl::StatusOr<UrlPicture> DecodeDataUri(std::string_view rest, int64_t image_bytes_max) {
  constexpr std::string_view kMarker = ";base64";
  const size_t comma = rest.substr(0, kMediaTypeBytesMax).find(',');
  if (comma == std::string_view::npos) {
    return InvalidArgument("data_uri_malformed",
                           "no comma after the media type; expected data:image/...;base64,...");
  }
  std::string_view media_type = rest.substr(0, comma);
  const std::string_view text = rest.substr(comma + 1);
  const bool is_base64 = HasSuffix(media_type, kMarker);
  if (is_base64) {
    media_type.remove_suffix(kMarker.size());
  }
  const std::string type = TypeOf(media_type);
  CONCLAVE_RETURN_IF_ERROR(CheckMediaType(type));
  if (!is_base64) {
    return InvalidArgument("data_uri_malformed",
                           "no ;base64 before the comma; expected data:image/...;base64,...");
  }
  const auto num_bytes = static_cast<int64_t>(text.size() / 4 * 3);
  const int64_t num_pads = HasSuffix(text, "==") ? 2 : HasSuffix(text, "=") ? 1 : 0;
  // What is not empty and too short to be base64 is not called empty.
  CONCLAVE_RETURN_IF_ERROR(CheckImageBytes(
      text.empty() ? 0 : std::max<int64_t>(num_bytes - num_pads, 1), image_bytes_max));
  std::optional<std::string> bytes = DecodeBase64(text);
  if (!bytes.has_value()) {
    return InvalidArgument(
        "data_uri_malformed",
        "not base64; expected the standard alphabet, padded, without white space");
  }
  const bool is_mislabelled = IsMislabelled(type, *bytes);
  return UrlPicture{*std::move(bytes), is_mislabelled};
}

}  // namespace

absl::StatusOr<UrlPicture> DecodeImageUrl(std::string_view url, int64_t image_bytes_max) {
  constexpr std::string_view kScheme = "data:";
  if (HasPrefix(url, kScheme)) {
    return DecodeDataUri(url.substr(kScheme.size()), image_bytes_max);
  }
  if (url.size() > kUrlBytesMax) {
    return InvalidArgument("image_url_too_long", "the URL has " + std::to_string(url.size()) +
                                                     " bytes; expected at most " +
                                                     std::to_string(kUrlBytesMax));
  }
  if (HasPrefix(url, "http://") || HasPrefix(url, "https://")) {
    return InvalidArgument(
        "image_url_fetch_disabled",
        "fetching is off; expected the picture itself as data:image/...;base64,...");
  }
  return InvalidArgument("image_url_scheme", "unknown scheme; expected data:image/...;base64,...");
}

}  // namespace conclave::frontend
