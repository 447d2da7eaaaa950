#include "conclave/transport/frame.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "call_checks.h"
#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/rows.h"
#include "frame_io.h"

namespace conclave::transport {
namespace {

constexpr uint16_t DtypeBits(WireDtype dtype) { return dtype == WireDtype::kF32 ? 0 : 1; }

// Both dtype fields of a frame whose rows are, and whose answer will be, in `dtype`.
constexpr uint16_t DtypeFlags(WireDtype dtype) {
  return static_cast<uint16_t>((DtypeBits(dtype) << kFlagDispatchDtypeShift) |
                               (DtypeBits(dtype) << kFlagCombineDtypeShift));
}

constexpr uint16_t kDtypeFlagsMask =
    (kFlagDtypeMask << kFlagDispatchDtypeShift) | (kFlagDtypeMask << kFlagCombineDtypeShift);

uint64_t TailBytes(uint16_t flags) { return (flags & kFlagPayloadCrc) != 0 ? kPayloadCrcBytes : 0; }

// Copies the rows to `offset`, followed by their CRC if it is wanted. Returns the length of the
// frame.
size_t WriteRows(std::span<const std::byte> rows, uint64_t offset, bool with_crc,
                 std::span<std::byte> out) {
  CONCLAVE_CHECK(offset + rows.size() + (with_crc ? kPayloadCrcBytes : 0) <= out.size());
  // A worker may have computed its answer where it belongs in the frame.
  if (rows.data() != out.data() + offset) {
    std::memcpy(out.data() + offset, rows.data(), rows.size());
  }
  uint64_t end = offset + rows.size();
  if (with_crc) {
    const uint32_t crc = Crc32c(rows);
    std::memcpy(out.data() + end, &crc, sizeof(crc));
    end += kPayloadCrcBytes;
  }
  return end;
}

// The rows at `offset`, after the check of the payload's length and, where the frame has one, of
// its CRC.
absl::StatusOr<std::span<const std::byte>> ReadRows(std::span<const std::byte> frame,
                                                    const FrameHeader& header, uint64_t offset,
                                                    WireDtype dtype) {
  const uint64_t row_bytes = RowBytes(header.rows, header.row_width, dtype);
  const uint64_t expected = offset + row_bytes + TailBytes(header.flags);
  if (expected != frame.size()) {
    return FrameError("bad_length", "expected " + std::to_string(expected) +
                                        " bytes for its counts, found " +
                                        std::to_string(frame.size()));
  }
  const std::span<const std::byte> rows = frame.subspan(offset, row_bytes);
  if ((header.flags & kFlagPayloadCrc) != 0) {
    uint32_t crc;
    std::memcpy(&crc, frame.data() + offset + row_bytes, sizeof(crc));
    if (Crc32c(rows) != crc) {
      return Error(absl::StatusCode::kDataLoss, "corrupt_payload",
                   "frame: the CRC of the rows is wrong; the bytes changed on their way");
    }
  }
  return rows;
}

absl::Status CheckFrameSize(std::span<const std::byte> frame, const FrameLimits& limits) {
  if (frame.size() > MaxFrameBytes(limits)) {
    return FrameError("bad_length", "expected at most " + std::to_string(MaxFrameBytes(limits)) +
                                        " bytes, found " + std::to_string(frame.size()));
  }
  return absl::OkStatus();
}

CallView ViewOf(std::span<const std::byte> frame, const FrameHeader& header,
                std::span<const std::byte> rows, WireDtype dtype) {
  const std::byte* arrays = frame.data() + kFrameHeaderBytes;
  const size_t pairs = header.pairs;
  CallView call;
  call.epoch = Epoch(header.epoch);
  call.frontend = header.frontend;
  call.slot = header.slot;
  call.seq = header.seq;
  call.model = header.model;
  call.layer = LayerId(header.layer);
  call.phase = (header.flags & kFlagPrefill) != 0 ? Phase::kPrefill : Phase::kDecode;
  call.micro_batch = header.micro_batch;
  call.attempt = header.attempt;
  call.deadline_us = header.time_us;
  call.image_rows = static_cast<uint16_t>(header.image_rows);
  call.dtype = dtype;
  call.row_width = header.row_width;
  call.pair_weight = {reinterpret_cast<const float*>(arrays), pairs};
  call.pair_row = {reinterpret_cast<const uint16_t*>(arrays + 4 * pairs), pairs};
  call.pair_expert = {reinterpret_cast<const uint16_t*>(arrays + 6 * pairs), pairs};
  call.rows = rows;
  call.num_rows = header.rows;
  return call;
}

}  // namespace

size_t MaxFrameBytes(const FrameLimits& limits) {
  const uint64_t call = AlignUp(kFrameHeaderBytes + PairBytes(limits.max_pairs)) +
                        RowBytes(limits.max_rows, limits.row_width, limits.dtype) +
                        kPayloadCrcBytes;
  const uint64_t nack = kFrameHeaderBytes + 4 + uint64_t{4} * kMaxNackHolders;
  return std::max(call, nack);
}

uint64_t CallFrameBytes(uint64_t num_pairs, uint64_t row_bytes) {
  return AlignUp(kFrameHeaderBytes + PairBytes(num_pairs)) + row_bytes;
}

uint64_t ReplyFrameBytes(uint64_t row_bytes) { return kFrameHeaderBytes + row_bytes; }

size_t EncodeCall(const CallView& call, bool with_payload_crc, std::span<std::byte> out) {
  CONCLAVE_CHECK(reinterpret_cast<uintptr_t>(out.data()) % kFrameAlignment == 0);
  const size_t pairs = call.pair_row.size();
  const uint64_t arrays_end = kFrameHeaderBytes + PairBytes(pairs);
  const uint64_t rows_at = AlignUp(arrays_end);
  CONCLAVE_CHECK(rows_at <= out.size() && pairs <= UINT16_MAX);
  CONCLAVE_CHECK(call.pair_weight.size() == pairs && call.pair_expert.size() == pairs);
  CONCLAVE_CHECK(call.layer.value() >= 0 && call.layer.value() <= UINT16_MAX);

  std::byte* arrays = out.data() + kFrameHeaderBytes;
  std::memcpy(arrays, call.pair_weight.data(), 4 * pairs);
  std::memcpy(arrays + 4 * pairs, call.pair_row.data(), 2 * pairs);
  std::memcpy(arrays + 6 * pairs, call.pair_expert.data(), 2 * pairs);
  std::memset(out.data() + arrays_end, 0, rows_at - arrays_end);
  const size_t length = WriteRows(call.rows, rows_at, with_payload_crc, out);

  FrameHeader header = HeaderFor(call, FrameType::kCall);
  header.flags = static_cast<uint16_t>(DtypeFlags(call.dtype) |
                                       (call.phase == Phase::kPrefill ? kFlagPrefill : 0) |
                                       (with_payload_crc ? kFlagPayloadCrc : 0));
  header.rows = call.num_rows;
  header.pairs = static_cast<uint16_t>(pairs);
  header.row_width = call.row_width;
  header.time_us = call.deadline_us;
  header.image_rows = call.image_rows;
  header.payload_bytes = static_cast<uint32_t>(length - kFrameHeaderBytes);
  SealFrame(header, PairBytes(pairs), out);
  return length;
}

size_t EncodeReply(const CallView& call, const ReplyView& reply, bool with_payload_crc,
                   std::span<std::byte> out) {
  CONCLAVE_CHECK(reinterpret_cast<uintptr_t>(out.data()) % kFrameAlignment == 0);
  const size_t length = WriteRows(reply.rows, kFrameHeaderBytes, with_payload_crc, out);
  FrameHeader header = HeaderFor(call, FrameType::kReply);
  header.flags = static_cast<uint16_t>(DtypeFlags(call.dtype) |
                                       (call.phase == Phase::kPrefill ? kFlagPrefill : 0) |
                                       (with_payload_crc ? kFlagPayloadCrc : 0));
  header.rows = call.num_rows;
  header.row_width = call.row_width;
  header.time_us = reply.service_us;
  header.image_rows = reply.queue_us;
  header.payload_bytes = static_cast<uint32_t>(length - kFrameHeaderBytes);
  SealFrame(header, 0, out);
  return length;
}

absl::StatusOr<CallView> ParseCall(std::span<const std::byte> frame, const FrameLimits& limits) {
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header,
                            OpenFrame(frame, FrameType::kCall, kFlagsKnown));
  // The CRC comes before the meaning of any field but after the lengths that it needs, so that a
  // peer cannot make us read further than what it sent, nor spend more on it than a legal frame
  // costs.
  CONCLAVE_RETURN_IF_ERROR(CheckFrameSize(frame, limits));
  const uint64_t arrays_end = kFrameHeaderBytes + PairBytes(header.pairs);
  if (arrays_end > frame.size()) {
    return FrameError("bad_length", "expected at least " + std::to_string(arrays_end) +
                                        " bytes for its pairs, found " +
                                        std::to_string(frame.size()));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckCrc(frame, header, PairBytes(header.pairs)));
  CONCLAVE_RETURN_IF_ERROR(
      CheckCounts({.model = header.model,
                   .layer = header.layer,
                   .row_width = header.row_width,
                   .has_agreed_dtype = (header.flags & kDtypeFlagsMask) == DtypeFlags(limits.dtype),
                   .rows = header.rows,
                   .pairs = header.pairs,
                   .image_rows = header.image_rows},
                  limits));
  const uint64_t rows_at = AlignUp(arrays_end);
  CONCLAVE_ASSIGN_OR_RETURN(const std::span<const std::byte> rows,
                            ReadRows(frame, header, rows_at, limits.dtype));
  const std::span<const std::byte> padding = frame.subspan(arrays_end, rows_at - arrays_end);
  if (std::any_of(padding.begin(), padding.end(), [](std::byte b) { return b != std::byte{0}; })) {
    return FrameError("bad_padding", "expected zeros between arrays and rows, found other bytes");
  }
  const CallView call = ViewOf(frame, header, rows, limits.dtype);
  CONCLAVE_RETURN_IF_ERROR(ValidateCall(call, limits));
  return call;
}

absl::StatusOr<ParsedReply> ParseReply(std::span<const std::byte> frame,
                                       const FrameLimits& limits) {
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header,
                            OpenFrame(frame, FrameType::kReply, kFlagsKnown));
  CONCLAVE_RETURN_IF_ERROR(CheckFrameSize(frame, limits));
  CONCLAVE_RETURN_IF_ERROR(CheckCrc(frame, header, 0));
  if (header.pairs != 0) {
    return InvalidArgument("bad_items",
                           "reply: expected 0 pairs, found " + std::to_string(header.pairs));
  }
  // A reply has no pairs, but everything else that a call's counts must satisfy holds for it too.
  CONCLAVE_RETURN_IF_ERROR(
      CheckCounts({.model = header.model,
                   .layer = header.layer,
                   .row_width = header.row_width,
                   .has_agreed_dtype = (header.flags & kDtypeFlagsMask) == DtypeFlags(limits.dtype),
                   .rows = header.rows,
                   .pairs = header.rows,
                   .image_rows = 0},
                  limits));
  CONCLAVE_ASSIGN_OR_RETURN(const std::span<const std::byte> rows,
                            ReadRows(frame, header, kFrameHeaderBytes, limits.dtype));
  ParsedReply reply;
  reply.epoch = Epoch(header.epoch);
  reply.frontend = header.frontend;
  reply.slot = header.slot;
  reply.seq = header.seq;
  reply.model = header.model;
  reply.layer = LayerId(header.layer);
  reply.micro_batch = header.micro_batch;
  reply.attempt = header.attempt;
  reply.num_rows = header.rows;
  reply.service_us = header.time_us;
  reply.queue_us = header.image_rows;
  reply.rows = rows;
  return reply;
}

absl::Status CheckAnswers(const CallView& call, const ParsedReply& reply) {
  if (reply.frontend != call.frontend || reply.slot != call.slot || reply.seq != call.seq) {
    return Error(absl::StatusCode::kFailedPrecondition, "stale_reply",
                 "reply: expected slot " + std::to_string(call.slot) + " seq " +
                     std::to_string(call.seq) + ", found slot " + std::to_string(reply.slot) +
                     " seq " + std::to_string(reply.seq));
  }
  const bool is_same = reply.epoch == call.epoch && reply.model == call.model &&
                       reply.layer == call.layer && reply.micro_batch == call.micro_batch &&
                       reply.num_rows == call.num_rows && reply.rows.size() == call.rows.size();
  if (!is_same) {
    return Error(absl::StatusCode::kInternal, "protocol_violation",
                 "reply: expected " + std::to_string(call.num_rows) + " rows of layer " +
                     std::to_string(call.layer.value()) + ", found " +
                     std::to_string(reply.num_rows) + " of layer " +
                     std::to_string(reply.layer.value()) + " or another epoch, model or batch");
  }
  return absl::OkStatus();
}

}  // namespace conclave::transport
