#include "conclave/transport/pair_key.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>
#include <cstring>

#include "conclave/base/check.h"

namespace conclave::transport {

// Little-endian machines only, as all frames are (frame_io.cc checks it).
uint64_t PairKey(uint64_t worker_key, uint32_t frontend_id) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest{};
  unsigned int digest_bytes = 0;
  std::array<unsigned char, sizeof(frontend_id)> message{};
  std::memcpy(message.data(), &frontend_id, sizeof(frontend_id));
  const unsigned char* made = HMAC(EVP_sha256(), &worker_key, static_cast<int>(sizeof(worker_key)),
                                   message.data(), message.size(), digest.data(), &digest_bytes);
  CONCLAVE_CHECK(made != nullptr && digest_bytes == 32);
  uint64_t key;
  std::memcpy(&key, digest.data(), sizeof(key));
  return key;
}

}  // namespace conclave::transport
