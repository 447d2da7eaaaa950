#include "http/npy.h"

#include <bit>
#include <cstddef>
#include <string_view>

namespace conclave::frontend {
namespace {

// Magic, version and header of `count` values.
std::string Head(std::string_view descr, size_t count, int32_t rows, int32_t columns) {
  // The data starts at a multiple of 64.
  constexpr size_t kAlignment = 64;
  constexpr size_t kPreambleBytes = 10;
  const size_t stride = static_cast<size_t>(rows) * static_cast<size_t>(columns);
  std::string shape = "(" + std::to_string(count) + ",)";
  if (stride > 0 && count % stride == 0) {
    shape = "(" + std::to_string(count / stride) + ", " + std::to_string(rows) + ", " +
            std::to_string(columns) + ")";
  }
  std::string header =
      "{'descr': '" + std::string(descr) + "', 'fortran_order': False, 'shape': " + shape + ", }";
  while ((kPreambleBytes + header.size() + 1) % kAlignment != 0) {
    header += ' ';
  }
  header += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(header.size() & 0xFF);
  out += static_cast<char>(header.size() >> 8);
  return out + header;
}

void AppendLittleEndian(uint32_t bits, int num_bytes, std::string& out) {
  for (int i = 0; i < num_bytes; ++i) {
    out += static_cast<char>(bits >> (8 * i) & 0xFF);
  }
}

}  // namespace

std::string NpyFile(std::span<const int16_t> values, int32_t rows, int32_t columns) {
  std::string out = Head("<i2", values.size(), rows, columns);
  for (const int16_t value : values) {
    AppendLittleEndian(static_cast<uint16_t>(value), 2, out);
  }
  return out;
}

std::string NpyFile(std::span<const float> values, int32_t rows, int32_t columns) {
  std::string out = Head("<f4", values.size(), rows, columns);
  for (const float value : values) {
    AppendLittleEndian(std::bit_cast<uint32_t>(value), 4, out);
  }
  return out;
}

}  // namespace conclave::frontend
