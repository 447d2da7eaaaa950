#include "conclave/base/crc32c.h"

#include <nmmintrin.h>

#include <array>
#include <cstring>

namespace conclave {
namespace {

constexpr uint32_t kReflectedPolynomial = 0x82f63b78;

// kTables[j][b] is the CRC of byte b followed by j zero bytes, so that eight bytes advance by eight
// independent look-ups (slicing by eight; Kounavis and Berry, "A Systematic Approach to Building
// High Performance Software-based CRC Generators", 2005).
constexpr std::array<std::array<uint32_t, 256>, 8> MakeTables() {
  std::array<std::array<uint32_t, 256>, 8> tables{};
  for (uint32_t b = 0; b < 256; ++b) {
    uint32_t crc = b;
    for (int bit = 0; bit < 8; ++bit) {
      crc = (crc >> 1) ^ ((crc & 1u) != 0 ? kReflectedPolynomial : 0u);
    }
    tables[0][b] = crc;
  }
  for (size_t j = 1; j < 8; ++j) {
    for (uint32_t b = 0; b < 256; ++b) {
      const uint32_t before = tables[j - 1][b];
      tables[j][b] = (before >> 8) ^ tables[0][before & 0xffu];
    }
  }
  return tables;
}

constexpr std::array<std::array<uint32_t, 256>, 8> kTables = MakeTables();

uint64_t Load64(const std::byte* p) {
  uint64_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

__attribute__((target("sse4.2"))) uint32_t ExtendSse42(const std::byte* p, size_t n,
                                                       uint32_t state) {
  uint64_t wide = state;
  for (; n >= 8; n -= 8, p += 8) {
    wide = _mm_crc32_u64(wide, Load64(p));
  }
  state = static_cast<uint32_t>(wide);
  for (; n > 0; --n, ++p) {
    state = _mm_crc32_u8(state, std::to_integer<uint8_t>(*p));
  }
  return state;
}

uint32_t ExtendPortable(const std::byte* p, size_t n, uint32_t state) {
  for (; n >= 8; n -= 8, p += 8) {
    const uint64_t word = Load64(p) ^ state;
    state = 0;
    for (size_t j = 0; j < 8; ++j) {
      state ^= kTables[7 - j][(word >> (8 * j)) & 0xffu];
    }
  }
  for (; n > 0; --n, ++p) {
    state = (state >> 8) ^ kTables[0][(state ^ std::to_integer<uint32_t>(*p)) & 0xffu];
  }
  return state;
}

}  // namespace

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc) {
  static const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;
  if (!has_instruction) {
    return Crc32cPortable(bytes, crc);
  }
  return ~ExtendSse42(bytes.data(), bytes.size(), ~crc);
}

uint32_t Crc32cPortable(std::span<const std::byte> bytes, uint32_t crc) {
  return ~ExtendPortable(bytes.data(), bytes.size(), ~crc);
}

}  // namespace conclave
