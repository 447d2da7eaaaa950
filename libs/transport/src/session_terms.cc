#include "session_terms.h"

#include <cstring>
#include <string>

#include "conclave/base/status.h"

namespace conclave::transport {
namespace {

// Whether a NACK can say it; "internal" says nothing to somebody whose frame was wrong.
bool HasNackCode(const absl::Status& status) { return NackCodeOf(status) != NackCode::kInternal; }

Admission Refusal(absl::Status why) {
  return {.what = Admission::What::kRefuse,
          .call = {},
          .why = std::move(why),
          .has_payload_crc = false};
}

}  // namespace

PeerId NextPeer() {
  static std::atomic<uint64_t> last{0};
  return PeerId(last.fetch_add(1) + 1);
}

CallView AddressOf(const FrameHeader& header) {
  CallView call;
  call.epoch = Epoch(header.epoch);
  call.frontend = header.frontend;
  call.slot = header.slot;
  call.seq = header.seq;
  call.model = header.model;
  call.layer = LayerId(header.layer);
  call.micro_batch = header.micro_batch;
  call.attempt = header.attempt;
  return call;
}

absl::Status CheckFrontend(const FrameHeader& header, const SessionTerms& terms) {
  if (header.frontend == terms.frontend) {
    return absl::OkStatus();
  }
  return InvalidArgument("cluster_mismatch", "frame: expected the frontend of the handshake, " +
                                                 std::to_string(terms.frontend) + ", found " +
                                                 std::to_string(header.frontend));
}

FailpointContext ContextOf(const CallView& call) {
  return {.layer = call.layer.value(), .phase = NameOf(call.phase)};
}

FailpointContext ContextOf(const FrameHeader& header) {
  const bool is_prefill = (header.flags & kFlagPrefill) != 0;
  return {.layer = header.layer, .phase = NameOf(is_prefill ? Phase::kPrefill : Phase::kDecode)};
}

absl::StatusOr<Admission> Admit(std::span<const std::byte> frame, const SessionTerms& terms,
                                bool has_lane, std::vector<uint64_t>& last_seq) {
  // The channels hand over whole frames, so the point of a payload that is still coming acts before
  // the rows are looked at, and that of a reply before it is handed over.
  [[maybe_unused]] FailpointContext here;
  if (const absl::StatusOr<FrameHeader> header = PeekHeader(frame); header.ok()) {
    here = ContextOf(*header);
  }
  (void)CONCLAVE_FAILPOINT("w.accept", (here));
  const absl::StatusOr<CallView> call = ParseCall(frame, terms.limits);
  if (!call.ok()) {
    if (!HasNackCode(call.status()) || !IsHeaderSound(frame)) {
      return call.status();
    }
    return Refusal(call.status());
  }
  if (call->slot >= terms.num_slots) {
    return Refusal(InvalidArgument("bad_items", "call: expected a slot below " +
                                                    std::to_string(terms.num_slots) + ", found " +
                                                    std::to_string(call->slot)));
  }
  if (call->seq <= last_seq[call->slot]) {
    return Admission{
        .what = Admission::What::kDuplicate, .call = {}, .why = {}, .has_payload_crc = false};
  }
  last_seq[call->slot] = call->seq;
  (void)CONCLAVE_FAILPOINT("w.hdr_read", (here));
  (void)CONCLAVE_FAILPOINT("w.payload_partial", (here));
  if (!has_lane) {
    return Refusal(Error(absl::StatusCode::kResourceExhausted, "busy",
                         "call: expected an earlier one to be over, found none"));
  }
  (void)CONCLAVE_FAILPOINT("w.payload_done", (here));
  FrameHeader header;
  std::memcpy(&header, frame.data(), sizeof(header));
  return Admission{.what = Admission::What::kServe,
                   .call = *call,
                   .why = {},
                   .has_payload_crc = (header.flags & kFlagPayloadCrc) != 0};
}

}  // namespace conclave::transport
