// Big-endian integers, as both JPEG and PNG store them. The caller has checked that the bytes are
// there.
#pragma once

#include <cstdint>

namespace conclave::image {

inline uint32_t ReadU16(const uint8_t* bytes) { return uint32_t{bytes[0]} << 8 | bytes[1]; }

inline uint32_t ReadU32(const uint8_t* bytes) { return ReadU16(bytes) << 16 | ReadU16(bytes + 2); }

}  // namespace conclave::image
