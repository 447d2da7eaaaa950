// The few bytes around a frame on a gRPC stream: `message Frame { bytes frame = 1; }`, written and
// skipped by hand, so that rows are not copied through a protobuf message.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/status.h"

namespace conclave::transport {

// Bytes that an envelope adds at most: a tag and a length below 2^32.
inline constexpr size_t kEnvelopeBytesMax = 6;

// One message that carries the bytes of `frame`, which is `bytes` long.
grpc::ByteBuffer WrapFrame(const grpc::Slice& frame, size_t bytes);

// A received message. One thread; keeps the message's bytes until the next Open.
class EnvelopeReader {
 public:
  // kInvalidArgument ("bad_envelope") for anything but one field 1 that fills the message; an empty
  // message is an empty frame.
  absl::Status Open(const grpc::ByteBuffer& message);

  size_t frame_bytes() const { return frame_bytes_; }

  // Copies the whole frame; `out` has frame_bytes().
  void CopyTo(std::span<std::byte> out) const;

  // Lets go of the message.
  void Close() { slices_.clear(); }

 private:
  std::vector<grpc::Slice> slices_;
  size_t header_bytes_ = 0;
  size_t frame_bytes_ = 0;
};

}  // namespace conclave::transport
