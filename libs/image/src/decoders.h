// The decoder of each format. `encoded` starts with the format's magic bytes; limits other than the
// encoded size are the decoder's to check. A decoder that finds its time over stops with any error:
// Decode, which owns `time`, knows why.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "conclave/image/image.h"
#include "time_limit.h"

namespace conclave::image {

absl::StatusOr<RgbImage> DecodeBmp(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                   TimeLimit& time);
absl::StatusOr<RgbImage> DecodeGif(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                   TimeLimit& time);
absl::StatusOr<RgbImage> DecodeJpeg(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                    TimeLimit& time);
absl::StatusOr<RgbImage> DecodePng(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                   TimeLimit& time);
absl::StatusOr<RgbImage> DecodeWebp(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                    TimeLimit& time);

}  // namespace conclave::image
