#include "http/image_url.h"

#include <cstddef>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "conclave/base/status.h"
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

absl::Status CheckMediaType(std::string_view media_type) {
  const std::string type =
      absl::AsciiStrToLower(std::string(media_type.substr(0, media_type.find(';'))));
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

absl::StatusOr<std::string> DecodeDataUri(std::string_view rest, int64_t image_bytes_max) {
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
  CONCLAVE_RETURN_IF_ERROR(CheckMediaType(media_type));
  if (!is_base64) {
    return InvalidArgument("data_uri_malformed",
                           "no ;base64 before the comma; expected data:image/...;base64,...");
  }
  if (text.empty()) {
    return InvalidArgument("image_empty", "the data URI holds no bytes");
  }
  const auto num_bytes = static_cast<int64_t>(text.size() / 4 * 3);
  const int64_t num_pads = HasSuffix(text, "==") ? 2 : HasSuffix(text, "=") ? 1 : 0;
  if (num_bytes - num_pads > image_bytes_max) {
    return InvalidArgument("image_too_large",
                           "the picture has " + std::to_string(num_bytes - num_pads) +
                               " bytes; expected at most " + std::to_string(image_bytes_max));
  }
  std::optional<std::string> bytes = DecodeBase64(text);
  if (!bytes.has_value()) {
    return InvalidArgument(
        "data_uri_malformed",
        "not base64; expected the standard alphabet, padded, without white space");
  }
  return *std::move(bytes);
}

}  // namespace

absl::StatusOr<std::string> DecodeImageUrl(std::string_view url, int64_t image_bytes_max) {
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
