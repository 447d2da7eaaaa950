// PNG files made byte by byte, right or wrong on purpose.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "files.h"

namespace conclave::image {

Bytes Concat(std::initializer_list<Bytes> parts);
Bytes BigEndian32(uint32_t value);

Bytes PngSignature();
// With length and a right checksum. `type` has four letters.
Bytes PngChunk(const std::string& type, const Bytes& body);

struct PngHeader {
  uint32_t width = 0;
  uint32_t height = 0;
  uint8_t bit_depth = 8;
  uint8_t colour = 2;
  uint8_t compression = 0;
  uint8_t filter = 0;
  uint8_t interlace = 0;
};

Bytes PngHeaderChunk(const PngHeader& header);
int PngChannels(uint8_t colour);
Bytes Deflate(const Bytes& raw);

// Filtered rows ready for Deflate (filter 0), pass by pass if interlaced; `samples` is [height,
// width, channels].
Bytes PngRows(const PngHeader& header, const std::vector<uint16_t>& samples);

// Signature, header, `before_data` (such as PLTE), one IDAT, IEND.
Bytes MakePng(const PngHeader& header, const std::vector<uint16_t>& samples,
              const Bytes& before_data = {});

// PLTE of `num_colours` colours (i, 255 − i, 7·i mod 256).
Bytes PngPalette(int num_colours);

// Samples that use the whole range of the header's depth.
std::vector<uint16_t> PngNoise(const PngHeader& header, uint32_t seed);

}  // namespace conclave::image
