// The first frame of a GIF, by giflib.
//
// The library decodes that frame and nothing else: what follows is stepped over by its lengths, so
// a file of a million frames costs a walk over its bytes.
#include <gif_lib.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "byte_order.h"
#include "colour_table.h"
#include "conclave/base/status.h"
#include "decoders.h"
#include "verdict.h"

namespace conclave::image {
namespace {

constexpr char kFormat[] = "GIF";
// "GIF87a" or "GIF89a", then the size of the screen and three bytes about its palette.
constexpr size_t kScreenHeaderBytes = 13;
// Rows of an interlaced picture come in four passes.
constexpr std::array<int32_t, 4> kPassStart{0, 4, 2, 1};
constexpr std::array<int32_t, 4> kPassStep{8, 8, 4, 2};

// What giflib reads from, and how far it has come.
struct Source {
  std::span<const uint8_t> bytes;
  size_t offset = 0;
  bool ran_out = false;  // more was asked for than there is
};

int ReadSource(GifFileType* gif, GifByteType* out, int num_bytes) {
  auto* source = static_cast<Source*>(gif->UserData);
  const size_t taken =
      std::min(static_cast<size_t>(num_bytes), source->bytes.size() - source->offset);
  std::memcpy(out, source->bytes.data() + source->offset, taken);
  source->offset += taken;
  source->ran_out |= taken < static_cast<size_t>(num_bytes);
  return static_cast<int>(taken);
}

absl::Status TruncatedFile() { return Truncated(kFormat, "the file ends before its terminator"); }

// Steps from a block's first length byte over its parts to behind the empty one; nullopt if the
// file ends before.
std::optional<size_t> SkipParts(std::span<const uint8_t> encoded, size_t offset) {
  while (offset < encoded.size()) {
    const size_t length = encoded[offset];
    offset += 1 + length;
    if (length == 0) {
      return offset;
    }
  }
  return std::nullopt;
}

// From behind a frame over all others and their extensions to behind the terminator. Bytes that
// begin no block end the picture too: they are a tail.
absl::StatusOr<size_t> FindEnd(std::span<const uint8_t> encoded, size_t offset) {
  constexpr size_t kFrameHeaderBytes = 10;
  while (offset < encoded.size()) {
    std::optional<size_t> next;
    switch (encoded[offset]) {
      case ';':
        return offset + 1;
      case '!':
        next = SkipParts(encoded, offset + 2);
        break;
      case ',': {
        if (encoded.size() - offset < kFrameHeaderBytes) {
          return TruncatedFile();
        }
        const uint32_t flags = encoded[offset + kFrameHeaderBytes - 1];
        const size_t palette_bytes = (flags & 0x80) != 0 ? size_t{6} << (flags & 7) : 0;
        next = SkipParts(encoded, offset + kFrameHeaderBytes + palette_bytes + 1);
        break;
      }
      default:
        return offset;
    }
    if (!next) {
      return TruncatedFile();
    }
    offset = *next;
  }
  return TruncatedFile();
}

class GifReader {
 public:
  GifReader(std::span<const uint8_t> encoded, const DecodeLimits& limits, TimeLimit& time)
      : limits_(limits), time_(time), source_{encoded} {}
  ~GifReader() {
    if (gif_ != nullptr) {
      DGifCloseFile(gif_, nullptr);
    }
  }
  GifReader(const GifReader&) = delete;
  GifReader& operator=(const GifReader&) = delete;

  absl::StatusOr<RgbImage> Read() {
    CONCLAVE_RETURN_IF_ERROR(Open());
    CONCLAVE_RETURN_IF_ERROR(FindFrame());
    CONCLAVE_RETURN_IF_ERROR(PlaceFrame());
    CONCLAVE_ASSIGN_OR_RETURN(RgbImage image, ReadFrame());
    CONCLAVE_ASSIGN_OR_RETURN(const size_t end, FindEnd(source_.bytes, source_.offset));
    CONCLAVE_RETURN_IF_ERROR(CheckTrailing(kFormat, source_.bytes.size() - end, limits_));
    return image;
  }

 private:
  absl::Status Open() {
    if (source_.bytes.size() < kScreenHeaderBytes) {
      return Truncated(kFormat, "the file ends in its header");
    }
    gif_ = DGifOpen(&source_, ReadSource, nullptr);
    return gif_ == nullptr ? Failed("its header") : absl::OkStatus();
  }

  absl::Status FindFrame() {
    GifRecordType type = UNDEFINED_RECORD_TYPE;
    while (type != IMAGE_DESC_RECORD_TYPE) {
      if (DGifGetRecordType(gif_, &type) == GIF_ERROR) {
        return Failed("a block");
      }
      if (type == TERMINATE_RECORD_TYPE) {
        return Corrupt(kFormat, "it holds no picture");
      }
      if (type == EXTENSION_RECORD_TYPE) {
        CONCLAVE_RETURN_IF_ERROR(TakeExtension());
      }
    }
    return absl::OkStatus();
  }

  absl::Status TakeExtension() {
    int code = 0;
    GifByteType* part = nullptr;  // a length byte, then that many
    if (DGifGetExtension(gif_, &code, &part) == GIF_ERROR) {
      return Failed("an extension");
    }
    if (code == GRAPHICS_EXT_FUNC_CODE && part != nullptr && part[0] >= 4 && (part[1] & 1) != 0) {
      transparent_ = part[4];
    }
    while (part != nullptr) {
      if (DGifGetExtensionNext(gif_, &part) == GIF_ERROR) {
        return Failed("an extension");
      }
    }
    return absl::OkStatus();
  }

  // A frame that leaves the screen makes it larger, as in Pillow.
  absl::Status PlaceFrame() {
    // Judged before giflib reads on, which would take an edge of 0 for a frame without data.
    constexpr size_t kEdgesEnd = 8;
    if (source_.bytes.size() - source_.offset < kEdgesEnd) {
      return Truncated(kFormat, "the file ends in the header of a frame");
    }
    const uint8_t* place = source_.bytes.data() + source_.offset;
    left_ = ReadU16Le(place);
    top_ = ReadU16Le(place + 2);
    const uint32_t frame_width = ReadU16Le(place + 4);
    const uint32_t frame_height = ReadU16Le(place + 6);
    if (frame_width == 0 || frame_height == 0) {
      return CheckDimensions(kFormat, frame_width, frame_height, limits_);
    }
    width_ = std::max(static_cast<uint32_t>(gif_->SWidth), left_ + frame_width);
    height_ = std::max(static_cast<uint32_t>(gif_->SHeight), top_ + frame_height);
    CONCLAVE_RETURN_IF_ERROR(CheckDimensions(kFormat, width_, height_, limits_));
    return DGifGetImageDesc(gif_) == GIF_ERROR ? Failed("the header of a frame") : absl::OkStatus();
  }

  // Pillow fills what the frame leaves free with the transparent index, or with 0; the background
  // colour of the file is not looked at.
  absl::StatusOr<RgbImage> ReadFrame() {
    const ColourTable colours = FrameColours();
    RgbImage image{static_cast<int32_t>(width_), static_cast<int32_t>(height_), {}};
    image.pixels.resize(size_t{3} * width_ * height_);
    const GifImageDesc& frame = gif_->Image;
    if (static_cast<uint32_t>(frame.Width) != width_ ||
        static_cast<uint32_t>(frame.Height) != height_) {
      const std::array<uint8_t, 3>& free = colours[transparent_];
      for (size_t i = 0; i < image.pixels.size(); i += 3) {
        std::copy(free.begin(), free.end(), image.pixels.begin() + static_cast<ptrdiff_t>(i));
      }
    }
    std::vector<GifPixelType> row(static_cast<size_t>(frame.Width));
    const size_t num_passes = frame.Interlace ? kPassStart.size() : 1;
    for (size_t pass = 0; pass < num_passes; ++pass) {
      const int32_t step = frame.Interlace ? kPassStep[pass] : 1;
      for (int32_t y = frame.Interlace ? kPassStart[pass] : 0; y < frame.Height; y += step) {
        if (time_.IsOverAfter(frame.Width)) {
          return Stopped(kFormat);
        }
        if (DGifGetLine(gif_, row.data(), frame.Width) == GIF_ERROR) {
          return Failed("the pixels");
        }
        uint8_t* out = image.pixels.data() + 3 * ((top_ + static_cast<size_t>(y)) * width_ + left_);
        for (const GifPixelType index : row) {
          out = std::copy_n(colours[index].begin(), 3, out);
        }
      }
    }
    return image;
  }

  ColourTable FrameColours() const {
    const ColorMapObject* map =
        gif_->Image.ColorMap != nullptr ? gif_->Image.ColorMap : gif_->SColorMap;
    if (map == nullptr) {
      return GreyTable();
    }
    std::vector<uint8_t> entries;
    for (int i = 0; i < map->ColorCount; ++i) {
      const GifColorType& colour = map->Colors[i];
      entries.insert(entries.end(), {colour.Red, colour.Green, colour.Blue});
    }
    return TableOf(entries);
  }

  absl::Status Failed(const std::string& where) const {
    return source_.ran_out ? Truncated(kFormat, "the file ends in " + where)
                           : Corrupt(kFormat, where + " breaks the format");
  }

  const DecodeLimits& limits_;
  TimeLimit& time_;
  Source source_;
  GifFileType* gif_ = nullptr;
  uint8_t transparent_ = 0;  // index; the last one that an extension before the frame names
  uint32_t left_ = 0;
  uint32_t top_ = 0;
  uint32_t width_ = 0;
  uint32_t height_ = 0;
};

}  // namespace

absl::StatusOr<RgbImage> DecodeGif(std::span<const uint8_t> encoded, const DecodeLimits& limits,
                                   TimeLimit& time) {
  return GifReader(encoded, limits, time).Read();
}

}  // namespace conclave::image
