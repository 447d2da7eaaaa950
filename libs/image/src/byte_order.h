// Integers of files: big-endian as JPEG and PNG store them, little-endian (Le) as BMP, GIF and WebP
// do. The caller has checked that the bytes are there.
#pragma once

#include <cstdint>

namespace conclave::image {

inline uint32_t ReadU16(const uint8_t* bytes) { return uint32_t{bytes[0]} << 8 | bytes[1]; }

inline uint32_t ReadU32(const uint8_t* bytes) { return ReadU16(bytes) << 16 | ReadU16(bytes + 2); }

inline uint32_t ReadU16Le(const uint8_t* bytes) { return uint32_t{bytes[1]} << 8 | bytes[0]; }

inline uint32_t ReadU32Le(const uint8_t* bytes) {
  return ReadU16Le(bytes + 2) << 16 | ReadU16Le(bytes);
}

}  // namespace conclave::image
