// The parsers of the data plane.
//
// Promises: a frame that is accepted as a call or as a control frame is, encoded again, the same
// bytes; the views of what is accepted lie inside the frame; a frame has one type, and a header
// that PeekHeader knows; a refusal has a reason. The first byte of the input says
// whether the checksum of the header is put right: no mutation would ever find it.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "conclave/base/check.h"
#include "conclave/base/crc32c.h"
#include "conclave/base/status.h"
#include "conclave/transport/frame.h"

namespace conclave::transport {
namespace {

constexpr size_t kFrameBytesMax = 4096;

struct alignas(kFrameAlignment) FrameBuffer {
  std::array<std::byte, kFrameBytesMax> bytes{};
};

FrameLimits SmallLimits() {
  FrameLimits limits;
  limits.max_rows = 8;
  limits.max_pairs = 16;
  limits.row_width = 4;
  limits.num_layers = 4;
  limits.num_experts_max = 4;
  limits.num_models = 2;
  return limits;
}

// The CRC of the header and of `array_bytes` behind it.
void Seal(std::span<std::byte> frame, size_t array_bytes) {
  FrameHeader header;
  std::memcpy(&header, frame.data(), sizeof(header));
  header.crc = 0;
  std::memcpy(frame.data(), &header, sizeof(header));
  header.crc = Crc32c(frame.first(std::min(frame.size(), kFrameHeaderBytes + array_bytes)));
  std::memcpy(frame.data(), &header, sizeof(header));
}

void PutChecksumRight(std::span<std::byte> frame) {
  FrameHeader header;
  std::memcpy(&header, frame.data(), sizeof(header));
  header.payload_bytes = static_cast<uint32_t>(frame.size() - kFrameHeaderBytes);
  std::memcpy(frame.data(), &header, sizeof(header));
  const bool is_nack = header.type == static_cast<uint16_t>(FrameType::kNack);
  Seal(frame, is_nack ? frame.size() : size_t{8} * header.pairs);
}

bool IsInside(std::span<const std::byte> part, std::span<const std::byte> frame) {
  return part.data() >= frame.data() && part.data() + part.size() <= frame.data() + frame.size();
}

void CheckCall(std::span<const std::byte> frame, const FrameLimits& limits) {
  const absl::StatusOr<CallView> call = ParseCall(frame, limits);
  if (!call.ok()) {
    CONCLAVE_CHECK(!ReasonOf(call.status()).empty());
    return;
  }
  CONCLAVE_CHECK(IsInside(call->rows, frame));
  CONCLAVE_CHECK(IsInside(std::as_bytes(call->pair_weight), frame));
  CONCLAVE_CHECK(IsInside(std::as_bytes(call->pair_expert), frame));
  FrameHeader header;
  std::memcpy(&header, frame.data(), sizeof(header));
  // A call says nothing about credits and leaves the field out.
  if (header.credits != 0) {
    return;
  }
  FrameBuffer again;
  const size_t length = EncodeCall(*call, (header.flags & kFlagPayloadCrc) != 0, again.bytes);
  CONCLAVE_CHECK(length == frame.size());
  CONCLAVE_CHECK(std::memcmp(again.bytes.data(), frame.data(), length) == 0);
}

void CheckControl(std::span<const std::byte> frame) {
  const absl::StatusOr<ControlFrame> control = ParseControl(frame);
  if (!control.ok()) {
    CONCLAVE_CHECK(!ReasonOf(control.status()).empty());
    return;
  }
  FrameBuffer again;
  EncodeControl(*control, again.bytes);
  CONCLAVE_CHECK(frame.size() == kFrameHeaderBytes);
  CONCLAVE_CHECK(std::memcmp(again.bytes.data(), frame.data(), frame.size()) == 0);
}

void CheckHeader(std::span<const std::byte> frame, bool is_accepted) {
  const absl::StatusOr<FrameHeader> header = PeekHeader(frame);
  const bool is_sound = IsHeaderSound(frame);
  CONCLAVE_CHECK(header.ok() || !ReasonOf(header.status()).empty());
  CONCLAVE_CHECK(header.ok() || !is_sound);
  CONCLAVE_CHECK(is_sound || !is_accepted);
}

void Check(std::span<const std::byte> frame) {
  const FrameLimits limits = SmallLimits();
  CheckCall(frame, limits);
  CheckControl(frame);
  const absl::StatusOr<ParsedReply> reply = ParseReply(frame, limits);
  CONCLAVE_CHECK(reply.ok() ? IsInside(reply->rows, frame) : !ReasonOf(reply.status()).empty());
  const absl::StatusOr<ParsedNack> nack = ParseNack(frame);
  if (nack.ok()) {
    CONCLAVE_CHECK(IsInside(std::as_bytes(nack->holders), frame));
    CONCLAVE_CHECK(!ToStatus(nack->code).ok());
  } else {
    CONCLAVE_CHECK(!ReasonOf(nack.status()).empty());
  }
  const int num_types =
      ParseCall(frame, limits).ok() + reply.ok() + nack.ok() + ParseControl(frame).ok();
  CONCLAVE_CHECK(num_types <= 1);
  CheckHeader(frame, num_types == 1);
}

}  // namespace
}  // namespace conclave::transport

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using conclave::transport::FrameBuffer;
  if (size == 0 || size > conclave::transport::kFrameBytesMax) {
    return -1;
  }
  FrameBuffer buffer;
  const size_t length = size - 1;
  // At the end of the buffer there is nothing to see a read too far; the last bytes of it are.
  std::memcpy(buffer.bytes.data(), bytes + 1, length);
  const std::span<std::byte> frame = std::span(buffer.bytes).first(length);
  if ((bytes[0] & 1) != 0 && length >= conclave::transport::kFrameHeaderBytes) {
    conclave::transport::PutChecksumRight(frame);
  }
  conclave::transport::Check(frame);
  return 0;
}
