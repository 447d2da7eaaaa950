// Uncompressed BMP. No library of Debian reads it, and the format is a header and rows of pixels,
// so this is a reader of our own; which headers, depths and masks it takes is Pillow's choice.
#include <algorithm>
#include <array>
#include <string>

#include "byte_order.h"
#include "colour_table.h"
#include "conclave/base/status.h"
#include "decoders.h"
#include "verdict.h"

namespace conclave::image {
namespace {

constexpr char kFormat[] = "BMP";
// "BM", the size of the file, four unused bytes, where the pixels begin.
constexpr size_t kFileHeaderBytes = 14;
// The header of OS/2 1.x: 16-bit edges, palette entries of three bytes.
constexpr uint32_t kCoreHeaderBytes = 12;
// The shortest of the Windows headers. The masks of kBitFields follow it; longer ones hold them.
constexpr uint32_t kInfoHeaderBytes = 40;
// From this size on a header has a mask for alpha, too.
constexpr uint32_t kHeaderWithAlphaBytes = 56;
// OS/2 2.x, in which the number 3 stands for another compression.
constexpr uint32_t kOs2HeaderBytes = 64;

enum Compression : uint32_t { kNone = 0, kRle8 = 1, kRle4 = 2, kBitFields = 3 };

struct Masks {
  uint32_t red = 0;
  uint32_t green = 0;
  uint32_t blue = 0;
  uint32_t alpha = 0;
  bool operator==(const Masks&) const = default;
};

struct BmpLayout {
  int32_t width = 0;
  int32_t height = 0;
  bool is_top_down = false;
  uint32_t bits = 0;  // per pixel: 1, 4, 8, 16, 24, 32
  // 24 and 32 bits: which byte of a pixel is red, green, blue. 16 bits: the width of green.
  std::array<uint8_t, 3> byte_of{2, 1, 0};
  uint32_t green_bits = 5;
  ColourTable colours{};  // up to 8 bits
  size_t pixels_offset = 0;
  size_t row_bytes = 0;  // in the file, a multiple of 4
};

absl::Status Unsupported(const std::string& what, const std::string& expected) {
  return Error(absl::StatusCode::kUnimplemented, "image_format_unsupported",
               "BMP image: " + what + "; expected " + expected);
}

class BmpScanner {
 public:
  BmpScanner(std::span<const uint8_t> encoded, const DecodeLimits& limits)
      : encoded_(encoded), limits_(limits) {}

  absl::StatusOr<BmpLayout> Run() {
    CONCLAVE_RETURN_IF_ERROR(TakeHeader());
    CONCLAVE_RETURN_IF_ERROR(TakeMasks());
    TakePalette();
    CONCLAVE_RETURN_IF_ERROR(FindPixels());
    return layout_;
  }

 private:
  // The caller has checked that the bytes are there.
  uint32_t U16(size_t offset) const { return ReadU16Le(encoded_.data() + offset); }
  uint32_t U32(size_t offset) const { return ReadU32Le(encoded_.data() + offset); }

  absl::Status TakeHeader() {
    if (encoded_.size() < kFileHeaderBytes + 4 ||
        encoded_.size() - kFileHeaderBytes < U32(kFileHeaderBytes)) {
      return Truncated(kFormat, "the file ends in its header");
    }
    header_bytes_ = U32(kFileHeaderBytes);
    const size_t at = kFileHeaderBytes + 4;
    uint32_t width = 0;
    uint32_t height = 0;
    if (header_bytes_ == kCoreHeaderBytes) {
      width = U16(at);
      height = U16(at + 2);
      layout_.bits = U16(at + 6);
    } else {
      width = U32(at);
      height = U32(at + 4);
      // Pillow looks at the highest byte only; every height that differs is far beyond the limits.
      layout_.is_top_down = height >> 24 == 0xFF;
      height = layout_.is_top_down ? 0 - height : height;
      layout_.bits = U16(at + 10);
      compression_ = U32(at + 12);
      num_colours_ = U32(at + 28);
    }
    CONCLAVE_RETURN_IF_ERROR(CheckDimensions(kFormat, width, height, limits_));
    layout_.width = static_cast<int32_t>(width);
    layout_.height = static_cast<int32_t>(height);
    return CheckKind();
  }

  absl::Status CheckKind() const {
    static constexpr std::array<uint32_t, 6> kBits{1, 4, 8, 16, 24, 32};
    if (std::find(kBits.begin(), kBits.end(), layout_.bits) == kBits.end()) {
      return Unsupported(std::to_string(layout_.bits) + " bits per pixel", "1, 4, 8, 16, 24 or 32");
    }
    if (compression_ != kNone &&
        (compression_ != kBitFields || header_bytes_ == kOs2HeaderBytes || layout_.bits < 16)) {
      return Unsupported("compression " + std::to_string(compression_), "uncompressed pixels");
    }
    // Pillow takes no more either.
    if (layout_.bits <= 8 && num_colours_ > 256) {
      return Corrupt(kFormat, "a palette of " + std::to_string(num_colours_) +
                                  " colours; expected at most 256");
    }
    return absl::OkStatus();
  }

  absl::Status TakeMasks() {
    palette_offset_ = kFileHeaderBytes + header_bytes_;
    if (compression_ != kBitFields) {
      return absl::OkStatus();
    }
    // At the same place either way: the last fields of a long header, or right behind a short one.
    const size_t at = kFileHeaderBytes + kInfoHeaderBytes;
    if (header_bytes_ == kInfoHeaderBytes) {
      palette_offset_ += 3 * sizeof(uint32_t);
    }
    if (encoded_.size() < palette_offset_) {
      return Truncated(kFormat, "the file ends in its colour masks");
    }
    const Masks masks{.red = U32(at),
                      .green = U32(at + 4),
                      .blue = U32(at + 8),
                      .alpha = header_bytes_ >= kHeaderWithAlphaBytes ? U32(at + 12) : 0};
    return TakeMasks(masks);
  }

  // The layouts that Pillow knows; alpha is only needed to tell them apart.
  absl::Status TakeMasks(const Masks& masks) {
    struct Known {
      uint32_t bits;
      Masks masks;
      std::array<uint8_t, 3> byte_of;
      uint32_t green_bits;
    };
    static constexpr std::array kKnown{
        Known{16, {0xF800, 0x7E0, 0x1F, 0}, {}, 6},
        Known{16, {0x7C00, 0x3E0, 0x1F, 0}, {}, 5},
        Known{24, {0xFF0000, 0xFF00, 0xFF, 0}, {2, 1, 0}, 0},
        Known{32, {0xFF0000, 0xFF00, 0xFF, 0}, {2, 1, 0}, 0},
        Known{32, {0xFF000000, 0xFF0000, 0xFF00, 0}, {3, 2, 1}, 0},
        Known{32, {0xFF000000, 0xFF00, 0xFF, 0}, {3, 1, 0}, 0},
        Known{32, {0xFF000000, 0xFF0000, 0xFF00, 0xFF}, {3, 2, 1}, 0},
        Known{32, {0xFF, 0xFF00, 0xFF0000, 0xFF000000}, {0, 1, 2}, 0},
        Known{32, {0xFF0000, 0xFF00, 0xFF, 0xFF000000}, {2, 1, 0}, 0},
        Known{32, {0xFF000000, 0xFF00, 0xFF, 0xFF0000}, {3, 1, 0}, 0},
        Known{32, {0, 0, 0, 0}, {2, 1, 0}, 0},
    };
    for (const Known& known : kKnown) {
      Masks found = masks;
      found.alpha = layout_.bits == 32 ? masks.alpha : 0;
      if (known.bits == layout_.bits && known.masks == found) {
        layout_.byte_of = known.byte_of;
        layout_.green_bits = known.green_bits;
        return absl::OkStatus();
      }
    }
    return Unsupported("an unknown layout of colour masks",
                       "5-5-5 or 5-6-5 bits, or one byte per colour");
  }

  // A palette that the file does not hold whole leaves its last colours black, as in Pillow.
  void TakePalette() {
    palette_end_ = palette_offset_;
    if (layout_.bits > 8) {
      return;
    }
    const size_t entry_bytes = header_bytes_ == kCoreHeaderBytes ? 3 : 4;
    const size_t num_entries = num_colours_ != 0 ? num_colours_ : size_t{1} << layout_.bits;
    std::vector<uint8_t> entries;
    for (size_t i = 0; i < num_entries; ++i) {
      const size_t at = palette_offset_ + i * entry_bytes;
      if (encoded_.size() < at + entry_bytes) {
        break;
      }
      entries.insert(entries.end(), {encoded_[at + 2], encoded_[at + 1], encoded_[at]});
    }
    palette_end_ += num_entries * entry_bytes;
    layout_.colours = TableOf(entries);
  }

  absl::Status FindPixels() {
    const uint64_t used_bytes = (uint64_t{layout_.bits} * layout_.width + 7) / 8;
    layout_.row_bytes = (used_bytes + 3) / 4 * 4;
    const uint32_t stated = U32(10);
    // Files that forget their palette, or to say anything, exist.
    const bool is_forgotten =
        stated == 0 || (layout_.bits <= 8 && stated == kFileHeaderBytes + header_bytes_);
    layout_.pixels_offset = is_forgotten ? palette_end_ : stated;
    if (layout_.pixels_offset < kFileHeaderBytes + header_bytes_) {
      return Corrupt(kFormat, "the pixels begin inside the header");
    }
    // The last row may lack what pads it.
    const uint64_t end =
        layout_.pixels_offset + uint64_t{layout_.row_bytes} * (layout_.height - 1) + used_bytes;
    if (encoded_.size() < end) {
      return Truncated(kFormat, "the file ends inside the pixels");
    }
    return CheckTrailing(kFormat, encoded_.size() - end, limits_);
  }

  std::span<const uint8_t> encoded_;
  const DecodeLimits& limits_;
  BmpLayout layout_;
  uint32_t header_bytes_ = 0;
  uint32_t compression_ = kNone;
  uint32_t num_colours_ = 0;
  size_t palette_offset_ = 0;
  size_t palette_end_ = 0;
};

// A colour of `bits` bits scaled to 8, rounded down, as Pillow does.
uint8_t Widen(uint32_t value, uint32_t bits) {
  const uint32_t most = (1U << bits) - 1;
  return static_cast<uint8_t>((value & most) * 255 / most);
}

void ConvertRow(const BmpLayout& layout, const uint8_t* row, uint8_t* out) {
  const size_t pixel_bytes = layout.bits / 8;
  for (size_t x = 0; x < static_cast<size_t>(layout.width); ++x, out += 3) {
    if (layout.bits <= 8) {
      const size_t bit = x * layout.bits;
      const uint32_t shift = 8 - layout.bits - bit % 8;
      const uint32_t index = row[bit / 8] >> shift & ((1U << layout.bits) - 1);
      std::copy_n(layout.colours[index].begin(), 3, out);
    } else if (layout.bits == 16) {
      const uint32_t pixel = ReadU16Le(row + 2 * x);
      out[0] = Widen(pixel >> (5 + layout.green_bits), 5);
      out[1] = Widen(pixel >> 5, layout.green_bits);
      out[2] = Widen(pixel, 5);
    } else {
      for (size_t c = 0; c < 3; ++c) {
        out[c] = row[pixel_bytes * x + layout.byte_of[c]];
      }
    }
  }
}

}  // namespace

absl::StatusOr<RgbImage> DecodeBmp(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                   TimeLimit& time) {
  CONCLAVE_ASSIGN_OR_RETURN(const BmpLayout layout, BmpScanner(encoded, limits).Run());
  RgbImage image{layout.width, layout.height, {}};
  const size_t out_bytes = size_t{3} * static_cast<size_t>(layout.width);
  image.pixels.resize(out_bytes * static_cast<size_t>(layout.height));
  for (int32_t y = 0; y < layout.height; ++y) {
    if (time.IsOverAfter(layout.width)) {
      return Stopped(kFormat);
    }
    const auto stored = static_cast<size_t>(layout.is_top_down ? y : layout.height - 1 - y);
    ConvertRow(layout, encoded.data() + layout.pixels_offset + stored * layout.row_bytes,
               image.pixels.data() + static_cast<size_t>(y) * out_bytes);
  }
  return image;
}

}  // namespace conclave::image
