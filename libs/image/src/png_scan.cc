#include "png_scan.h"

#include <zlib.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "byte_order.h"
#include "conclave/base/status.h"
#include "verdict.h"

namespace conclave::image {
namespace {

constexpr char kFormat[] = "PNG";
constexpr std::array<uint8_t, kPngSignatureBytes> kSignature{0x89, 'P',  'N',  'G',
                                                             '\r', '\n', 0x1A, '\n'};
constexpr size_t kChunkOverhead = 12;  // length, type, checksum
constexpr size_t kHeaderBytes = 13;
constexpr uint32_t kFieldMax = 0x7FFFFFFF;  // four-byte fields of the format have 31 bits

struct Chunk {
  std::string_view type;
  std::span<const uint8_t> body;
  std::span<const uint8_t> whole;  // with length, type and checksum
};

bool IsLegalDepth(uint8_t colour, uint8_t depth) {
  switch (colour) {
    case static_cast<uint8_t>(PngColour::kGrey):
      return depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16;
    case static_cast<uint8_t>(PngColour::kPalette):
      return depth == 1 || depth == 2 || depth == 4 || depth == 8;
    case static_cast<uint8_t>(PngColour::kRgb):
    case static_cast<uint8_t>(PngColour::kGreyAlpha):
    case static_cast<uint8_t>(PngColour::kRgbAlpha):
      return depth == 8 || depth == 16;
    default:
      return false;
  }
}

class PngScanner {
 public:
  PngScanner(std::span<const uint8_t> encoded, const DecodeLimits& limits)
      : encoded_(encoded), limits_(limits) {}

  absl::StatusOr<PngLayout> Run() {
    const size_t present = std::min(encoded_.size(), kPngSignatureBytes);
    if (!std::equal(kSignature.begin(), kSignature.begin() + present, encoded_.begin())) {
      return Corrupt(kFormat, "the signature is damaged");
    }
    if (present < kPngSignatureBytes) {
      return Truncated(kFormat, "the file ends inside the signature");
    }
    offset_ = kPngSignatureBytes;
    Keep(encoded_.first(kPngSignatureBytes));
    bool is_end = false;
    while (!is_end) {
      CONCLAVE_ASSIGN_OR_RETURN(const Chunk chunk, Next());
      CONCLAVE_RETURN_IF_ERROR(Take(chunk));
      is_end = chunk.type == "IEND";
    }
    CONCLAVE_RETURN_IF_ERROR(CheckTrailing(kFormat, encoded_.size() - offset_, limits_));
    return std::move(layout_);
  }

 private:
  absl::StatusOr<Chunk> Next() {
    const std::span<const uint8_t> rest = encoded_.subspan(offset_);
    if (rest.size() < 8) {
      return Truncated(kFormat, "the file ends before the last chunk");
    }
    const uint32_t length = ReadU32(rest.data());
    const std::string_view type(reinterpret_cast<const char*>(rest.data()) + 4, 4);
    const bool is_word = std::all_of(type.begin(), type.end(), [](char c) {
      return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
    });
    if (!is_word || length > kFieldMax) {
      return Corrupt(kFormat, "not a chunk at byte " + std::to_string(offset_));
    }
    if (!has_header_ && (type != "IHDR" || length != kHeaderBytes)) {
      return Corrupt(kFormat, "the first chunk is not a header of 13 bytes");
    }
    if (length > rest.size() - 8 || rest.size() - 8 - length < 4) {
      return Truncated(kFormat, "the file ends inside chunk " + std::string(type));
    }
    offset_ += kChunkOverhead + length;
    return Chunk{type, rest.subspan(8, length), rest.first(kChunkOverhead + length)};
  }

  absl::Status Take(const Chunk& chunk) {
    const bool is_critical = chunk.type[0] >= 'A' && chunk.type[0] <= 'Z';
    const bool is_data = chunk.type == "IDAT";
    if (!is_data && has_data_) {
      data_ended_ = true;
    }
    if (!is_critical) {
      return absl::OkStatus();
    }
    const uLong checksum =
        crc32_z(0, chunk.whole.data() + 4, chunk.whole.size() - 8);  // type and body
    if (checksum != ReadU32(chunk.whole.data() + chunk.whole.size() - 4)) {
      return Corrupt(kFormat, "wrong checksum of chunk " + std::string(chunk.type));
    }
    if (is_data) {
      return TakeData(chunk);
    }
    if (chunk.type == "IHDR") {
      return TakeHeader(chunk);
    }
    if (chunk.type == "PLTE") {
      return TakePalette(chunk);
    }
    if (chunk.type == "IEND") {
      return TakeEnd(chunk);
    }
    // The format asks to stop here: a chunk marked critical changes what the picture means.
    return Corrupt(kFormat, "unknown critical chunk " + std::string(chunk.type));
  }

  absl::Status TakeHeader(const Chunk& chunk) {
    if (has_header_) {
      return Corrupt(kFormat, "two headers");
    }
    has_header_ = true;
    const uint8_t* body = chunk.body.data();
    const uint32_t width = ReadU32(body);
    const uint32_t height = ReadU32(body + 4);
    CONCLAVE_RETURN_IF_ERROR(CheckDimensions(kFormat, width, height, limits_));
    const uint8_t depth = body[8];
    const uint8_t colour = body[9];
    if (!IsLegalDepth(colour, depth)) {
      return Corrupt(kFormat, "colour type " + std::to_string(colour) + " with " +
                                  std::to_string(depth) + " bits does not exist");
    }
    const uint8_t compression = body[10];
    const uint8_t filter = body[11];
    const uint8_t interlace = body[12];
    if (compression != 0 || filter != 0 || interlace > 1) {
      return Corrupt(kFormat, "unknown compression, filter or interlace method");
    }
    layout_.width = static_cast<int32_t>(width);
    layout_.height = static_cast<int32_t>(height);
    layout_.bit_depth = depth;
    layout_.colour = static_cast<PngColour>(colour);
    layout_.interlaced = interlace == 1;
    Keep(chunk.whole);
    return absl::OkStatus();
  }

  absl::Status TakePalette(const Chunk& chunk) {
    const size_t entries = chunk.body.size() / 3;
    if (has_palette_ || has_data_ || chunk.body.size() % 3 != 0 || entries == 0 ||
        entries > layout_.palette.size()) {
      return Corrupt(kFormat, "misplaced palette, or not one of 1 to 256 colours");
    }
    has_palette_ = true;
    // In other colour types a palette is a hint for poor screens.
    if (layout_.colour == PngColour::kPalette) {
      for (size_t i = 0; i < entries; ++i) {
        std::copy_n(chunk.body.begin() + static_cast<ptrdiff_t>(3 * i), 3,
                    layout_.palette[i].begin());
      }
      Keep(chunk.whole);
    }
    return absl::OkStatus();
  }

  absl::Status TakeData(const Chunk& chunk) {
    if (data_ended_) {
      return Corrupt(kFormat, "picture data in two places");
    }
    if (layout_.colour == PngColour::kPalette && !has_palette_) {
      return Corrupt(kFormat, "picture data before the palette");
    }
    has_data_ = true;
    Keep(chunk.whole);
    return absl::OkStatus();
  }

  absl::Status TakeEnd(const Chunk& chunk) {
    if (!has_data_) {
      return Corrupt(kFormat, "no picture data");
    }
    if (!chunk.body.empty()) {
      return Corrupt(kFormat, "the end chunk is not empty");
    }
    Keep(chunk.whole);
    return absl::OkStatus();
  }

  // Neighbours become one run: a file of a hundred thousand small chunks needs no list of them.
  void Keep(std::span<const uint8_t> bytes) {
    std::vector<std::span<const uint8_t>>& runs = layout_.needed;
    if (!runs.empty() && runs.back().data() + runs.back().size() == bytes.data()) {
      runs.back() = {runs.back().data(), runs.back().size() + bytes.size()};
    } else {
      runs.push_back(bytes);
    }
  }

  const std::span<const uint8_t> encoded_;
  const DecodeLimits& limits_;
  size_t offset_ = 0;
  bool has_header_ = false;
  bool has_palette_ = false;
  bool has_data_ = false;
  bool data_ended_ = false;
  PngLayout layout_;
};

}  // namespace

absl::StatusOr<PngLayout> ScanPng(std::span<const uint8_t> encoded, const DecodeLimits& limits) {
  return PngScanner(encoded, limits).Run();
}

}  // namespace conclave::image
