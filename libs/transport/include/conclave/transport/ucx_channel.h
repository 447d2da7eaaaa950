// Both ends of the ucx channel: the frames of the data plane as UCX active messages, through shared
// memory on one machine or TCP on a network that is trusted. UCX 1.13 aborts the process on bytes
// that are no message of its own, so it must never be reachable for anybody else (data-plane.md
// section 1): an address of this machine's loopback, or a network that the operator vouches for.
//
// A pair shakes hands by `Hello` on the worker's gRPC port, as for the grpc channel, and keeps the
// gRPC stream of its session open without frames: its end tells both sides of a death, a hang or a
// partition, none of which UCX notices reliably.
//
// Variables named UCX_* in the environment go before what is set here.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/transport/doorbell.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/grpc_channel.h"
#include "conclave/transport/grpc_server.h"
#include "conclave/transport/grpc_support.h"

namespace conclave::transport {

// Which of this machine's addresses UCX uses.
struct UcxReach {
  // Numeric, without a port. Of the loopback: shared memory and loopback TCP, what another machine
  // cannot reach. Else: TCP on the interface with this address; frames carry a CRC over their rows.
  std::string host = "127.0.0.1";
  // The operator says that nobody else can reach `host` (--trusted-network).
  bool is_trusted_network = false;
};

// Whether HOST, or the host of HOST:PORT, is an address of the loopback.
bool IsLoopback(const std::string& address);

// OK, or why UCX may not be used there: kFailedPrecondition ("untrusted_network").
absl::Status CheckUcxReach(const UcxReach& reach);

// What UCX has found.
struct UcxReport {
  std::string version;                  // of the library
  std::vector<std::string> transports;  // for `reach`: "posix", "sysv", "cma", "tcp", ...
};
// The reach with which a frontend gets to a worker at HOST:PORT: the loopback, or this machine's
// address on the way there. kFailedPrecondition ("untrusted_network"); kUnavailable
// ("ucx_unavailable") when there is no way.
absl::StatusOr<UcxReach> UcxReachTo(const std::string& address, bool is_trusted_network);

// Opens UCX and closes it again, some milliseconds. kUnavailable ("ucx_unavailable") when it finds
// no transport; "untrusted_network".
absl::StatusOr<UcxReport> ProbeUcx(const UcxReach& reach);

// The worker's end, for ExpertServerOptions::side. One thread of its own takes frames, answers
// PINGs and submits calls; it spins for some 50 us after the last frame and then sleeps. Whoever
// finishes a call sends its answer. Calls live in memory of their session, as in the grpc server.
// Errors as of ProbeUcx.
absl::StatusOr<std::shared_ptr<SideServer>> MakeUcxServer(const UcxReach& reach);

// The frontend's end, with the contract of ConnectGrpcChannel but for this: it has no thread; what
// has come is taken in Acquire, Poll, Await, LinkStatus and last_heard, and by `bell` while its
// owner waits there; a frame that UCX had to queue leaves in these too. After Cancel and Release a
// slot is acquired again only when UCX has let go of its memory. Further errors: those of ProbeUcx;
// "ucx_unavailable" also when the worker answers the handshake but no PING over UCX. It is
// connected when a PING has come back.
absl::StatusOr<std::unique_ptr<ExpertChannel>> ConnectUcxChannel(
    const std::string& address, const TlsIdentity& tls, const PairTerms& terms,
    const UcxReach& reach, Doorbell& bell, const Clock& clock, std::chrono::milliseconds timeout);

}  // namespace conclave::transport
