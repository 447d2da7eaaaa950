#include "gif_samples.h"

#include <algorithm>
#include <bit>

#include "png_samples.h"

namespace conclave::image {
namespace {

void Append16(Bytes& out, uint32_t value) {
  out.push_back(static_cast<uint8_t>(value));
  out.push_back(static_cast<uint8_t>(value >> 8));
}

// The bits of a flag byte that say whether and how large.
uint8_t PaletteFlags(const Bytes& palette) {
  if (palette.empty()) {
    return 0;
  }
  return static_cast<uint8_t>(0x80 | (std::countr_zero(palette.size() / 3) - 1));
}

// Starts over before its codes could grow: longer than it need be, and simple.
Bytes Stream(const GifSpec& spec) {
  const uint32_t clear = 1U << spec.code_bits;
  // A bomb is refused by its header.
  const uint32_t num_pixels = std::min(uint32_t{spec.frame_width} * spec.frame_height, 100'000U);
  std::vector<uint32_t> codes;
  for (uint32_t i = 0; i < num_pixels; ++i) {
    if (i % (clear - 2) == 0) {
      codes.push_back(clear);
    }
    codes.push_back(spec.pixels.empty() ? i % clear : spec.pixels[i]);
  }
  codes.push_back(clear + 1);
  return GifCodes(codes, spec.code_bits + 1);
}

}  // namespace

Bytes GifCodes(const std::vector<uint32_t>& codes, int width) {
  Bytes out((codes.size() * static_cast<size_t>(width) + 7) / 8);
  size_t bit = 0;
  for (const uint32_t code : codes) {
    for (int i = 0; i < width; ++i, ++bit) {
      out[bit / 8] = static_cast<uint8_t>(out[bit / 8] | (code >> i & 1) << bit % 8);
    }
  }
  return out;
}

Bytes GifParts(const Bytes& stream) {
  Bytes out;
  for (size_t i = 0; i < stream.size(); i += 255) {
    const size_t length = std::min<size_t>(stream.size() - i, 255);
    out.push_back(static_cast<uint8_t>(length));
    const auto begin = stream.begin() + static_cast<ptrdiff_t>(i);
    out.insert(out.end(), begin, begin + static_cast<ptrdiff_t>(length));
  }
  out.push_back(0);
  return out;
}

Bytes GifFrame(const GifSpec& spec) {
  Bytes out;
  if (spec.transparent) {
    out = {'!', 0xF9, 4, 1, 0, 0, *spec.transparent, 0};
  }
  out.push_back(',');
  for (const uint32_t value : {spec.left, spec.top, spec.frame_width, spec.frame_height}) {
    Append16(out, value);
  }
  out.push_back(
      static_cast<uint8_t>(PaletteFlags(spec.frame_palette) | (spec.is_interlaced ? 0x40 : 0)));
  return Concat({out, spec.frame_palette, Bytes{spec.code_bits}, GifParts(Stream(spec))});
}

Bytes GifWithoutEnd(const GifSpec& spec) {
  Bytes out{'G', 'I', 'F', '8', '9', 'a'};
  Append16(out, spec.width);
  Append16(out, spec.height);
  out.insert(out.end(), {PaletteFlags(spec.palette), 0, 0});
  return Concat({out, spec.palette, GifFrame(spec)});
}

Bytes MakeGif(const GifSpec& spec) { return Concat({GifWithoutEnd(spec), Bytes{';'}}); }

}  // namespace conclave::image
