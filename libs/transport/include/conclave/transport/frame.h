// The bytes of the data plane: encode and parse calls, replies and NACKs (data-plane.md section 3,
// bad-inputs.md 4.8).
//
// A frame is a 64-byte little-endian header, the small arrays, zero padding to the next multiple of
// 64 bytes, the rows. The parsers are pure functions over a byte span: every length and index is
// range-checked in 64 bits against the limits before use, and nothing is allocated unless it is the
// status of a refused frame.
//
//   CALL   pair_weight f32[pairs] · pair_row u16[pairs] · pair_expert u16[pairs] · padding ·
//          rows [rows][row_width]
//   REPLY  rows [rows][row_width]
//   NACK   code u16 · n u16 · worker id u32[n]
//   CANCEL, CREDIT, PING, PONG  nothing
//
// With kFlagPayloadCrc a CRC-32C of the rows alone follows them. `payload_bytes` counts everything
// after the header.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/crc32c.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

inline constexpr size_t kFrameHeaderBytes = 64;
inline constexpr size_t kFrameAlignment = 64;
inline constexpr uint8_t kFrameMagic[3] = {'C', 'N', 'V'};
inline constexpr uint8_t kFrameVersion = 1;

enum class FrameType : uint16_t {
  kCall = 1,
  kReply = 2,
  kNack = 3,
  kCancel = 4,
  kCredit = 5,
  kPing = 6,
  kPong = 7,
};

// Bits of FrameHeader::flags.
//   0-1   dtype of dispatched rows    0 f32, 1 bf16, 2 fp16, 3 fp8
//   2-3   dtype of combined rows      likewise
//   4     phase                       0 decode, 1 prefill
//   5     hedge                       the same call is under way to another replica
//   6     want-trace
//   7     slot-reply
//   8     pair-reply                  one term per pair instead of one sum per row
//   9     payload CRC
//   10-15 reserved, 0
// Bits 5 to 8 have their numbers but nobody to honour them yet: a frame that sets one is refused
// ("flags"), because ignoring pair-reply, for one, would combine wrong rows.
inline constexpr int kFlagDispatchDtypeShift = 0;
inline constexpr int kFlagCombineDtypeShift = 2;
inline constexpr uint16_t kFlagDtypeMask = 0x3;
inline constexpr uint16_t kFlagPrefill = 1u << 4;
inline constexpr uint16_t kFlagPayloadCrc = 1u << 9;
inline constexpr uint16_t kFlagsKnown = 0xfu | kFlagPrefill | kFlagPayloadCrc;

// The header as it lies in memory. Every field is naturally aligned, so there is no padding.
struct FrameHeader {
  uint8_t magic[3];
  uint8_t version;
  uint16_t type;
  uint16_t flags;
  uint64_t epoch;
  uint32_t frontend;
  uint32_t slot;
  uint64_t seq;
  uint16_t model;
  uint16_t layer;
  uint16_t rows;
  uint16_t pairs;  // 0 in REPLY and NACK
  uint8_t micro_batch;
  uint8_t attempt;
  uint16_t row_width;
  uint32_t time_us;     // CALL: deadline from receipt; REPLY: service time
  uint32_t credits;     // rows granted (REPLY, CREDIT); 0 where no credits are in use
  uint32_t image_rows;  // CALL: image rows; REPLY: queue time in µs
  uint32_t payload_bytes;
  uint32_t crc;  // CRC-32C of the header with this field 0, then of the small arrays
};
static_assert(sizeof(FrameHeader) == kFrameHeaderBytes);

// Rows of one call at most, whatever the limits say: bounds the stack that ValidateCall needs.
inline constexpr uint16_t kMaxRowsPerCall = 4096;

// What a parser may accept from its peer: agreed once per pair. max_rows <= kMaxRowsPerCall.
struct FrameLimits {
  uint16_t max_rows = 256;
  uint16_t max_pairs = 512;
  uint16_t row_width = 0;
  WireDtype dtype = WireDtype::kBf16;
  uint16_t num_layers = 0;       // layer < num_layers
  uint16_t num_experts_max = 0;  // expert id < num_experts_max
  uint16_t top_k = 2;            // pairs of one row at most
  uint16_t num_models = 1;
  // Largest weight, and largest sum of the weights of one row: 1 for softmax gates; a gate that
  // scales its weights has its own bound. kGateTolerance · gate_bound is allowed on top.
  float gate_bound = 1.0f;
};

// Room for the rounding of a gate's f32 division: at most a few units in the last place (2^-23) per
// weight, so this leaves a factor of ten for ten weights and still refuses any weight that was
// meant to be larger.
inline constexpr float kGateTolerance = 1e-5f;

// Bytes that EncodeCall, EncodeReply and EncodeNack need at most under `limits`.
size_t MaxFrameBytes(const FrameLimits& limits);

// Bytes of the frame that EncodeCall and EncodeReply make of so many pairs and rows, without a CRC
// of the rows, which takes 4 more.
uint64_t CallFrameBytes(uint64_t num_pairs, uint64_t row_bytes);
uint64_t ReplyFrameBytes(uint64_t row_bytes);

// Checks a call that comes from outside, by frame or by view, against what was agreed. Reasons and
// codes:
//   cluster_mismatch  kInvalidArgument  model id not agreed
//   no_such_layer     kInvalidArgument
//   shape_mismatch    kInvalidArgument  row width or dtype
//   bad_items         kInvalidArgument  counts and indices, order, duplicates, a row without a pair
//   not_held          kNotFound         an expert id beyond the model's
//   bad_gate          kInvalidArgument  weights not finite, negative or above the bound
absl::Status ValidateCall(const CallView& call, const FrameLimits& limits);

// Writes a frame to `out` and returns its length. `out` is large enough (MaxFrameBytes) and 64-byte
// aligned; the call or reply is within the limits. With `with_payload_crc` the rows are covered by
// a CRC-32C of their own, after them. The rows of a reply may lie where they go: at
// out[kFrameHeaderBytes].
size_t EncodeCall(const CallView& call, bool with_payload_crc, std::span<std::byte> out);
size_t EncodeReply(const CallView& call, const ReplyView& reply, bool with_payload_crc,
                   std::span<std::byte> out);

// Views into `frame`, which must be 64-byte aligned and outlive them, and must be exactly one
// frame. Beside the errors of ValidateCall (kInvalidArgument unless noted):
//   short_header, bad_magic, version, type, flags
//   bad_length        payload bytes disagree with the counts, with the bytes received or with the
//                     limits
//   bad_padding       not zero
//   bad_crc           kDataLoss: drop it, the sender's deadline will resend
//   corrupt_payload   kDataLoss: the header is sound, so the sender can be told to resend
absl::StatusOr<CallView> ParseCall(std::span<const std::byte> frame, const FrameLimits& limits);

struct ParsedReply {
  Epoch epoch;
  uint32_t frontend = 0;
  uint32_t slot = 0;
  uint64_t seq = 0;
  uint16_t model = 0;
  LayerId layer;
  uint8_t micro_batch = 0;
  uint8_t attempt = 0;
  uint16_t num_rows = 0;
  uint32_t service_us = 0;
  uint32_t queue_us = 0;
  std::span<const std::byte> rows;
};
// Reasons as of ParseCall, less those of pairs and gate.
absl::StatusOr<ParsedReply> ParseReply(std::span<const std::byte> frame, const FrameLimits& limits);

// Whether `reply` answers `call`. "stale_reply" (kFailedPrecondition: drop it and count) when it
// belongs to another (frontend, slot, seq); "protocol_violation" (kInternal: the peer is broken)
// when it claims to answer this call but for another epoch, model, layer or number of rows.
absl::Status CheckAnswers(const CallView& call, const ParsedReply& reply);

// Why a worker refuses a call. The numbers are on the wire and are never reused.
enum class NackCode : uint16_t {
  kNotHeld = 1,
  kNoSuchLayer = 2,
  kBadItems = 3,
  kShapeMismatch = 4,
  kBadGate = 5,
  kNonfiniteInput = 6,
  kCorruptPayload = 7,
  kBadLength = 8,
  kClusterMismatch = 9,
  kDeadline = 10,
  kNumericError = 11,
  kInternal = 12,
  kBusy = 13,
};

// The code for an error of a parser or a handler; kInternal for one that has no code of its own.
NackCode NackCodeOf(const absl::Status& status);
// The error that a NACK stands for, with the code's reason and canonical status code.
absl::Status ToStatus(NackCode code);

// Holders that one NACK names at most.
inline constexpr uint16_t kMaxNackHolders = 64;

// Refuses `call`; `worker_epoch` is the epoch the worker is in, `holders` (the first
// kMaxNackHolders are sent) the workers it knows to hold what it does not. Worker ids are not
// negative.
size_t EncodeNack(const CallView& call, Epoch worker_epoch, NackCode code,
                  std::span<const WorkerId> holders, std::span<std::byte> out);

struct ParsedNack {
  Epoch epoch;
  uint32_t frontend = 0;
  uint32_t slot = 0;
  uint64_t seq = 0;
  NackCode code = NackCode::kInternal;
  std::span<const uint32_t> holders;
};
// A NACK has no rows and no payload CRC: the header CRC covers all of it. Reasons: short_header,
// bad_magic, version, type, flags, bad_length, bad_crc, and bad_items for an unknown code or a
// count that must be 0.
absl::StatusOr<ParsedNack> ParseNack(std::span<const std::byte> frame);

// CANCEL, CREDIT, PING and PONG are a header alone. What is not named here is 0 in it, and so is a
// field here that its type has no use for.
struct ControlFrame {
  FrameType type = FrameType::kPing;
  Epoch epoch{};          // what the sender has seen
  uint32_t frontend = 0;  // of the pair
  uint32_t slot = 0;      // CANCEL: the call's
  uint64_t seq = 0;       // CANCEL: the call's; PING: the sender's count; PONG: that of the PING
  uint32_t credits = 0;   // CREDIT: rows granted
};

// Writes kFrameHeaderBytes to `out`, which is 64-byte aligned.
void EncodeControl(const ControlFrame& control, std::span<std::byte> out);

// Reasons: short_header, bad_magic, version, type (one of the others), flags, bad_length, bad_crc,
// and bad_items for a field that must be 0.
absl::StatusOr<ControlFrame> ParseControl(std::span<const std::byte> frame);

// The header of a frame of any known type, to see which parser is its own. Reasons: short_header,
// bad_magic, version, type, bad_length. Its CRC has not been looked at.
absl::StatusOr<FrameHeader> PeekHeader(std::span<const std::byte> frame);

// Whether PeekHeader accepts the frame and the CRC of its header and arrays is right: what a parser
// then refuses about it can be told to the sender in a NACK.
bool IsHeaderSound(std::span<const std::byte> frame);

}  // namespace conclave::transport
