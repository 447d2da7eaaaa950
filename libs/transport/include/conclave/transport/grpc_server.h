// The worker's end of the grpc channel: answers handshakes, takes calls from the streams of
// frontends and hands them to a CallSink.
//
// All of it runs on gRPC's threads: calls are parsed there and PINGs answered, never on the thread
// that computes. The calls of a session live in memory of its own, twice as many as it was granted
// slots, so that calls which were cancelled while they are computed do not hold up new ones; a call
// that finds none is refused ("busy"). A frame with a sound header that breaks the agreed terms is
// refused by a NACK; anything else that is no frame is dropped and counted, and the third within
// 10 s ends the stream. A call that was seen before (same slot, seq not larger) is dropped.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/base/ids.h"
#include "conclave/transport/call_server.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/grpc_support.h"

namespace conclave::transport {

class SideServer;

struct ExpertServerOptions {
  // An address of this machine and a port; 0: any free one. An IPv6 address stands in brackets.
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  // With TLS only frontends of the cluster's authority are answered.
  TlsIdentity tls;

  // What a handshake is compared with. An empty cluster id: any.
  std::string cluster_id;
  std::string manifest_hash;
  DType mode = DType::kBf16;  // numeric mode (PairTerms::mode)
  std::string isa;
  uint32_t kernel_revision = 0;
  uint64_t incarnation = 0;

  // Bounds of all calls; max_rows is what a session is granted at most, max_pairs follows from it
  // and top_k. row_width and top_k are compared in the handshake; dtype is WireDtypeOf(mode).
  FrameLimits limits;
  // Call slots that a session is granted at most.
  uint16_t num_slots = 4;
  // Sessions at a time; more handshakes are refused. Each costs, once its stream is open, about
  // 4 · num_slots frames of memory. At most 100, the bound of streams on one connection.
  uint16_t num_sessions_max = 64;
  // A handshake that no stream follows within this is forgotten.
  std::chrono::milliseconds stream_within{5000};
  // What may wait for a peer that does not read, before it is dropped; the answers of all its calls
  // may wait in any case.
  size_t send_bytes_max = size_t{8} << 20;
  // A second channel that frontends may ask for (ucx_channel.h), whose handshakes are answered here
  // too; null: grpc alone. Of this server only.
  std::shared_ptr<SideServer> side;
  // Frontends that ask for grpc are refused ("cluster_mismatch"); needs `side`.
  bool is_side_only = false;
  // Outlives the server and all its calls.
  const Clock* clock = &Clock::Real();
};

struct ExpertServerCounters {
  uint64_t bytes_sent = 0;      // of frames, as handed to the network
  uint64_t bytes_received = 0;  // likewise
  uint64_t calls = 0;           // that were handed to the sink
  uint64_t refused = 0;         // that were answered by a NACK before or by the sink
  uint64_t duplicates = 0;
  uint64_t cancelled = 0;   // calls that a frontend gave up, or that its end left behind
  uint64_t malformed = 0;   // frames that came damaged, or were none
  uint64_t slow_peers = 0;  // that were dropped because they do not read
  uint32_t sessions = 0;    // now, with a stream
};

// Thread-safe.
class ExpertServer {
 public:
  // Listens. `sink` outlives the server and every call that it took. kUnavailable ("bind") when the
  // address cannot be had; kInvalidArgument ("config_range") when a frame of `limits` would not fit
  // what may wait for a peer, or has rows of another mode.
  static absl::StatusOr<std::unique_ptr<ExpertServer>> Start(const ExpertServerOptions& options,
                                                             CallSink& sink);

  // Ends all streams; their calls are cancelled, but the sink may finish them later still.
  virtual ~ExpertServer() = default;

  virtual uint16_t port() const = 0;

  // The router has taken the worker in: handshakes are answered from now on. Called again with
  // every registration; sessions that exist go on.
  virtual void SetRegistration(WorkerId worker, uint64_t worker_key, Epoch epoch) = 0;

  // The epoch that the worker has seen, told at handshakes and in refusals that the server makes.
  virtual void SetEpoch(Epoch epoch) = 0;

  // New handshakes are refused ("draining"); streams go on.
  virtual void SetDraining(bool is_draining) = 0;

  virtual ExpertServerCounters counters() const = 0;
};

}  // namespace conclave::transport
