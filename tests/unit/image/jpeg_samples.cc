// jpeglib.h uses size_t and FILE without including their headers.
// clang-format off
#include <cstdio>
#include <jpeglib.h>
// clang-format on

#include "jpeg_samples.h"

#include <algorithm>
#include <cstdlib>
#include <random>

namespace conclave::image {
namespace {

constexpr uint8_t kEoi = 0xD9;
constexpr uint8_t kSos = 0xDA;

struct Layout {
  int num_components;
  J_COLOR_SPACE in;
  J_COLOR_SPACE stored;
};

Layout LayoutOf(JpegColour colour) {
  switch (colour) {
    case JpegColour::kGrey:
      return {1, JCS_GRAYSCALE, JCS_GRAYSCALE};
    case JpegColour::kYcc:
      return {3, JCS_RGB, JCS_YCbCr};
    case JpegColour::kRgb:
      return {3, JCS_RGB, JCS_RGB};
    case JpegColour::kCmyk:
      return {4, JCS_CMYK, JCS_CMYK};
    case JpegColour::kYcck:
      break;
  }
  return {4, JCS_CMYK, JCS_YCCK};
}

}  // namespace

Bytes EncodeJpeg(const JpegOptions& options) {
  const Layout layout = LayoutOf(options.colour);
  jpeg_compress_struct cinfo{};
  jpeg_error_mgr errors{};
  cinfo.err = jpeg_std_error(&errors);
  jpeg_create_compress(&cinfo);
  unsigned char* out = nullptr;
  unsigned long out_bytes = 0;  // NOLINT(google-runtime-int): the library's type
  jpeg_mem_dest(&cinfo, &out, &out_bytes);
  cinfo.image_width = static_cast<JDIMENSION>(options.width);
  cinfo.image_height = static_cast<JDIMENSION>(options.height);
  cinfo.input_components = layout.num_components;
  cinfo.in_color_space = layout.in;
  jpeg_set_defaults(&cinfo);
  jpeg_set_colorspace(&cinfo, layout.stored);
  jpeg_set_quality(&cinfo, options.quality, TRUE);
  cinfo.comp_info[0].h_samp_factor = options.luma_sampling;
  cinfo.comp_info[0].v_samp_factor = options.luma_sampling;
  cinfo.restart_interval = static_cast<unsigned>(options.restart_interval);
  if (options.is_progressive) {
    jpeg_simple_progression(&cinfo);
  }
  jpeg_start_compress(&cinfo, TRUE);
  std::mt19937 random(99);
  Bytes row(static_cast<size_t>(options.width * layout.num_components));
  while (cinfo.next_scanline < cinfo.image_height) {
    for (size_t i = 0; i < row.size(); ++i) {
      row[i] = options.flat ? (*options.flat)[i % options.flat->size()]
                            : static_cast<uint8_t>(random() >> 24);
    }
    JSAMPROW pointer = row.data();
    jpeg_write_scanlines(&cinfo, &pointer, 1);
  }
  jpeg_finish_compress(&cinfo);
  jpeg_destroy_compress(&cinfo);
  Bytes file(out, out + out_bytes);
  std::free(out);
  return file;
}

std::vector<JpegSegment> SegmentsOf(const Bytes& jpeg) {
  std::vector<JpegSegment> segments;
  size_t offset = 2;
  while (offset + 4 <= jpeg.size() && jpeg[offset + 1] != kEoi) {
    const size_t size = 2U + (size_t{jpeg[offset + 2]} << 8 | jpeg[offset + 3]);
    segments.push_back({jpeg[offset + 1], offset, size});
    offset += size;
    if (segments.back().marker == kSos) {
      const auto is_data = [&jpeg](size_t i) {
        const uint8_t next = jpeg[i + 1];
        return jpeg[i] != 0xFF || next == 0 || (next >= 0xD0 && next <= 0xD7);
      };
      while (offset + 1 < jpeg.size() && is_data(offset)) {
        ++offset;
      }
    }
  }
  return segments;
}

JpegSegment FindSegment(const Bytes& jpeg, uint8_t marker) {
  for (const JpegSegment& segment : SegmentsOf(jpeg)) {
    if (segment.marker == marker) {
      return segment;
    }
  }
  return {};
}

Bytes MakeSegment(uint8_t marker, const Bytes& body) {
  const size_t length = body.size() + 2;
  Bytes segment{0xFF, marker, static_cast<uint8_t>(length >> 8), static_cast<uint8_t>(length)};
  segment.insert(segment.end(), body.begin(), body.end());
  return segment;
}

Bytes WithSegmentAt(const Bytes& jpeg, size_t offset, const Bytes& segment) {
  Bytes out = jpeg;
  out.insert(out.begin() + static_cast<ptrdiff_t>(offset), segment.begin(), segment.end());
  return out;
}

Bytes WithSegment(const Bytes& jpeg, const Bytes& segment) {
  return WithSegmentAt(jpeg, 2, segment);
}

Bytes WithoutSegments(const Bytes& jpeg, uint8_t marker) {
  Bytes out = jpeg;
  std::vector<JpegSegment> segments = SegmentsOf(jpeg);
  std::reverse(segments.begin(), segments.end());
  for (const JpegSegment& segment : segments) {
    if (segment.marker == marker) {
      const auto begin = out.begin() + static_cast<ptrdiff_t>(segment.offset);
      out.erase(begin, begin + static_cast<ptrdiff_t>(segment.size));
    }
  }
  return out;
}

Bytes WithFrameByte(Bytes jpeg, size_t index, uint8_t value) {
  for (const JpegSegment& segment : SegmentsOf(jpeg)) {
    if (segment.marker >= 0xC0 && segment.marker <= 0xC2) {
      jpeg[segment.offset + 1 + index] = value;
      break;
    }
  }
  return jpeg;
}

}  // namespace conclave::image
