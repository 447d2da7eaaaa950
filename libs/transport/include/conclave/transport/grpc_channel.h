// The frontend's end of the grpc channel: frames on one bidirectional stream per channel, where no
// faster channel may be used. A pair may have two channels, on connections of their own.
//
// The channel is its owner's, as ExpertChannel says; answers arrive on threads of gRPC's, which
// copy them into the slots and ring the bell. Dispatch, Cancel and Ping hand frames to a bounded
// queue and never wait for the peer: when the queue (8 MiB, or the frames of all slots where these
// are more) is full, the link is lost. So it is when the worker ends the stream, answers no
// keepalive for two seconds, or when frames came damaged three times within 10 s ("link_lost"); the
// bell then rings too. One damaged frame is dropped and counted; a call that it answered ends at
// its deadline. A slot may be released, and used again, right after Cancel: seq tells late replies
// apart.
//
// Slots go through the states of inproc_channel.h; the channel writes frontend, slot, seq,
// row_width and dtype into calls. Beside the errors of the worker (ToStatus of the NACK's code) and
// "link_lost", Poll gives kCancelled ("cancelled") for a cancelled call, kInternal
// ("numeric_error") for a reply with NaN or infinity and kInternal ("protocol_violation") for a
// reply that claims to answer the call but does not; slot->reply.rows is then empty.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/transport/doorbell.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/grpc_support.h"

namespace conclave::transport {

// What a frontend claims and expects at the handshake, and what its calls keep to.
struct PairTerms {
  std::string cluster_id;
  std::string manifest_hash;  // of the model, lower-case hex
  uint16_t row_width = 0;
  uint16_t top_k = 2;
  // Numeric mode of the model here; the worker must have the same, also where another mode has the
  // same rows. Rows travel as WireDtypeOf(mode).
  DType mode = DType::kBf16;
  // Path of kernels that the worker must have (NumericMode::isa); empty: any.
  std::string isa;
  uint32_t kernel_revision = 0;
  uint32_t frontend_id = 0;
  uint64_t frontend_incarnation = 0;
  uint64_t pair_key = 0;  // Member::pair_key, from the router
  uint64_t worker_incarnation = 0;
  // Wanted; the worker may grant less (ExpertChannel::limits). At least 1.
  uint16_t num_slots = 4;
  uint16_t max_rows = 256;
  // What replies are checked against.
  uint16_t num_layers = 0;
  uint16_t num_experts_max = 0;
  uint16_t num_models = 1;
  float gate_bound = 1.0f;
  // Calls carry a CRC over their rows, and so do their answers, also where the network below has a
  // check of its own, or none is needed: 1 us per row of 4 KiB and side.
  bool has_payload_crc = false;
};

// Shakes hands with the worker at `address` ("HOST:PORT") and opens a stream, within `timeout`.
// Blocks; any thread. `bell` and `clock` outlive the channel. Errors:
//   connect             kUnavailable: nobody answers there, or not in time
//   not_registered, draining, busy ...    kUnavailable, as the worker says it
//   cluster_mismatch    kFailedPrecondition, the worker's; the message names what differs
//   peer_identity       kPermissionDenied: the certificate is not a worker's, or not a frontend's
//   too_many_sessions   kResourceExhausted
//   protocol_violation  kInternal: the worker grants what was not asked for
absl::StatusOr<std::unique_ptr<ExpertChannel>> ConnectGrpcChannel(
    const std::string& address, const TlsIdentity& tls, const PairTerms& terms, Doorbell& bell,
    const Clock& clock, std::chrono::milliseconds timeout);

}  // namespace conclave::transport
