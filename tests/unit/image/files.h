// Files of the golden folder and bytes as Decode takes them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace conclave::image {

using Bytes = std::vector<uint8_t>;

// Empty if the file cannot be read.
Bytes ReadFileBytes(const std::string& path);

// Of a picture in tests/golden/data/images.
std::string GoldenPath(const std::string& name);

inline std::span<const std::byte> AsInput(std::span<const uint8_t> bytes) {
  return std::as_bytes(bytes);
}

}  // namespace conclave::image
