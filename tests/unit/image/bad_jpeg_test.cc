// Goal: rows J01 to J12 of the bad-input catalogue.
// Method: valid files from the encoder, broken one way each; where the picture must survive, its
// pixels are compared.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "bad_image.h"
#include "jpeg_samples.h"
#include "png_samples.h"

namespace conclave::image {
namespace {

constexpr uint8_t kSof0 = 0xC0;
constexpr uint8_t kDht = 0xC4;
constexpr uint8_t kEoi = 0xD9;
constexpr uint8_t kSos = 0xDA;
constexpr uint8_t kDqt = 0xDB;
constexpr uint8_t kDnl = 0xDC;
constexpr uint8_t kDri = 0xDD;
constexpr uint8_t kApp1 = 0xE1;
constexpr uint8_t kCom = 0xFE;

Bytes Baseline() { return EncodeJpeg({}); }
Bytes Progressive() { return EncodeJpeg({.is_progressive = true}); }
Bytes WithRestarts() { return EncodeJpeg({.restart_interval = 2}); }

Bytes From(const Bytes& file, size_t offset) {
  return {file.begin() + static_cast<ptrdiff_t>(offset), file.end()};
}

Bytes WithoutEnd(const Bytes& file) { return {file.begin(), file.end() - 2}; }

// The last scan repeated until there are `total` scans.
Bytes WithScans(const Bytes& progressive, size_t total) {
  const std::vector<JpegSegment> segments = SegmentsOf(progressive);
  const auto num_scans = static_cast<size_t>(
      std::count_if(segments.begin(), segments.end(),
                    [](const JpegSegment& segment) { return segment.marker == kSos; }));
  const Bytes last = From(WithoutEnd(progressive), segments.back().offset);
  Bytes out = WithoutEnd(progressive);
  for (size_t i = num_scans; i < total; ++i) {
    out.insert(out.end(), last.begin(), last.end());
  }
  out.push_back(0xFF);
  out.push_back(kEoi);
  return out;
}

Bytes WithoutFirstRestartMarker(const Bytes& file) {
  Bytes out = file;
  for (size_t i = FindSegment(file, kSos).offset; i + 1 < out.size(); ++i) {
    if (out[i] == 0xFF && out[i + 1] >= 0xD0 && out[i + 1] <= 0xD7) {
      out.erase(out.begin() + static_cast<ptrdiff_t>(i),
                out.begin() + static_cast<ptrdiff_t>(i) + 2);
      break;
    }
  }
  return out;
}

// Class and slot 0x00: the luma DC table; 16 counts, then symbols.
Bytes HuffmanTable(uint8_t slot, const Bytes& counts, size_t num_symbols) {
  Bytes body(17 + num_symbols, 1);
  body[0] = slot;
  for (size_t i = 0; i < 16; ++i) {
    body[1 + i] = i < counts.size() ? counts[i] : 0;
  }
  return MakeSegment(kDht, body);
}

// In front of the first scan, so that it replaces the good table.
Bytes WithTable(const Bytes& table) {
  const Bytes file = Baseline();
  return WithSegmentAt(file, FindSegment(file, kSos).offset, table);
}

// The baseline file keeps each table in its own segment: this drops those of one class.
Bytes WithoutAcTables() {
  Bytes file = Baseline();
  std::vector<JpegSegment> segments = SegmentsOf(file);
  std::reverse(segments.begin(), segments.end());
  for (const JpegSegment& segment : segments) {
    if (segment.marker == kDht && file[segment.offset + 4] >> 4 == 1) {
      const auto begin = file.begin() + static_cast<ptrdiff_t>(segment.offset);
      file.erase(begin, begin + static_cast<ptrdiff_t>(segment.size));
    }
  }
  return file;
}

Bytes WithTwoFrames() {
  const Bytes file = Baseline();
  const JpegSegment frame = FindSegment(file, kSof0);
  const auto begin = file.begin() + static_cast<ptrdiff_t>(frame.offset);
  return WithSegmentAt(file, frame.offset,
                       Bytes(begin, begin + static_cast<ptrdiff_t>(frame.size)));
}

// Baseline with one scan per component, the last of them dropped.
Bytes WithoutLastComponentsScan() {
  Bytes file = Progressive();
  std::vector<JpegSegment> scans;
  for (const JpegSegment& segment : SegmentsOf(file)) {
    if (segment.marker == kSos) {
      scans.push_back(segment);
    }
  }
  // The first scan holds the mean values of all three components; without it none has any.
  const auto begin = file.begin() + static_cast<ptrdiff_t>(scans[0].offset);
  file.erase(begin, file.begin() + static_cast<ptrdiff_t>(scans[1].offset));
  return file;
}

Bytes WithQuantizationRefToNothing() { return WithFrameByte(Baseline(), 11, 3); }

Bytes Marker(uint8_t marker, const Bytes& length_and_body) {
  return Concat({{0xFF, marker}, length_and_body});
}

// NOLINTNEXTLINE(readability-function-size): a table.
const std::vector<BadImage>& Rows() {
  static const std::vector<BadImage> rows{
      {"J01_StartMissing", [] { return From(Baseline(), 2); }, "image_corrupt"},
      {"J01_EndMissing", [] { return WithoutEnd(Baseline()); }, "image_truncated"},
      {"J01_EndOnly",
       [] {
         return Bytes{0xFF, kEoi};
       },
       "image_corrupt"},
      {"J01_StartAndEnd",
       [] {
         return Bytes{0xFF, 0xD8, 0xFF, kEoi};
       },
       "image_corrupt"},
      {"J01_StartTwice",
       [] {
         return Concat({{0xFF, 0xD8}, Baseline()});
       },
       "image_corrupt"},
      {"J02_NoQuantization", [] { return WithoutSegments(Baseline(), kDqt); }, "image_corrupt"},
      {"J02_NoHuffman", [] { return WithoutSegments(Baseline(), kDht); }, "image_corrupt"},
      {"J02_NoHuffmanProgressive", [] { return WithoutSegments(Progressive(), kDht); },
       "image_corrupt"},
      {"J02_NoFrame", [] { return WithoutSegments(Baseline(), kSof0); }, "image_corrupt"},
      {"J02_NoScan", [] { return WithoutSegments(Baseline(), kSos); }, "image_corrupt"},
      {"J02_UnknownQuantization", WithQuantizationRefToNothing, "image_corrupt"},
      {"J02_ComponentWithoutData", WithoutLastComponentsScan, "image_corrupt"},
      {"J03_OtherHeightLater",
       [] {
         const Bytes file = WithoutEnd(Baseline());
         return Concat({file, MakeSegment(kDnl, {0, 16}), {0xFF, kEoi}});
       },
       "image_corrupt"},
      {"J03_SameHeightLater",
       [] {
         const Bytes file = WithoutEnd(Baseline());
         return Concat({file, MakeSegment(kDnl, {0, 24}), {0xFF, kEoi}});
       },
       ""},
      {"J03_HeightOnlyLater", [] { return WithFrameByte(Baseline(), 5, 0); },
       "image_bad_dimensions"},
      {"J03_TwoFrames", WithTwoFrames, "image_corrupt"},
      {"J03_FrameTooShort",
       [] {
         return WithSegment(Baseline(), MakeSegment(kSof0, {8, 0, 4}));
       },
       "image_corrupt"},
      {"J04_TenThousandScans", [] { return WithScans(Progressive(), 10000); }, "image_too_complex"},
      {"J04_OneScanTooMany", [] { return WithScans(Progressive(), 101); }, "image_too_complex"},
      {"J05_TwelveBits", [] { return WithFrameByte(Baseline(), 3, 12); },
       "jpeg_process_unsupported"},
      {"J05_NineBits", [] { return WithFrameByte(Baseline(), 3, 9); }, "image_corrupt"},
      {"J05_HierarchicalHeader",
       [] {
         return WithSegment(Baseline(), MakeSegment(0xDE, {8, 0, 24, 0, 40, 1, 1, 0x11, 0}));
       },
       "jpeg_process_unsupported"},
      {"J05_Expansion", [] { return WithSegment(Baseline(), MakeSegment(0xDF, {0x11})); },
       "jpeg_process_unsupported"},
      {"J05_JpegLs", [] { return WithFrameByte(Baseline(), 0, 0xF7); }, "jpeg_process_unsupported"},
      {"J06_NoComponents",
       [] {
         return WithSegment(Baseline(), MakeSegment(kSof0, {8, 0, 24, 0, 40, 0}));
       },
       "image_corrupt"},
      {"J06_TwoComponents",
       [] {
         return WithSegment(Baseline(),
                            MakeSegment(kSof0, {8, 0, 24, 0, 40, 2, 1, 0x11, 0, 2, 0x11, 0}));
       },
       "jpeg_process_unsupported"},
      {"J06_FiveComponents",
       [] {
         Bytes body{8, 0, 24, 0, 40, 5};
         for (uint8_t id = 1; id <= 5; ++id) {
           body.insert(body.end(), {id, 0x11, 0});
         }
         return WithSegment(Baseline(), MakeSegment(kSof0, body));
       },
       "jpeg_process_unsupported"},
      {"J07_SamplingZero", [] { return WithFrameByte(Baseline(), 10, 0x00); }, "image_corrupt"},
      {"J07_SamplingFive", [] { return WithFrameByte(Baseline(), 10, 0x51); }, "image_corrupt"},
      {"J07_SamplingFifteen", [] { return WithFrameByte(Baseline(), 10, 0xFF); }, "image_corrupt"},
      {"J08_RestartsRight", WithRestarts, ""},
      {"J08_RestartMarkerMissing", [] { return WithoutFirstRestartMarker(WithRestarts()); },
       "image_corrupt"},
      {"J08_IntervalMissing", [] { return WithoutSegments(WithRestarts(), kDri); },
       "image_corrupt"},
      {"J08_IntervalTooShort",
       [] {
         const Bytes file = WithRestarts();
         return WithSegmentAt(file, FindSegment(file, kSos).offset, MakeSegment(kDri, {0, 1}));
       },
       "image_corrupt"},
      {"J08_IntervalTooLong",
       [] {
         const Bytes file = WithRestarts();
         return WithSegmentAt(file, FindSegment(file, kSos).offset, MakeSegment(kDri, {0, 5}));
       },
       "image_corrupt"},
      {"J08_IntervalOfWrongLength", [] { return WithSegment(Baseline(), MakeSegment(kDri, {0})); },
       "image_corrupt"},
      {"J09_OverfullTable", [] { return WithTable(HuffmanTable(0x00, {3}, 3)); }, "image_corrupt"},
      {"J09_TooManySymbols",
       [] {
         return WithTable(HuffmanTable(0x00, {0, 0, 0, 0, 0, 0, 0, 0, 200, 100}, 300));
       },
       "image_corrupt"},
      {"J09_FewerSymbolsThanCounted",
       [] {
         return WithTable(HuffmanTable(0x00, {0, 2, 3}, 4));
       },
       "image_corrupt"},
      {"J09_SymbolTooLargeForDc",
       [] {
         Bytes table = HuffmanTable(0x00, {1, 1}, 2);
         table.back() = 200;
         return WithTable(table);
       },
       "image_corrupt"},
      {"J09_UnknownClass", [] { return WithTable(HuffmanTable(0x20, {1}, 1)); }, "image_corrupt"},
      {"J09_SlotFour", [] { return WithTable(HuffmanTable(0x04, {1}, 1)); }, "image_corrupt"},
      {"J09_AcTablesMissing", WithoutAcTables, "image_corrupt"},
      {"J10_LengthZero",
       [] {
         return WithSegment(Baseline(), Marker(kApp1, {0, 0}));
       },
       "image_corrupt"},
      {"J10_LengthOne",
       [] {
         return WithSegment(Baseline(), Marker(kApp1, {0, 1}));
       },
       "image_corrupt"},
      {"J10_LengthTwo",
       [] {
         return WithSegment(Baseline(), Marker(kApp1, {0, 2}));
       },
       ""},
      {"J10_LengthPastTheEnd",
       [] {
         return WithSegment(Baseline(), Marker(kApp1, {0xFF, 0xFF}));
       },
       "image_truncated"},
      {"J10_SixtyMegabytesOfComments",
       [] {
         Bytes comments;
         const Bytes one = MakeSegment(kCom, Bytes(65533, 'c'));
         while (comments.size() < 60'000'000) {
           comments.insert(comments.end(), one.begin(), one.end());
         }
         return WithSegment(Baseline(), comments);
       },
       "image_too_large"},
      {"J10_NoiseBetweenSegments",
       [] {
         return WithSegment(Baseline(), {0x00, 0x12, 0x34, 0xFF, 0xFF, 0xFF});
       },
       ""},
  };
  return rows;
}

INSTANTIATE_TEST_SUITE_P(Jpeg, BadImageTest, testing::ValuesIn(Rows()), BadImageName);

}  // namespace
}  // namespace conclave::image
