// SHA-256 in lower case hexadecimal, as the recordings give it.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace conclave::image {

std::string Sha256(std::span<const uint8_t> bytes);

// Of the numbers as they lie in memory; the recordings are little-endian.
std::string Sha256(std::span<const float> numbers);

}  // namespace conclave::image
