// What the decoders say about a file, in one place so that all say it alike. `format` is "JPEG",
// "PNG" and so on.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "conclave/image/image.h"

namespace conclave::image {

absl::Status Corrupt(const std::string& format, const std::string& why);
absl::Status Truncated(const std::string& format, const std::string& why);
// What a decoder says that found its time over; Decode puts the real reason in its place.
absl::Status Stopped(const std::string& format);

// Judges the dimensions as a header gives them, before anything is allocated for them. In 64 bits:
// the product of two 32-bit edges does not overflow.
absl::Status CheckDimensions(const std::string& format, uint32_t width, uint32_t height,
                             const DecodeLimits& limits);

// `trailing_bytes` follow the end of the picture.
absl::Status CheckTrailing(const std::string& format, size_t trailing_bytes,
                           const DecodeLimits& limits);

}  // namespace conclave::image
