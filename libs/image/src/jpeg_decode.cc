// jpeglib.h uses size_t and FILE without including their headers, and jerror.h uses jpeglib.h.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
#include <jerror.h>
// clang-format on

#include <csetjmp>
#include <cstdint>
#include <span>
#include <vector>

#include "conclave/base/status.h"
#include "decoders.h"
#include "jpeg_scan.h"
#include "verdict.h"

namespace conclave::image {
namespace {

constexpr char kFormat[] = "JPEG";

// (a · b) / 255, rounded, as Pillow computes it.
int MulDiv255(int a, int b) {
  const int t = a * b + 128;
  return (t + (t >> 8)) >> 8;
}

// Adobe's programs store CMYK inverted, and Pillow takes every CMYK JPEG to be so; spec 3.1.
void ConvertInvertedCmyk(const uint8_t* row, int64_t num_pixels, uint8_t* out) {
  for (int64_t i = 0; i < num_pixels; ++i) {
    const int white = row[4 * i + 3];  // 255 − K
    for (int64_t c = 0; c < 3; ++c) {
      const int ink = 255 - row[4 * i + c];
      // MulDiv255 of two numbers up to 255 is at most the smaller one.
      out[3 * i + c] = static_cast<uint8_t>(white - MulDiv255(ink, white));
    }
  }
}

void ConvertGrey(const uint8_t* row, int64_t num_pixels, uint8_t* out) {
  for (int64_t i = 0; i < num_pixels; ++i) {
    out[3 * i] = out[3 * i + 1] = out[3 * i + 2] = row[i];
  }
}

// A warning after which every pixel is still what the file says.
bool IsHarmless(int message_code) {
  switch (message_code) {
    case JWRN_ADOBE_XFORM:      // unknown colour transform: the usual one is taken
    case JWRN_EXTRANEOUS_DATA:  // noise between segments
    case JWRN_JFIF_MAJOR:       // unknown version of a header that has no influence
    case JWRN_NOT_SEQUENTIAL:   // unused fields of a scan header
      return true;
    default:
      return false;
  }
}

// libjpeg on one file. libjpeg leaves by longjmp: no function below that calls it, or is called by
// it, may hold an object with a destructor.
class JpegReader {
 public:
  // Both outlive it.
  JpegReader(const JpegLayout& layout, TimeLimit& time) : layout_(layout), time_(time) {
    cinfo_.err = jpeg_std_error(&errors_);
    cinfo_.client_data = this;
    errors_.error_exit = OnError;
    errors_.emit_message = OnMessage;
    errors_.output_message = [](j_common_ptr) {};
    progress_.progress_monitor = OnProgress;
  }
  ~JpegReader() { jpeg_destroy_decompress(&cinfo_); }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;

  // False if the library does not see the picture that the scan saw.
  bool ReadHeader() {
    if (setjmp(on_error_) != 0) {
      return false;
    }
    jpeg_create_decompress(&cinfo_);
    cinfo_.progress = &progress_;
    jpeg_mem_src(&cinfo_, layout_.picture.data(),
                 static_cast<unsigned long>(layout_.picture.size()));  // NOLINT(google-runtime-int)
    jpeg_read_header(&cinfo_, TRUE);
    switch (layout_.num_components) {
      case 1:
        cinfo_.out_color_space = JCS_GRAYSCALE;
        break;
      case 4:
        cinfo_.out_color_space = JCS_CMYK;
        break;
      default:
        cinfo_.out_color_space = JCS_RGB;
        break;
    }
    cinfo_.dct_method = JDCT_ISLOW;
    cinfo_.do_fancy_upsampling = TRUE;
    return cinfo_.image_width == static_cast<JDIMENSION>(layout_.width) &&
           cinfo_.image_height == static_cast<JDIMENSION>(layout_.height) &&
           cinfo_.num_components == layout_.num_components;
  }

  // Fills out[height, width, 3]; `row` has width · num_components bytes. False if the data are
  // damaged or the time is over.
  bool ReadPixels(uint8_t* row, uint8_t* out) {
    if (setjmp(on_error_) != 0) {
      return false;
    }
    jpeg_start_decompress(&cinfo_);
    while (cinfo_.output_scanline < cinfo_.output_height) {
      uint8_t* out_row = out + int64_t{3} * layout_.width * cinfo_.output_scanline;
      uint8_t* target = layout_.num_components == 3 ? out_row : row;
      jpeg_read_scanlines(&cinfo_, &target, 1);
      if (layout_.num_components == 1) {
        ConvertGrey(row, layout_.width, out_row);
      } else if (layout_.num_components == 4) {
        ConvertInvertedCmyk(row, layout_.width, out_row);
      }
    }
    jpeg_finish_decompress(&cinfo_);
    return true;
  }

 private:
  [[noreturn]] static void OnError(j_common_ptr cinfo) {
    std::longjmp(static_cast<JpegReader*>(cinfo->client_data)->on_error_, 1);
  }

  // Where data are missing or wrong the library warns, fills in grey and goes on; that is the end
  // here.
  static void OnMessage(j_common_ptr cinfo, int level) {
    if (level < 0 && !IsHarmless(cinfo->err->msg_code)) {
      OnError(cinfo);
    }
  }

  // Called before every row of blocks, in each scan of a progressive picture and in the output.
  static void OnProgress(j_common_ptr cinfo) {
    auto* self = static_cast<JpegReader*>(cinfo->client_data);
    if (self->time_.IsOverAfter(int64_t{DCTSIZE} * self->layout_.width)) {
      OnError(cinfo);
    }
  }

  const JpegLayout& layout_;
  TimeLimit& time_;
  jpeg_progress_mgr progress_{};
  std::jmp_buf on_error_{};
  jpeg_error_mgr errors_{};
  jpeg_decompress_struct cinfo_{};
};

}  // namespace

absl::StatusOr<RgbImage> DecodeJpeg(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                    TimeLimit& time) {
  CONCLAVE_ASSIGN_OR_RETURN(const JpegLayout layout, ScanJpeg(encoded, limits));
  JpegReader reader(layout, time);
  if (!reader.ReadHeader()) {
    return Corrupt(kFormat, "unreadable header");
  }
  std::vector<uint8_t> row(static_cast<size_t>(layout.width) * layout.num_components);
  RgbImage image{layout.width, layout.height, {}};
  image.pixels.resize(size_t{3} * layout.width * layout.height);
  if (!reader.ReadPixels(row.data(), image.pixels.data())) {
    return Corrupt(kFormat, "damaged picture data");
  }
  return image;
}

}  // namespace conclave::image
