// Pictures: decode, fit, resize and normalise, byte for byte as Pillow and the original's processors do (spec 3.1, 3.2).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::image {

// 8-bit RGB, row-major, no padding between rows.
struct RgbImage {
  int32_t width = 0;
  int32_t height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};

// Checked against the header before anything is decoded.
struct DecodeLimits {
  int64_t encoded_bytes_max = int64_t{10} << 20;
  int32_t side_max = 8192;
  int64_t pixels_max = 32'000'000;
  int32_t aspect_ratio_max = 100;
  int32_t jpeg_scans_max = 100;
  int64_t trailing_bytes_max = 64 << 10;
};

enum class ImageFormat { kUnknown, kJpeg, kPng };

// By magic bytes, never by name or MIME type.
ImageFormat DetectFormat(std::span<const std::byte> encoded);

// Decodes to RGB as Pillow's convert("RGB") would; no EXIF rotation, no colour management. Reasons: image_empty,
// image_format_unsupported, image_truncated, image_corrupt, image_bad_dimensions, image_too_many_pixels,
// image_aspect_ratio, image_too_large, image_too_complex, jpeg_process_unsupported, image_trailing_data. No library
// text reaches the message. kInvalidArgument, or kUnimplemented for what maps to HTTP 415.
absl::StatusOr<RgbImage> Decode(std::span<const std::byte> encoded, const DecodeLimits& limits);

// Pillow's bicubic resize, antialiased, uint8 in and out (spec 3.2).
RgbImage ResizeBicubic(const RgbImage& source, int32_t width, int32_t height);

enum class Fit {
  kPad,      // square canvas of the mean colour, then resize
  kCrop,     // shortest edge to size, centre crop
  kStretch,  // both edges to size
};

struct PreprocessSpec {
  int32_t size = 0;  // square, pixels
  Fit fit = Fit::kPad;
  // After padding: CLIP resizes the shortest edge and crops, SigLIP stretches; on a square canvas both are a resize.
  float mean[3] = {0, 0, 0};
  float std[3] = {1, 1, 1};
};

// The uint8 picture [size, size, 3] after fitting and resizing.
RgbImage FitAndResize(const RgbImage& source, const PreprocessSpec& spec);

// [3, size, size] f32, channel first: (u8 · (1/255) in double, stored as f32; (x − mean) / std in f32).
std::vector<float> Normalize(const RgbImage& resized, const PreprocessSpec& spec);

}  // namespace conclave::image
