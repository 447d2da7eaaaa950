// What calls, replies and NACKs have in common.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/transport/frame.h"

namespace conclave::transport {

constexpr uint64_t AlignUp(uint64_t bytes) {
  return (bytes + kFrameAlignment - 1) / kFrameAlignment * kFrameAlignment;
}

// Bytes of the arrays of `pairs` pairs: a weight, a row and an expert each.
constexpr uint64_t PairBytes(uint64_t pairs) { return pairs * (4 + 2 + 2); }

inline constexpr uint64_t kPayloadCrcBytes = 4;

absl::Status FrameError(const char* reason, const std::string& why);

// Header of a frame of ours with everything but type, counts, times and lengths taken from `call`.
FrameHeader HeaderFor(const CallView& call, FrameType type);

// Stores the header, with the CRC over it and the `array_bytes` bytes after it.
void SealFrame(FrameHeader header, uint64_t array_bytes, std::span<std::byte> out);

// Reads the header and checks size, magic and version.
absl::StatusOr<FrameHeader> ReadHeader(std::span<const std::byte> frame);

// The payload is as long as what was received.
absl::Status CheckPayloadSize(std::span<const std::byte> frame, const FrameHeader& header);

// Reads the header and checks what does not depend on the type's payload: size, magic, version,
// type, flags, and that the payload is as long as what was received.
absl::StatusOr<FrameHeader> OpenFrame(std::span<const std::byte> frame, FrameType type,
                                      uint16_t flags_known);

// The CRC of the header and of the `array_bytes` after it, which are within the frame.
absl::Status CheckCrc(std::span<const std::byte> frame, const FrameHeader& header,
                      uint64_t array_bytes);

}  // namespace conclave::transport
