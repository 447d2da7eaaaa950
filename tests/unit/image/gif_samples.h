// GIF files made byte by byte, right or wrong on purpose.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "files.h"

namespace conclave::image {

struct GifSpec {
  uint16_t width = 4;  // of the screen
  uint16_t height = 4;
  uint16_t left = 0;
  uint16_t top = 0;
  uint16_t frame_width = 4;
  uint16_t frame_height = 4;
  bool is_interlaced = false;
  std::vector<uint8_t> palette = {};        // of the screen: empty, or 3 · a power of two bytes
  std::vector<uint8_t> frame_palette = {};  // of the frame, in the same way
  std::optional<uint8_t> transparent = {};
  uint8_t code_bits = 3;             // of a pixel
  std::vector<uint8_t> pixels = {};  // [frame_height, frame_width] indices; empty: 0, 1, 2, …
};

// Header, palettes and frame, without the terminator.
Bytes GifWithoutEnd(const GifSpec& spec);
// The frame alone, to be appended.
Bytes GifFrame(const GifSpec& spec);
// With the terminator.
Bytes MakeGif(const GifSpec& spec);

// `stream` in parts of at most 255 bytes, with the empty one.
Bytes GifParts(const Bytes& stream);
// Codes of `width` bits each, the first in the lowest bits.
Bytes GifCodes(const std::vector<uint32_t>& codes, int width);

}  // namespace conclave::image
