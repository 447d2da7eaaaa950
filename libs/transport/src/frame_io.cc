#include "frame_io.h"

#include <bit>
#include <cstring>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::transport {

// Headers and arrays are copied as they lie in memory.
static_assert(std::endian::native == std::endian::little);

absl::Status FrameError(const char* reason, const std::string& why) {
  return InvalidArgument(reason, "frame: " + why);
}

FrameHeader HeaderFor(const CallView& call, FrameType type) {
  FrameHeader header{};
  std::memcpy(header.magic, kFrameMagic, sizeof(header.magic));
  header.version = kFrameVersion;
  header.type = static_cast<uint16_t>(type);
  header.epoch = call.epoch.value();
  header.frontend = call.frontend;
  header.slot = call.slot;
  header.seq = call.seq;
  header.model = call.model;
  header.layer = static_cast<uint16_t>(call.layer.value());
  header.micro_batch = call.micro_batch;
  header.attempt = call.attempt;
  return header;
}

void SealFrame(FrameHeader header, uint64_t array_bytes, std::span<std::byte> out) {
  header.crc = 0;
  const uint32_t of_header = Crc32c(std::as_bytes(std::span(&header, 1)));
  header.crc = Crc32c(out.subspan(kFrameHeaderBytes, array_bytes), of_header);
  std::memcpy(out.data(), &header, sizeof(header));
}

absl::StatusOr<FrameHeader> ReadHeader(std::span<const std::byte> frame) {
  CONCLAVE_CHECK(reinterpret_cast<uintptr_t>(frame.data()) % kFrameAlignment == 0);
  if (frame.size() < kFrameHeaderBytes) {
    return FrameError("short_header",
                      "expected at least 64 bytes, found " + std::to_string(frame.size()));
  }
  FrameHeader header;
  std::memcpy(&header, frame.data(), sizeof(header));
  if (std::memcmp(header.magic, kFrameMagic, sizeof(header.magic)) != 0) {
    return FrameError("bad_magic", "expected it to begin with CNV, found other bytes");
  }
  if (header.version != kFrameVersion) {
    return FrameError("version", "expected version " + std::to_string(kFrameVersion) + ", found " +
                                     std::to_string(header.version));
  }
  return header;
}

absl::Status CheckPayloadSize(std::span<const std::byte> frame, const FrameHeader& header) {
  if (uint64_t{header.payload_bytes} + kFrameHeaderBytes != frame.size()) {
    return FrameError("bad_length", "expected a payload of " +
                                        std::to_string(header.payload_bytes) + " bytes, found " +
                                        std::to_string(frame.size() - kFrameHeaderBytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<FrameHeader> OpenFrame(std::span<const std::byte> frame, FrameType type,
                                      uint16_t flags_known) {
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header, ReadHeader(frame));
  if (header.type != static_cast<uint16_t>(type)) {
    return FrameError("type", "expected type " + std::to_string(static_cast<uint16_t>(type)) +
                                  ", found " + std::to_string(header.type));
  }
  if ((header.flags & ~static_cast<uint32_t>(flags_known)) != 0) {
    return FrameError("flags", "expected flags within " + std::to_string(flags_known) + ", found " +
                                   std::to_string(header.flags));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckPayloadSize(frame, header));
  return header;
}

absl::Status CheckCrc(std::span<const std::byte> frame, const FrameHeader& header,
                      uint64_t array_bytes) {
  FrameHeader unsealed = header;
  unsealed.crc = 0;
  const uint32_t of_header = Crc32c(std::as_bytes(std::span(&unsealed, 1)));
  if (Crc32c(frame.subspan(kFrameHeaderBytes, array_bytes), of_header) != header.crc) {
    return Error(absl::StatusCode::kDataLoss, "bad_crc",
                 "frame: the CRC of header and arrays is wrong; the bytes changed on their way");
  }
  return absl::OkStatus();
}

}  // namespace conclave::transport
