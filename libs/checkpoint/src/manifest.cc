#include "conclave/checkpoint/manifest.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cstdint>
#include <string_view>

#include "conclave/base/check.h"

namespace conclave::checkpoint {
namespace {

constexpr size_t kSampleBytes = 4096;

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

  std::string Hex() {
    unsigned char digest[32];
    unsigned length = 0;
    CONCLAVE_CHECK(EVP_DigestFinal_ex(context_, digest, &length) == 1 && length == sizeof digest);
    constexpr char kDigits[] = "0123456789abcdef";
    std::string hex;
    for (const unsigned char byte : digest) {
      hex += kDigits[byte >> 4];
      hex += kDigits[byte & 15];
    }
    return hex;
  }

 private:
  EVP_MD_CTX* context_;
};

}  // namespace

std::string ManifestHash(const Checkpoint& checkpoint) {
  Sha256 hash;
  hash.AddText(checkpoint.config_text());
  for (const TensorView& tensor : checkpoint.tensors()) {
    hash.AddText(tensor.name);
    hash.AddText(NameOf(tensor.dtype));
    hash.Add(tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
    const size_t size = tensor.bytes.size();
    const size_t sample = std::min(size, kSampleBytes);
    for (const size_t at : {size_t{0}, (size - sample) / 2, size - sample}) {
      hash.Add(tensor.bytes.data() + at, sample);
    }
  }
  return hash.Hex();
}

}  // namespace conclave::checkpoint
