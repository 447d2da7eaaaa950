// Pictures: decode, fit, resize and normalise, byte for byte as Pillow and the original's
// processors do (spec 3.1, 3.2).
//
// All functions are pure: any thread, no state, no files, and no clock unless a limit of time is
// set. Only DetectFormat, DecodeBytes and Decode take bytes from outside; what Decode returns is
// well formed, so the functions after it treat a malformed argument as a broken invariant.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::image {

// 8-bit RGB, row-major, no padding between rows.
struct RgbImage {
  int32_t width = 0;
  int32_t height = 0;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};

// All but the last are checked against the header before anything is decoded, so a refused picture
// costs neither memory nor time.
struct DecodeLimits {
  // The file as it came.
  int64_t encoded_bytes_max = int64_t{10} << 20;
  // Either edge, in pixels.
  int32_t side_max = 8192;
  // Width times height. Decoding needs 3 bytes of result per pixel, and up to 8 more for a
  // progressive JPEG.
  int64_t pixels_max = 32'000'000;
  // Long edge to short edge: a padded picture of ratio r is (r − 1) / r padding, useless to a model
  // long before this.
  int32_t aspect_ratio_max = 100;
  // Each scan of a JPEG visits the whole picture again, however few bytes it has.
  int32_t jpeg_scans_max = 100;
  // Ignored bytes after the end of the picture. Longer tails are other files riding along.
  int64_t trailing_bytes_max = 64 << 10;
  // CPU time of the calling thread, which waiting for a core does not lengthen; 0: any, and then
  // the result is a function of the bytes alone. Decoders look at it every few rows, WebP's every
  // 64 KiB of the file, and stop there.
  std::chrono::nanoseconds cpu_time_max{0};
};

enum class ImageFormat { kUnknown, kJpeg, kPng, kWebp, kGif, kBmp };

// By the first bytes (JPEG: FF D8; PNG: 89 "PNG"; WebP: "RIFF" and "WEBP"; GIF: "GIF87a" or
// "GIF89a"; BMP: "BM" and, at byte 14, a known size of its header), never by name or MIME type.
// Says nothing about the rest.
ImageFormat DetectFormat(std::span<const std::byte> encoded);

// An upper bound of the memory that Decode takes for this file, result and working memory
// together, told from its header without decoding: for admission. What will be refused anyway, and
// files whose header does not say, count as the largest picture within the limits. Not counted:
// tables of some KB, and those of a lossless WebP, which are 12 to 20 KB for each of the groups of
// Huffman codes that the file has, 65,536 at most.
int64_t DecodeBytes(std::span<const std::byte> encoded, const DecodeLimits& limits);

// Decodes to RGB as Pillow's convert("RGB") would; no EXIF rotation, no colour management. A
// picture comes whole or not at all: missing data is an error, never grey fill.
//
// JPEG: baseline and progressive Huffman, 8 bits; grey, YCbCr, RGB, CMYK and YCCK (taken as
// inverted, as Pillow does).
//
// PNG: all colour types and depths, interlaced too; alpha and transparency are dropped, 16 bits
// keep the high byte, but 16-bit grey is clipped at 255; of an animation the default picture.
// Ancillary chunks are not even read. More than a little data behind the last row is corrupt.
//
// WebP: stills, lossy and lossless; alpha is dropped.
//
// GIF: the first frame, on a canvas of the screen's size (a frame that leaves it makes it larger).
// Transparency is dropped; what the frame leaves free has the colour of the transparent index, or
// of index 0. Frames after it are not decoded, but the file must hold them whole.
//
// BMP: uncompressed, 1, 4, 8, 16, 24 and 32 bits, bottom-up and top-down; alpha is dropped. Headers
// and colour masks are those that Pillow takes.
//
// Where Pillow 12 misreads a file, this does not: a BMP of 4 bits with a palette of the greys 0 to
// 15; a BMP of 4 or 8 bits with a palette of only black and white; a GIF frame with a palette of
// greys on a screen with another palette.
//
// kInvalidArgument with one of these reasons:
//   image_empty           no bytes
//   image_too_large       more than encoded_bytes_max
//   image_truncated       the file ends before the picture does
//   image_corrupt         the file breaks its format
//   image_bad_dimensions  an edge of 0, or longer than side_max or than the format allows
//   image_too_many_pixels
//   image_aspect_ratio
//   image_too_complex     more than jpeg_scans_max scans
//   image_trailing_data   more than trailing_bytes_max after the end of the picture
//   image_decode_timeout  decoding took longer than cpu_time_max
// kUnimplemented (HTTP 415) with one of these:
//   image_format_unsupported  none of these (the message lists the accepted formats), or a BMP that
//                             is compressed or has another depth or other masks
//   image_animated            an animated WebP
//   jpeg_process_unsupported  arithmetic, lossless, hierarchical, 12 bits, or a number of
//                             components other than 1, 3, 4
// Messages are our own words; no library text reaches them.
absl::StatusOr<RgbImage> Decode(std::span<const std::byte> encoded, const DecodeLimits& limits);

// Pillow's bicubic resize, antialiased, uint8 in and out (spec 3.2). `source` is not empty; width,
// height >= 1.
RgbImage ResizeBicubic(const RgbImage& source, int32_t width, int32_t height);

enum class Fit {
  kPad,      // square canvas of the mean colour, then resize
  kCrop,     // shortest edge to size, centre crop
  kStretch,  // both edges to size
};

struct PreprocessSpec {
  int32_t size = 0;  // square, pixels
  Fit fit = Fit::kPad;
  // After padding: CLIP resizes the shortest edge and crops, SigLIP stretches; on a square canvas
  // both are a resize.
  // Of the 0..1 range, red, green, blue; the canvas colour is int(255 · mean), truncated.
  float mean[3] = {0, 0, 0};
  float std[3] = {1, 1, 1};  // > 0
};

// The uint8 picture [size, size, 3] after fitting and resizing. `source` is not empty; spec.size
// >= 1. Works without the canvas or the parts that a crop drops: memory is O(longest edge · size),
// also for a picture of extreme shape.
RgbImage FitAndResize(const RgbImage& source, const PreprocessSpec& spec);

// [3, height, width] f32, channel first: (u8 · (1/255) in double, stored as f32; (x − mean) / std
// in f32). Finite for every picture.
std::vector<float> Normalize(const RgbImage& resized, const PreprocessSpec& spec);

}  // namespace conclave::image
