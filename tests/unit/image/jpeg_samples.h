// JPEG files made with the encoder, and tools to break them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "files.h"

namespace conclave::image {

enum class JpegColour {
  kGrey,
  kYcc,
  kRgb,   // stored without conversion
  kCmyk,  // both with an Adobe marker
  kYcck,
};

struct JpegOptions {
  int width = 40;
  int height = 24;
  JpegColour colour = JpegColour::kYcc;
  int quality = 90;
  bool is_progressive = false;
  int restart_interval = 0;  // MCUs
  int luma_sampling = 2;     // of component 0, both directions
  // One colour for the whole picture, as stored before conversion; noise if absent.
  std::optional<Bytes> flat = {};
};

Bytes EncodeJpeg(const JpegOptions& options);

struct JpegSegment {
  uint8_t marker = 0;
  size_t offset = 0;  // of its FF
  size_t size = 0;    // with the FF; a scan's segment is its header without the data
};

// Up to and without the end marker.
std::vector<JpegSegment> SegmentsOf(const Bytes& jpeg);
// The first of that kind; offset 0 if there is none.
JpegSegment FindSegment(const Bytes& jpeg, uint8_t marker);

// A segment with a right length field.
Bytes MakeSegment(uint8_t marker, const Bytes& body);
Bytes WithSegmentAt(const Bytes& jpeg, size_t offset, const Bytes& segment);
// Behind the start marker.
Bytes WithSegment(const Bytes& jpeg, const Bytes& segment);
Bytes WithoutSegments(const Bytes& jpeg, uint8_t marker);
// The frame header's byte at `index`: 0 marker, 3 precision, 4–5 height, 6–7 width, 8 number of
// components, then per component id, sampling, table.
Bytes WithFrameByte(Bytes jpeg, size_t index, uint8_t value);

}  // namespace conclave::image
