// BMP files made byte by byte, right or wrong on purpose.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "files.h"

namespace conclave::image {

struct BmpSpec {
  int32_t width = 0;
  int32_t height = 0;  // negative: rows from the top
  uint16_t bits = 24;
  uint32_t header_bytes = 40;
  uint32_t compression = 0;
  std::vector<uint32_t> masks = {};      // red, green, blue, alpha
  uint32_t num_colours = 0;              // as the header says; 0 stands for all
  std::vector<uint8_t> palette = {};     // as it lies in the file
  std::optional<uint32_t> offset = {};   // as the header says; nullopt: the right one
  std::optional<int32_t> num_rows = {};  // as there are; nullopt: |height|
  std::vector<uint8_t> rows = {};        // repeated or cut to what the picture needs
};

Bytes MakeBmp(const BmpSpec& spec);

}  // namespace conclave::image
