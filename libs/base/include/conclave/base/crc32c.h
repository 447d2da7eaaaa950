// CRC-32C (Castagnoli), reflected, polynomial 0x1edc6f41, initial and final xor 0xffffffff, as in
// RFC 3720 appendix B.4: the CRC of "123456789" is 0xe3069283.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace conclave {

// `crc` is the result for the bytes before `bytes`, so that Crc32c(b, Crc32c(a)) is the CRC of a
// followed by b. Uses the CRC32 instruction where the CPU has it. Any thread.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);

// The same by tables alone (slicing by eight): the reference, and what CPUs without SSE4.2 run.
uint32_t Crc32cPortable(std::span<const std::byte> bytes, uint32_t crc = 0);

}  // namespace conclave
