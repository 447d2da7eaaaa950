// SHA-256 of what is added, piece by piece.
#pragma once

#include <openssl/evp.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "conclave/base/check.h"

namespace conclave::checkpoint {

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new()) {
    CONCLAVE_CHECK(context_ != nullptr && EVP_DigestInit_ex(context_, EVP_sha256(), nullptr) == 1);
  }
  ~Sha256() { EVP_MD_CTX_free(context_); }
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void Add(const void* bytes, size_t size) {
    CONCLAVE_CHECK(EVP_DigestUpdate(context_, bytes, size) == 1);
  }
  // With its length, so that neighbours cannot run into each other.
  void AddText(std::string_view text) {
    const uint64_t size = text.size();
    Add(&size, sizeof size);
    Add(text.data(), text.size());
  }

  // The last call.
  std::array<uint8_t, 32> Digest() {
    std::array<uint8_t, 32> digest;
    unsigned length = 0;
    CONCLAVE_CHECK(EVP_DigestFinal_ex(context_, digest.data(), &length) == 1 &&
                   length == digest.size());
    return digest;
  }
  // The same in 64 digits.
  std::string Hex() {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string hex;
    for (const uint8_t byte : Digest()) {
      hex += kDigits[byte >> 4];
      hex += kDigits[byte & 15];
    }
    return hex;
  }

 private:
  EVP_MD_CTX* context_;
};

}  // namespace conclave::checkpoint
