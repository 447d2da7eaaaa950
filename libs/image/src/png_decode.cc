#include <png.h>

#include <algorithm>
#include <csetjmp>
#include <cstring>
#include <span>
#include <vector>

#include "byte_order.h"
#include "conclave/base/status.h"
#include "decoders.h"
#include "png_scan.h"
#include "verdict.h"

namespace conclave::image {
namespace {

constexpr char kFormat[] = "PNG";
constexpr size_t kChunkHeaderBytes = 8;
// What a row may take of the file beyond 9/8 of its size, the worst that deflate does to noise: its
// tables, and what libpng reads ahead.
constexpr size_t kRowDataSlack = 16 << 10;

template <typename Convert>
void EachPixel(const uint8_t* row, int64_t num_pixels, int64_t pixel_bytes, uint8_t* out,
               int64_t out_step, Convert convert) {
  for (int64_t i = 0; i < num_pixels; ++i) {
    convert(row + i * pixel_bytes, out + i * out_step);
  }
}

void StoreGrey(uint8_t value, uint8_t* out) { out[0] = out[1] = out[2] = value; }

// Pillow's convert("RGB"), spec 3.1. `row` has one byte per sample (two, high first, at a depth of
// 16); `out_step` is the distance in bytes between neighbours in `out`.
void ConvertRow(const PngLayout& layout, const uint8_t* row, int64_t num_pixels, uint8_t* out,
                int64_t out_step) {
  const int64_t sample_bytes = layout.bit_depth == 16 ? 2 : 1;
  switch (layout.colour) {
    case PngColour::kGrey:
      if (layout.bit_depth == 16) {
        // Pillow reads this kind as integers and clips them at 255; it does not scale.
        EachPixel(row, num_pixels, 2, out, out_step, [](const uint8_t* in, uint8_t* rgb) {
          StoreGrey(in[0] != 0 ? 255 : in[1], rgb);
        });
      } else {
        const auto scale = static_cast<uint8_t>(255 / ((1 << layout.bit_depth) - 1));
        EachPixel(row, num_pixels, 1, out, out_step, [scale](const uint8_t* in, uint8_t* rgb) {
          StoreGrey(static_cast<uint8_t>(in[0] * scale), rgb);
        });
      }
      return;
    case PngColour::kGreyAlpha:
      EachPixel(row, num_pixels, 2 * sample_bytes, out, out_step,
                [](const uint8_t* in, uint8_t* rgb) { StoreGrey(in[0], rgb); });
      return;
    case PngColour::kPalette:
      EachPixel(row, num_pixels, 1, out, out_step, [&layout](const uint8_t* in, uint8_t* rgb) {
        std::memcpy(rgb, layout.palette[in[0]].data(), 3);
      });
      return;
    case PngColour::kRgb:
    case PngColour::kRgbAlpha: {
      const int num_samples = layout.colour == PngColour::kRgb ? 3 : 4;
      EachPixel(row, num_pixels, num_samples * sample_bytes, out, out_step,
                [sample_bytes](const uint8_t* in, uint8_t* rgb) {
                  rgb[0] = in[0];
                  rgb[1] = in[sample_bytes];
                  rgb[2] = in[2 * sample_bytes];
                });
      return;
    }
  }
}

// libpng on the needed runs of one file. libpng leaves by longjmp: no function below that calls it,
// or is called by it, may hold an object with a destructor.
class PngReader {
 public:
  // Both outlive it.
  PngReader(const PngLayout& layout, TimeLimit& time)
      : layout_(layout),
        time_(time),
        png_(png_create_read_struct(PNG_LIBPNG_VER_STRING, this, OnError, OnWarning)),
        info_(png_ != nullptr ? png_create_info_struct(png_) : nullptr) {}
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;

  // Bytes of one unpacked row of the full width; 0 if libpng refuses the header.
  size_t ReadHeader() {
    if (info_ == nullptr || setjmp(on_error_) != 0) {
      return 0;
    }
    png_set_read_fn(png_, this, OnRead);
    png_set_user_limits(png_, static_cast<png_uint_32>(layout_.width),
                        static_cast<png_uint_32>(layout_.height));
    // The scan has verified all checksums.
    png_set_crc_action(png_, PNG_CRC_QUIET_USE, PNG_CRC_QUIET_USE);
    png_read_info(png_, info_);
    png_set_packing(png_);
    png_read_update_info(png_, info_);
    const size_t row_bytes = png_get_rowbytes(png_, info_);
    row_data_max_ = row_bytes + row_bytes / 8 + kRowDataSlack;
    return row_bytes;
  }

  // Fills out[height, width, 3]; `row` has the size that ReadHeader gave. False if the data are
  // damaged or the time is over.
  bool ReadPixels(uint8_t* row, uint8_t* out) {
    if (setjmp(on_error_) != 0) {
      return false;
    }
    // The rows of each pass are taken as they come and spread over `out`: libpng's own way would
    // need the whole picture in its raw form, at 8 bytes per pixel.
    const int num_passes = layout_.interlaced ? PNG_INTERLACE_ADAM7_PASSES : 1;
    for (int pass = 0; pass < num_passes; ++pass) {
      const Grid grid = layout_.interlaced ? Adam7(pass) : Grid{};
      if (grid.left >= layout_.width || grid.top >= layout_.height) {
        continue;
      }
      const int64_t num_pixels = (layout_.width - grid.left + grid.step_x - 1) / grid.step_x;
      for (int64_t y = grid.top; y < layout_.height; y += grid.step_y) {
        if (time_.IsOverAfter(num_pixels)) {
          return false;
        }
        row_data_left_ = row_data_max_;
        png_read_row(png_, row, nullptr);
        ConvertRow(layout_, row, num_pixels, out + (y * layout_.width + grid.left) * 3,
                   int64_t{3} * grid.step_x);
      }
    }
    return true;
  }

 private:
  struct Grid {
    int32_t left = 0;
    int32_t top = 0;
    int32_t step_x = 1;
    int32_t step_y = 1;
  };

  static Grid Adam7(int pass) {
    return {PNG_PASS_START_COL(pass), PNG_PASS_START_ROW(pass), PNG_PASS_COL_OFFSET(pass),
            PNG_PASS_ROW_OFFSET(pass)};
  }

  static void OnRead(png_structp png, png_bytep out, png_size_t num_bytes) {
    auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
    self->CountData(num_bytes);
    const png_bytep begin = out;
    const png_size_t num_asked = num_bytes;
    while (num_bytes > 0) {
      if (self->run_ == self->layout_.needed.size()) {
        png_error(png, "end of data");
      }
      const std::span<const uint8_t>& run = self->layout_.needed[self->run_];
      const size_t available = run.size() - self->run_offset_;
      const size_t taken = num_bytes < available ? num_bytes : available;
      std::memcpy(out, run.data() + self->run_offset_, taken);
      out += taken;
      num_bytes -= taken;
      self->run_offset_ += taken;
      if (self->run_offset_ == run.size()) {
        ++self->run_;
        self->run_offset_ = 0;
      }
    }
    self->FollowChunks(begin, num_asked);
  }

  // libpng reads a signature of 8 bytes; then, for each chunk, 8 bytes of length and type, the body
  // in pieces, and 4 bytes of checksum. These two follow it: they know which bytes are a body's.
  void CountData(size_t num_bytes) {
    if (body_left_ == 0 || row_data_max_ == 0) {
      return;
    }
    if (num_bytes > row_data_left_) {
      png_error(png_, "too much data for a row");
    }
    row_data_left_ -= num_bytes;
  }

  void FollowChunks(const uint8_t* bytes, size_t num_bytes) {
    if (body_left_ > 0) {
      body_left_ -= std::min(num_bytes, body_left_);
    } else if (has_signature_ && num_bytes == kChunkHeaderBytes) {
      body_left_ = ReadU32(bytes);
    }
    has_signature_ = true;
  }

  [[noreturn]] static void OnError(png_structp png, png_const_charp) {
    std::longjmp(static_cast<PngReader*>(png_get_error_ptr(png))->on_error_, 1);
  }

  // What libpng only warns about leaves every pixel defined: surplus data after the last row,
  // mostly.
  static void OnWarning(png_structp, png_const_charp) {}

  const PngLayout& layout_;
  TimeLimit& time_;
  // After the last row libpng inflates what is left of the data, to throw it away. A file of the
  // allowed size could hold 10 GiB of that, so each row may take so much of the file and no more.
  size_t row_data_max_ = 0;  // 0 while the header is read
  size_t row_data_left_ = 0;
  size_t body_left_ = 0;  // of the chunk that is being read
  bool has_signature_ = false;
  size_t run_ = 0;
  size_t run_offset_ = 0;
  std::jmp_buf on_error_{};
  png_structp png_;
  png_infop info_;
};

}  // namespace

absl::StatusOr<RgbImage> DecodePng(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                   TimeLimit& time) {
  CONCLAVE_ASSIGN_OR_RETURN(const PngLayout layout, ScanPng(encoded, limits));
  PngReader reader(layout, time);
  const size_t row_bytes = reader.ReadHeader();
  if (row_bytes == 0) {
    return Corrupt(kFormat, "unreadable header");
  }
  std::vector<uint8_t> row(row_bytes);
  RgbImage image{layout.width, layout.height, {}};
  image.pixels.resize(size_t{3} * layout.width * layout.height);
  if (!reader.ReadPixels(row.data(), image.pixels.data())) {
    return Corrupt(kFormat, "damaged picture data");
  }
  return image;
}

}  // namespace conclave::image
