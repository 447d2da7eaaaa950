#include "http/npy.h"

#include <cstddef>

namespace conclave::frontend {

std::string NpyFile(std::span<const int16_t> values, int32_t num_moe_layers, int32_t top_k) {
  // The data starts at a multiple of 64.
  constexpr size_t kAlignment = 64;
  constexpr size_t kPreambleBytes = 10;
  const auto per_position = static_cast<size_t>(num_moe_layers) * static_cast<size_t>(top_k);
  std::string shape = "(" + std::to_string(values.size()) + ",)";
  if (per_position > 0 && values.size() % per_position == 0) {
    shape = "(" + std::to_string(values.size() / per_position) + ", " +
            std::to_string(num_moe_layers) + ", " + std::to_string(top_k) + ")";
  }
  std::string header = "{'descr': '<i2', 'fortran_order': False, 'shape': " + shape + ", }";
  while ((kPreambleBytes + header.size() + 1) % kAlignment != 0) {
    header += ' ';
  }
  header += '\n';
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(header.size() & 0xFF);
  out += static_cast<char>(header.size() >> 8);
  out += header;
  for (const int16_t value : values) {
    const auto bits = static_cast<uint16_t>(value);
    out += static_cast<char>(bits & 0xFF);
    out += static_cast<char>(bits >> 8);
  }
  return out;
}

}  // namespace conclave::frontend
