#include "jpeg_scan.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "byte_order.h"
#include "conclave/base/status.h"
#include "verdict.h"

namespace conclave::image {
namespace {

constexpr char kFormat[] = "JPEG";

// The second byte of a marker (ITU-T T.81, table B.1).
constexpr uint8_t kTem = 0x01;
constexpr uint8_t kSof0 = 0xC0;  // baseline
constexpr uint8_t kSof2 = 0xC2;  // progressive; 0xC1 between them is extended sequential
constexpr uint8_t kDht = 0xC4;   // the numbers around it are other frame types
constexpr uint8_t kDac = 0xCC;
constexpr uint8_t kSof15 = 0xCF;
constexpr uint8_t kRst0 = 0xD0;
constexpr uint8_t kRst7 = 0xD7;
constexpr uint8_t kSoi = 0xD8;
constexpr uint8_t kEoi = 0xD9;
constexpr uint8_t kSos = 0xDA;
constexpr uint8_t kDnl = 0xDC;
constexpr uint8_t kDhp = 0xDE;    // hierarchical
constexpr uint8_t kExp = 0xDF;    // hierarchical
constexpr uint8_t kSof55 = 0xF7;  // JPEG-LS

absl::Status UnsupportedProcess(const std::string& found) {
  return Error(absl::StatusCode::kUnimplemented, "jpeg_process_unsupported",
               "JPEG image: process not supported; expected baseline or progressive Huffman coding "
               "of 1, 3 or 4 components with 8 bits, found " +
                   found);
}

class JpegScanner {
 public:
  JpegScanner(std::span<const uint8_t> encoded, const DecodeLimits& limits)
      : encoded_(encoded), limits_(limits) {}

  absl::StatusOr<JpegLayout> Run() {
    offset_ = 2;
    while (true) {
      CONCLAVE_ASSIGN_OR_RETURN(const uint8_t marker, NextMarker());
      if (marker == kEoi) {
        break;
      }
      if (marker == kTem || (marker >= kRst0 && marker <= kRst7)) {
        continue;
      }
      if (marker == kSoi) {
        return Corrupt(kFormat, "two start markers");
      }
      CONCLAVE_ASSIGN_OR_RETURN(const std::span<const uint8_t> body, Segment());
      CONCLAVE_RETURN_IF_ERROR(Take(marker, body));
    }
    CONCLAVE_RETURN_IF_ERROR(CheckComplete());
    CONCLAVE_RETURN_IF_ERROR(CheckTrailing(kFormat, encoded_.size() - offset_, limits_));
    layout_.picture = encoded_.first(offset_);
    return layout_;
  }

 private:
  struct Component {
    uint8_t id = 0;
    bool has_data = false;  // a scan carried its mean values
  };

  // The next FF followed by neither 00 (an FF of the picture data) nor FF (a fill byte). Bytes
  // before it are picture data or, between segments, noise that the decoding library steps over in
  // the same way.
  absl::StatusOr<uint8_t> NextMarker() {
    while (offset_ < encoded_.size()) {
      const uint8_t* from = encoded_.data() + offset_;
      const auto* found =
          static_cast<const uint8_t*>(std::memchr(from, 0xFF, encoded_.size() - offset_));
      if (found == nullptr) {
        break;
      }
      offset_ += static_cast<size_t>(found - from) + 1;
      while (offset_ < encoded_.size() && encoded_[offset_] == 0xFF) {
        ++offset_;
      }
      if (offset_ < encoded_.size() && encoded_[offset_++] != 0) {
        return encoded_[offset_ - 1];
      }
    }
    return Truncated(kFormat, "the file ends before the end marker");
  }

  absl::StatusOr<std::span<const uint8_t>> Segment() {
    const std::span<const uint8_t> rest = encoded_.subspan(offset_);
    if (rest.size() < 2) {
      return Truncated(kFormat, "the file ends inside a segment");
    }
    const uint32_t length = ReadU16(rest.data());  // counts itself
    if (length < 2) {
      return Corrupt(kFormat, "a segment shorter than its own length field");
    }
    if (length > rest.size()) {
      return Truncated(kFormat, "the file ends inside a segment");
    }
    offset_ += length;
    return rest.subspan(2, length - 2);
  }

  absl::Status Take(uint8_t marker, std::span<const uint8_t> body) {
    if (marker == kDht) {
      return TakeHuffmanTables(body);
    }
    if (marker == kSos) {
      return TakeScan(body);
    }
    if (marker == kDnl) {
      const bool agrees =
          body.size() == 2 && has_frame_ && ReadU16(body.data()) == uint32_t(layout_.height);
      return agrees ? absl::OkStatus() : Corrupt(kFormat, "a second, different height");
    }
    if (marker == kDhp || marker == kExp) {
      return UnsupportedProcess("hierarchical coding");
    }
    if (marker == kSof55) {
      return UnsupportedProcess("JPEG-LS");
    }
    if (marker >= kSof0 && marker <= kSof15 && marker != kDac) {
      return TakeFrame(marker, body);
    }
    return absl::OkStatus();
  }

  absl::Status TakeFrame(uint8_t marker, std::span<const uint8_t> body) {
    if (marker > kSof2) {
      static constexpr std::array<const char*, 13> kNames{
          "lossless coding",     "",
          "hierarchical coding", "hierarchical coding",
          "hierarchical coding", "an unknown process",
          "arithmetic coding",   "arithmetic coding",
          "lossless coding",     "",
          "hierarchical coding", "hierarchical coding",
          "hierarchical coding"};
      return UnsupportedProcess(kNames[marker - kSof2 - 1]);
    }
    if (has_frame_) {
      return Corrupt(kFormat, "two frame headers");
    }
    if (body.size() < 6 || body.size() != 6 + size_t{3} * body[5]) {
      return Corrupt(kFormat, "a frame header of the wrong length");
    }
    const uint32_t height = ReadU16(body.data() + 1);
    const uint32_t width = ReadU16(body.data() + 3);
    CONCLAVE_RETURN_IF_ERROR(CheckDimensions(kFormat, width, height, limits_));
    const uint8_t precision = body[0];
    const uint8_t num_components = body[5];
    if (precision == 12 || precision == 16) {
      return UnsupportedProcess(std::to_string(precision) + " bits");
    }
    if (precision != 8 || num_components == 0) {
      return Corrupt(kFormat, "a frame header with impossible values");
    }
    if (num_components == 2 || num_components > 4) {
      return UnsupportedProcess(std::to_string(num_components) + " components");
    }
    for (size_t i = 0; i < num_components; ++i) {
      components_[i].id = body[6 + 3 * i];
    }
    has_frame_ = true;
    is_progressive_ = marker == kSof2;
    layout_.width = static_cast<int32_t>(width);
    layout_.height = static_cast<int32_t>(height);
    layout_.num_components = num_components;
    return absl::OkStatus();
  }

  // Only which tables there are; the decoding library checks what is in them.
  absl::Status TakeHuffmanTables(std::span<const uint8_t> body) {
    while (!body.empty()) {
      if (body.size() < 17) {
        return Corrupt(kFormat, "a Huffman table that is cut off");
      }
      const size_t is_ac = body[0] >> 4;
      const size_t slot = body[0] & 15;
      size_t num_symbols = 0;
      for (size_t i = 1; i <= 16; ++i) {
        num_symbols += body[i];
      }
      if (is_ac > 1 || slot > 3 || num_symbols > 256 || num_symbols > body.size() - 17) {
        return Corrupt(kFormat, "a Huffman table with impossible values");
      }
      has_table_[is_ac][slot] = true;
      body = body.subspan(17 + num_symbols);
    }
    return absl::OkStatus();
  }

  absl::Status TakeScan(std::span<const uint8_t> body) {
    if (!has_frame_) {
      return Corrupt(kFormat, "picture data before the frame header");
    }
    if (++num_scans_ > limits_.jpeg_scans_max) {
      return InvalidArgument("image_too_complex", "JPEG image: too many scans; expected at most " +
                                                      std::to_string(limits_.jpeg_scans_max) +
                                                      ", found more");
    }
    if (body.empty() || body.size() != 4 + size_t{2} * body[0]) {
      return Corrupt(kFormat, "a scan header of the wrong length");
    }
    const size_t num_components = body[0];
    const uint8_t first_coefficient = body[1 + 2 * num_components];
    const uint8_t refined_bit = body[3 + 2 * num_components] >> 4;
    const bool needs_dc = !is_progressive_ || (first_coefficient == 0 && refined_bit == 0);
    const bool needs_ac = !is_progressive_ || first_coefficient != 0;
    for (size_t i = 0; i < num_components; ++i) {
      const uint8_t id = body[1 + 2 * i];
      const size_t dc_slot = body[2 + 2 * i] >> 4;
      const size_t ac_slot = body[2 + 2 * i] & 15;
      const bool has_dc = !needs_dc || (dc_slot < 4 && has_table_[0][dc_slot]);
      const bool has_ac = !needs_ac || (ac_slot < 4 && has_table_[1][ac_slot]);
      // The library would take the tables of the standard's annex K, and decode noise if those are
      // not meant.
      if (!has_dc || !has_ac) {
        return Corrupt(kFormat, "a scan whose Huffman table is missing");
      }
      for (Component& component : std::span(components_).first(size_t(layout_.num_components))) {
        component.has_data |= component.id == id && needs_dc;
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckComplete() const {
    if (!has_frame_ || num_scans_ == 0) {
      return Corrupt(kFormat, "no picture before the end marker");
    }
    for (int32_t i = 0; i < layout_.num_components; ++i) {
      if (!components_[static_cast<size_t>(i)].has_data) {
        return Corrupt(kFormat, "a component without data");
      }
    }
    return absl::OkStatus();
  }

  const std::span<const uint8_t> encoded_;
  const DecodeLimits& limits_;
  size_t offset_ = 0;
  bool has_frame_ = false;
  bool is_progressive_ = false;
  int32_t num_scans_ = 0;
  std::array<std::array<bool, 4>, 2> has_table_{};  // [DC or AC][slot]
  std::array<Component, 4> components_{};
  JpegLayout layout_;
};

}  // namespace

absl::StatusOr<JpegLayout> ScanJpeg(std::span<const uint8_t> encoded, const DecodeLimits& limits) {
  return JpegScanner(encoded, limits).Run();
}

}  // namespace conclave::image
