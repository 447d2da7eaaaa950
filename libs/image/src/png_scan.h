// A walk over the chunks of a PNG before any of it is decoded: finds every fault that the structure
// can show, checks the dimensions, and says which bytes the decoder needs. Everything else (text,
// colour profiles, animation frames) is stepped over by its length and never read, so nothing in it
// can be a bomb.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/image/image.h"

namespace conclave::image {

inline constexpr size_t kPngSignatureBytes = 8;

enum class PngColour : uint8_t {
  kGrey = 0,
  kRgb = 2,
  kPalette = 3,
  kGreyAlpha = 4,
  kRgbAlpha = 6,
};

struct PngLayout {
  int32_t width = 0;
  int32_t height = 0;
  int32_t bit_depth = 0;  // of one sample: 1, 2, 4, 8, 16
  PngColour colour = PngColour::kGrey;
  bool interlaced = false;
  // Indices beyond the file's palette are black, as in Pillow.
  std::array<std::array<uint8_t, 3>, 256> palette{};
  // Signature, IHDR, PLTE (palette pictures only), IDAT and IEND as they lie in the file: at most
  // four runs.
  std::vector<std::span<const uint8_t>> needed;
};

// The runs point into `encoded`. Checksums of the chunks that are needed have been verified, those
// of others ignored.
absl::StatusOr<PngLayout> ScanPng(std::span<const uint8_t> encoded, const DecodeLimits& limits);

}  // namespace conclave::image
