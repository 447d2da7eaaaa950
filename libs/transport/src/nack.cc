#include <algorithm>
#include <cstring>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/frame.h"
#include "frame_io.h"

namespace conclave::transport {
namespace {

struct NackMeaning {
  const char* reason;
  absl::StatusCode status;
  NackCode code;
};

constexpr NackMeaning kMeanings[] = {
    {"not_held", absl::StatusCode::kNotFound, NackCode::kNotHeld},
    {"no_such_layer", absl::StatusCode::kInvalidArgument, NackCode::kNoSuchLayer},
    {"bad_items", absl::StatusCode::kInvalidArgument, NackCode::kBadItems},
    {"shape_mismatch", absl::StatusCode::kInvalidArgument, NackCode::kShapeMismatch},
    {"bad_gate", absl::StatusCode::kInvalidArgument, NackCode::kBadGate},
    {"nonfinite_input", absl::StatusCode::kInvalidArgument, NackCode::kNonfiniteInput},
    {"corrupt_payload", absl::StatusCode::kDataLoss, NackCode::kCorruptPayload},
    {"bad_length", absl::StatusCode::kInvalidArgument, NackCode::kBadLength},
    {"cluster_mismatch", absl::StatusCode::kInvalidArgument, NackCode::kClusterMismatch},
    {"deadline", absl::StatusCode::kDeadlineExceeded, NackCode::kDeadline},
    {"numeric_error", absl::StatusCode::kInternal, NackCode::kNumericError},
    {"internal", absl::StatusCode::kInternal, NackCode::kInternal},
    {"busy", absl::StatusCode::kResourceExhausted, NackCode::kBusy},
};

const NackMeaning* Find(NackCode code) {
  const auto* it = std::find_if(std::begin(kMeanings), std::end(kMeanings),
                                [code](const NackMeaning& m) { return m.code == code; });
  return it == std::end(kMeanings) ? nullptr : it;
}

// The start of a NACK's payload.
struct NackHead {
  uint16_t code;
  uint16_t count;
};

}  // namespace

NackCode NackCodeOf(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  for (const NackMeaning& meaning : kMeanings) {
    if (reason == meaning.reason) {
      return meaning.code;
    }
  }
  return NackCode::kInternal;
}

absl::Status ToStatus(NackCode code) {
  const NackMeaning* meaning = Find(code);
  CONCLAVE_CHECK(meaning != nullptr);
  return Error(meaning->status, meaning->reason,
               std::string("the worker refused the call: ") + meaning->reason);
}

size_t EncodeNack(const CallView& call, Epoch worker_epoch, NackCode code,
                  std::span<const WorkerId> holders, std::span<std::byte> out) {
  const size_t count = std::min<size_t>(holders.size(), kMaxNackHolders);
  const size_t payload = sizeof(NackHead) + 4 * count;
  CONCLAVE_CHECK(reinterpret_cast<uintptr_t>(out.data()) % kFrameAlignment == 0);
  CONCLAVE_CHECK(kFrameHeaderBytes + payload <= out.size());
  const NackHead head{static_cast<uint16_t>(code), static_cast<uint16_t>(count)};
  std::byte* at = out.data() + kFrameHeaderBytes;
  std::memcpy(at, &head, sizeof(head));
  at += sizeof(head);
  for (const WorkerId holder : holders.first(count)) {
    const uint32_t id = static_cast<uint32_t>(holder.value());
    std::memcpy(at, &id, sizeof(id));
    at += sizeof(id);
  }
  FrameHeader header = HeaderFor(call, FrameType::kNack);
  header.epoch = worker_epoch.value();
  header.payload_bytes = static_cast<uint32_t>(payload);
  SealFrame(header, payload, out);
  return kFrameHeaderBytes + payload;
}

absl::StatusOr<ParsedNack> ParseNack(std::span<const std::byte> frame) {
  CONCLAVE_ASSIGN_OR_RETURN(const FrameHeader header, OpenFrame(frame, FrameType::kNack, 0));
  constexpr uint64_t kPayloadMax = sizeof(NackHead) + uint64_t{4} * kMaxNackHolders;
  if (header.payload_bytes < sizeof(NackHead) || header.payload_bytes > kPayloadMax) {
    return FrameError("bad_length", "expected a NACK payload of 4 to " +
                                        std::to_string(kPayloadMax) + " bytes, found " +
                                        std::to_string(header.payload_bytes));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckCrc(frame, header, header.payload_bytes));
  NackHead head;
  std::memcpy(&head, frame.data() + kFrameHeaderBytes, sizeof(head));
  if (sizeof(NackHead) + uint64_t{4} * head.count != header.payload_bytes) {
    return FrameError("bad_length", "a NACK of " + std::to_string(head.count) +
                                        " holders: expected another payload, found " +
                                        std::to_string(header.payload_bytes) + " bytes");
  }
  const NackCode code = static_cast<NackCode>(head.code);
  if (Find(code) == nullptr || header.rows != 0 || header.pairs != 0) {
    return FrameError("bad_items", "a NACK: expected a known code and no rows, found code " +
                                       std::to_string(head.code) + ", " +
                                       std::to_string(header.rows) + " rows, " +
                                       std::to_string(header.pairs) + " pairs");
  }
  ParsedNack nack;
  nack.epoch = Epoch(header.epoch);
  nack.frontend = header.frontend;
  nack.slot = header.slot;
  nack.seq = header.seq;
  nack.code = code;
  nack.holders = {
      reinterpret_cast<const uint32_t*>(frame.data() + kFrameHeaderBytes + sizeof(NackHead)),
      head.count};
  return nack;
}

}  // namespace conclave::transport
