// The picture behind an image_url. Only data URIs (RFC 2397, base64): nothing is ever fetched.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace conclave::frontend {

struct UrlPicture {
  std::string bytes;  // encoded: JPEG, PNG, ...; what it is, its own magic decides
  // The URI's media type is of a picture, but not of what the bytes begin like. Harmless, and a
  // sign of a client that is confused.
  bool is_mislabelled = false;
};

// Reasons:
//   image_url_fetch_disabled  http or https
//   image_url_scheme          another scheme, none, or a data URI whose media type is no image
//   image_url_too_long        more than 8 KiB and no data URI
//   data_uri_malformed        no ";base64,", or not canonical base64 of the standard alphabet
//   image_empty, image_too_large   0 bytes; more than `image_bytes_max`, found before decoding
//   image_format_unsupported  SVG; kUnimplemented, the others are kInvalidArgument
absl::StatusOr<UrlPicture> DecodeImageUrl(std::string_view url, int64_t image_bytes_max);

}  // namespace conclave::frontend
