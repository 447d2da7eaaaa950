// Pillow's bicubic resampling (spec 3.2) of a picture on a virtual canvas, for a window of the
// result only.
#pragma once

#include <array>
#include <cstdint>

#include "conclave/image/image.h"

namespace conclave::image {

// `image` pasted at (left, top) of a canvas of one colour; it lies wholly inside. The canvas is
// never built.
struct Canvas {
  const RgbImage& image;
  int32_t width = 0;
  int32_t height = 0;
  int32_t left = 0;
  int32_t top = 0;
  std::array<uint8_t, 3> colour{};
};

// Part of an axis that is resized to `resized` positions: positions [first, first + count) of
// those.
struct Window {
  int32_t resized = 0;
  int32_t first = 0;
  int32_t count = 0;
};

// The picture [vertical.count, horizontal.count, 3] that resizing the whole canvas and cutting the
// windows out would give, byte for byte.
RgbImage Resample(const Canvas& canvas, const Window& horizontal, const Window& vertical);

}  // namespace conclave::image
