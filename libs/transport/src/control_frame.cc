#include <cstring>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/frame.h"
#include "frame_io.h"

namespace conclave::transport {
namespace {

bool IsControl(uint16_t type) {
  return type >= static_cast<uint16_t>(FrameType::kCancel) &&
         type <= static_cast<uint16_t>(FrameType::kPong);
}

// A control frame with nothing but its own fields set.
FrameHeader HeaderOf(const ControlFrame& control) {
  CallView call;
  call.epoch = control.epoch;
  call.frontend = control.frontend;
  call.slot = control.slot;
  call.seq = control.seq;
  FrameHeader header = HeaderFor(call, control.type);
  header.credits = control.credits;
  return header;
}

bool HasOnlyItsFields(const ControlFrame& control) {
  const bool is_cancel = control.type == FrameType::kCancel;
  const bool is_credit = control.type == FrameType::kCredit;
  return (is_cancel || control.slot == 0) && (is_credit || control.credits == 0) &&
         (!is_credit || control.seq == 0);
}

}  // namespace

void EncodeControl(const ControlFrame& control, std::span<std::byte> out) {
  CONCLAVE_CHECK(reinterpret_cast<uintptr_t>(out.data()) % kFrameAlignment == 0);
  CONCLAVE_CHECK(out.size() >= kFrameHeaderBytes);
  CONCLAVE_CHECK(IsControl(static_cast<uint16_t>(control.type)) && HasOnlyItsFields(control));
  SealFrame(HeaderOf(control), 0, out);
}

absl::StatusOr<ControlFrame> ParseControl(std::span<const std::byte> frame) {
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header, ReadHeader(frame));
  if (!IsControl(header.type)) {
    return FrameError(
        "type", "expected CANCEL, CREDIT, PING or PONG, found type " + std::to_string(header.type));
  }
  if (header.flags != 0) {
    return FrameError("flags", "expected no flags, found " + std::to_string(header.flags));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckPayloadSize(frame, header));
  if (header.payload_bytes != 0) {
    return FrameError("bad_length", "expected a header alone, found a payload of " +
                                        std::to_string(header.payload_bytes) + " bytes");
  }
  CONCLAVE_RETURN_IF_ERROR(CheckCrc(frame, header, 0));
  ControlFrame control;
  control.type = static_cast<FrameType>(header.type);
  control.epoch = Epoch(header.epoch);
  control.frontend = header.frontend;
  control.slot = header.slot;
  control.seq = header.seq;
  control.credits = header.credits;
  FrameHeader expected = HeaderOf(control);
  expected.crc = header.crc;
  if (!HasOnlyItsFields(control) || std::memcmp(&expected, &header, sizeof(header)) != 0) {
    return FrameError("bad_items", "expected 0 in the fields that type " +
                                       std::to_string(header.type) +
                                       " has no use for, found another value");
  }
  return control;
}

absl::StatusOr<FrameHeader> PeekHeader(std::span<const std::byte> frame) {
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header, ReadHeader(frame));
  if (header.type < static_cast<uint16_t>(FrameType::kCall) ||
      header.type > static_cast<uint16_t>(FrameType::kPong)) {
    return FrameError("type", "expected type 1 to 7, found " + std::to_string(header.type));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckPayloadSize(frame, header));
  return header;
}

bool IsHeaderSound(std::span<const std::byte> frame) {
  const absl::StatusOr<FrameHeader> header = PeekHeader(frame);
  if (!header.ok()) {
    return false;
  }
  // A NACK's arrays are its whole payload; only calls have pairs.
  const bool is_nack = header->type == static_cast<uint16_t>(FrameType::kNack);
  const uint64_t array_bytes = is_nack ? header->payload_bytes : PairBytes(header->pairs);
  return array_bytes <= header->payload_bytes && CheckCrc(frame, *header, array_bytes).ok();
}

}  // namespace conclave::transport
