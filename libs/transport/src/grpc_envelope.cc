#include "grpc_envelope.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::transport {
namespace {

constexpr uint8_t kFrameTag = (1 << 3) | 2;  // field 1, length-delimited

absl::Status BadEnvelope(const char* why) {
  return InvalidArgument("bad_envelope",
                         std::string("message: expected one field 1 of bytes, found ") + why);
}

}  // namespace

grpc::ByteBuffer WrapFrame(const grpc::Slice& frame, size_t bytes) {
  std::array<uint8_t, kEnvelopeBytesMax> head{kFrameTag};
  size_t length = 1;
  CONCLAVE_CHECK(bytes <= UINT32_MAX);
  for (size_t rest = bytes;; rest >>= 7) {
    const bool is_last = rest < 0x80;
    head[length++] = static_cast<uint8_t>((rest & 0x7f) | (is_last ? 0 : 0x80));
    if (is_last) {
      break;
    }
  }
  const std::array<grpc::Slice, 2> slices{grpc::Slice(head.data(), length), frame};
  return {slices.data(), slices.size()};
}

absl::Status EnvelopeReader::Open(const grpc::ByteBuffer& message) {
  slices_.clear();
  header_bytes_ = 0;
  frame_bytes_ = 0;
  if (message.Length() == 0) {
    return absl::OkStatus();
  }
  if (!message.Dump(&slices_).ok()) {
    return BadEnvelope("a message that cannot be read");
  }
  std::array<uint8_t, kEnvelopeBytesMax> head{};
  size_t num_head = 0;
  for (const grpc::Slice& slice : slices_) {
    const size_t take = std::min(slice.size(), head.size() - num_head);
    std::copy_n(slice.begin(), take, head.begin() + static_cast<ptrdiff_t>(num_head));
    num_head += take;
  }
  if (head[0] != kFrameTag) {
    return BadEnvelope("another field");
  }
  uint64_t length = 0;
  for (size_t i = 1;; ++i) {
    if (i == num_head) {
      return BadEnvelope("a length that does not end");
    }
    length |= uint64_t{head[i] & 0x7fu} << (7 * (i - 1));
    if ((head[i] & 0x80) == 0) {
      header_bytes_ = i + 1;
      break;
    }
  }
  if (length != message.Length() - header_bytes_) {
    return BadEnvelope("a field that does not fill it");
  }
  frame_bytes_ = length;
  return absl::OkStatus();
}

void EnvelopeReader::CopyTo(std::span<std::byte> out) const {
  CONCLAVE_CHECK(out.size() == frame_bytes_);
  size_t skip = header_bytes_;
  size_t at = 0;
  for (const grpc::Slice& slice : slices_) {
    const size_t skipped = std::min(skip, slice.size());
    skip -= skipped;
    const size_t bytes = slice.size() - skipped;
    if (bytes > 0) {
      std::memcpy(out.data() + at, slice.begin() + skipped, bytes);
      at += bytes;
    }
  }
  CONCLAVE_CHECK(at == frame_bytes_);
}

}  // namespace conclave::transport
