#include "png_samples.h"

#include <zlib.h>

#include <array>
#include <random>

namespace conclave::image {
namespace {

struct Pass {
  uint32_t left;
  uint32_t top;
  uint32_t step_x;
  uint32_t step_y;
};

// PNG specification, section 8.2.
constexpr std::array<Pass, 7> kAdam7{{{0, 0, 8, 8},
                                      {4, 0, 8, 8},
                                      {0, 4, 4, 8},
                                      {2, 0, 4, 4},
                                      {0, 2, 2, 4},
                                      {1, 0, 2, 2},
                                      {0, 1, 1, 2}}};

void AppendPass(const PngHeader& header, const std::vector<uint16_t>& samples, const Pass& pass,
                Bytes& out) {
  if (pass.left >= header.width) {
    return;
  }
  const auto channels = static_cast<uint32_t>(PngChannels(header.colour));
  for (uint32_t y = pass.top; y < header.height; y += pass.step_y) {
    out.push_back(0);  // no filter
    uint32_t bits = 0;
    int num_bits = 0;
    for (uint32_t x = pass.left; x < header.width; x += pass.step_x) {
      for (uint32_t c = 0; c < channels; ++c) {
        bits = bits << header.bit_depth | samples[(y * header.width + x) * channels + c];
        for (num_bits += header.bit_depth; num_bits >= 8; num_bits -= 8) {
          out.push_back(static_cast<uint8_t>(bits >> (num_bits - 8)));
        }
      }
    }
    if (num_bits > 0) {
      out.push_back(static_cast<uint8_t>(bits << (8 - num_bits)));
    }
  }
}

}  // namespace

Bytes Concat(std::initializer_list<Bytes> parts) {
  Bytes out;
  for (const Bytes& part : parts) {
    out.insert(out.end(), part.begin(), part.end());
  }
  return out;
}

Bytes BigEndian32(uint32_t value) {
  return {static_cast<uint8_t>(value >> 24), static_cast<uint8_t>(value >> 16),
          static_cast<uint8_t>(value >> 8), static_cast<uint8_t>(value)};
}

Bytes PngSignature() { return {0x89, 'P', 'N', 'G', '\r', '\n', 0x1A, '\n'}; }

Bytes PngChunk(const std::string& type, const Bytes& body) {
  const Bytes checked = Concat({Bytes(type.begin(), type.end()), body});
  return Concat({BigEndian32(static_cast<uint32_t>(body.size())), checked,
                 BigEndian32(static_cast<uint32_t>(
                     crc32(0, checked.data(), static_cast<uInt>(checked.size()))))});
}

Bytes PngHeaderChunk(const PngHeader& header) {
  return PngChunk("IHDR", Concat({BigEndian32(header.width),
                                  BigEndian32(header.height),
                                  {header.bit_depth, header.colour, header.compression,
                                   header.filter, header.interlace}}));
}

int PngChannels(uint8_t colour) {
  switch (colour) {
    case 2:
      return 3;
    case 4:
      return 2;
    case 6:
      return 4;
    default:
      return 1;
  }
}

Bytes Deflate(const Bytes& raw) {
  uLongf size = compressBound(static_cast<uLong>(raw.size()));
  Bytes out(size);
  compress2(out.data(), &size, raw.data(), static_cast<uLong>(raw.size()), 9);
  out.resize(size);
  return out;
}

Bytes PngRows(const PngHeader& header, const std::vector<uint16_t>& samples) {
  Bytes out;
  if (header.interlace == 0) {
    AppendPass(header, samples, {0, 0, 1, 1}, out);
    return out;
  }
  for (const Pass& pass : kAdam7) {
    AppendPass(header, samples, pass, out);
  }
  return out;
}

Bytes MakePng(const PngHeader& header, const std::vector<uint16_t>& samples,
              const Bytes& before_data) {
  return Concat({PngSignature(), PngHeaderChunk(header), before_data,
                 PngChunk("IDAT", Deflate(PngRows(header, samples))), PngChunk("IEND", {})});
}

Bytes PngPalette(int num_colours) {
  Bytes body;
  for (int i = 0; i < num_colours; ++i) {
    body.push_back(static_cast<uint8_t>(i));
    body.push_back(static_cast<uint8_t>(255 - i));
    body.push_back(static_cast<uint8_t>(7 * i));
  }
  return PngChunk("PLTE", body);
}

std::vector<uint16_t> PngNoise(const PngHeader& header, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint16_t> samples(size_t{header.width} * header.height *
                                static_cast<size_t>(PngChannels(header.colour)));
  for (uint16_t& sample : samples) {
    sample = static_cast<uint16_t>(random() >> (32 - header.bit_depth));
  }
  return samples;
}

}  // namespace conclave::image
