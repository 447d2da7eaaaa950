#include "digest.h"

#include <openssl/sha.h>

#include <array>

namespace conclave::image {

std::string Sha256(std::span<const uint8_t> bytes) {
  std::array<uint8_t, SHA256_DIGEST_LENGTH> digest{};
  SHA256(bytes.data(), bytes.size(), digest.data());
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const uint8_t byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::string Sha256(std::span<const float> numbers) {
  return Sha256(std::span(reinterpret_cast<const uint8_t*>(numbers.data()), numbers.size_bytes()));
}

}  // namespace conclave::image
