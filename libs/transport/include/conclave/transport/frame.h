// The bytes of the data plane: encode and parse calls, replies and NACKs (data-plane.md section 3, bad-inputs.md 4.8).
//
// A frame is a 64-byte little-endian header, the small arrays, padding to the next multiple of 64 bytes, the rows. The
// parser is a pure function over a byte span: every length and index is range-checked in 64 bits against the limits
// before use, and nothing is allocated.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

inline constexpr size_t kFrameHeaderBytes = 64;
inline constexpr size_t kFrameAlignment = 64;

// What a parser may accept from its peer: agreed once per pair.
struct FrameLimits {
  uint16_t max_rows = 256;
  uint16_t max_pairs = 512;
  uint16_t row_width = 0;
  WireDtype dtype = WireDtype::kBf16;
  uint16_t num_layers = 0;      // layer < num_layers
  uint16_t num_experts_max = 0; // expert id < num_experts_max
  uint16_t top_k = 2;           // pairs of one row
  uint16_t num_models = 1;
};

// Bytes that EncodeCall/EncodeReply need at most under `limits`.
size_t MaxFrameBytes(const FrameLimits& limits);

// Writes a frame to `out` and returns its length. `out` is large enough (MaxFrameBytes) and 64-byte aligned. With
// `with_payload_crc` the rows are covered by a CRC-32C of their own, stored after them.
size_t EncodeCall(const CallView& call, bool with_payload_crc, std::span<std::byte> out);
size_t EncodeReply(const CallView& call, const ReplyView& reply, bool with_payload_crc,
                   std::span<std::byte> out);

// Views into `frame`, which must be 64-byte aligned and outlive them. Reasons: short_header, bad_magic, version, type,
// flags, bad_crc, bad_length, no_such_layer, bad_items, shape_mismatch, bad_gate, corrupt_payload.
absl::StatusOr<CallView> ParseCall(std::span<const std::byte> frame, const FrameLimits& limits);

struct ParsedReply {
  Epoch epoch;
  uint32_t frontend = 0;
  uint32_t slot = 0;
  uint64_t seq = 0;
  LayerId layer;
  uint16_t num_rows = 0;
  uint32_t service_us = 0;
  uint32_t queue_us = 0;
  std::span<const std::byte> rows;
};
absl::StatusOr<ParsedReply> ParseReply(std::span<const std::byte> frame, const FrameLimits& limits);

// CRC-32C (Castagnoli), reflected, initial and final xor 0xffffffff; `crc` continues an earlier one.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t crc = 0);

}  // namespace conclave::transport
