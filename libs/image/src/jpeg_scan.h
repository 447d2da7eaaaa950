// A walk over the markers of a JPEG before any of it is decoded. Checks what the decoding library
// would forgive (a missing end, tables that were never sent, a component without data), what it
// would pay for (dimensions, scans) and what this project does not take (processes other than
// baseline and progressive Huffman with 8 bits).
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "conclave/image/image.h"

namespace conclave::image {

struct JpegLayout {
  int32_t width = 0;
  int32_t height = 0;
  int32_t num_components = 0;  // 1, 3 or 4
  // From the start marker to the end marker, both included.
  std::span<const uint8_t> picture;
};

// `picture` points into `encoded`, which starts with FF D8.
absl::StatusOr<JpegLayout> ScanJpeg(std::span<const uint8_t> encoded, const DecodeLimits& limits);

}  // namespace conclave::image
