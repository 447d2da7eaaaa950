#include <algorithm>
#include <cstdint>

#include "conclave/base/check.h"
#include "conclave/image/image.h"
#include "resample.h"
#include "row_ops.h"

namespace conclave::image {
namespace {

void CheckWellFormed(const RgbImage& image) {
  CONCLAVE_CHECK(image.width >= 1 && image.height >= 1);
  CONCLAVE_CHECK(image.pixels.size() ==
                 size_t{3} * static_cast<size_t>(image.width) * static_cast<size_t>(image.height));
}

// In f32: 255 times a mean that was written as k/255 then rounds to k, as it does in the original's
// f64, although the f32 mean lies a little below.
uint8_t PadValue(float mean) {
  return static_cast<uint8_t>(std::clamp(mean * 255.0F, 0.0F, 255.0F));
}

Canvas Unpadded(const RgbImage& image) {
  return {.image = image, .width = image.width, .height = image.height};
}

RgbImage Pad(const RgbImage& source, const PreprocessSpec& spec) {
  const int32_t side = std::max(source.width, source.height);
  const Canvas canvas{
      .image = source,
      .width = side,
      .height = side,
      .left = (side - source.width) / 2,
      .top = (side - source.height) / 2,
      .colour = {PadValue(spec.mean[0]), PadValue(spec.mean[1]), PadValue(spec.mean[2])}};
  const Window whole{.resized = spec.size, .first = 0, .count = spec.size};
  return Resample(canvas, whole, whole);
}

// The part of an axis of `edge` pixels that the centre crop keeps.
Window Cropped(int32_t edge, int32_t shortest_edge, int32_t size) {
  const auto resized = static_cast<int32_t>(int64_t{size} * edge / shortest_edge);
  return {.resized = resized, .first = (resized - size) / 2, .count = size};
}

RgbImage Crop(const RgbImage& source, int32_t size) {
  const int32_t shortest_edge = std::min(source.width, source.height);
  return Resample(Unpadded(source), Cropped(source.width, shortest_edge, size),
                  Cropped(source.height, shortest_edge, size));
}

}  // namespace

RgbImage ResizeBicubic(const RgbImage& source, int32_t width, int32_t height) {
  CheckWellFormed(source);
  CONCLAVE_CHECK(width >= 1 && height >= 1);
  return Resample(Unpadded(source), {.resized = width, .first = 0, .count = width},
                  {.resized = height, .first = 0, .count = height});
}

RgbImage FitAndResize(const RgbImage& source, const PreprocessSpec& spec) {
  CheckWellFormed(source);
  CONCLAVE_CHECK(spec.size >= 1);
  switch (spec.fit) {
    case Fit::kPad:
      return Pad(source, spec);
    case Fit::kCrop:
      return Crop(source, spec.size);
    case Fit::kStretch:
      break;
  }
  return ResizeBicubic(source, spec.size, spec.size);
}

std::vector<float> Normalize(const RgbImage& resized, const PreprocessSpec& spec) {
  CheckWellFormed(resized);
  const int64_t num_pixels = int64_t{resized.width} * resized.height;
  std::vector<float> out(static_cast<size_t>(3 * num_pixels));
  float* plane[3];
  for (int c = 0; c < 3; ++c) {
    CONCLAVE_CHECK(spec.std[c] > 0);
    plane[c] = out.data() + c * num_pixels;
  }
  CurrentRowOps().normalize(resized.pixels.data(), num_pixels, spec.mean, spec.std, plane);
  return out;
}

}  // namespace conclave::image
