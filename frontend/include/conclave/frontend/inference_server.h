// The chat API over gRPC (proto/inference.proto), the twin of the HTTP server: the same backend,
// rules, limits and errors, with grpc.health.v1 beside it. SERVING is what /health/ready calls
// ready, for the whole server ("") and for conclave.v1.InferenceService.
//
// Requests are parsed and checked on gRPC's threads; one thread of its own sends what the engine
// has made and keeps the times. Of an answer that a client does not take, one piece waits in gRPC
// and at most HttpLimits::pending_bytes_max in a mailbox; beyond it the sequence is cancelled and
// the call ends with "slow_reader". A client that takes nothing for HttpLimits::write_timeout has
// gone. A call that is cancelled, or whose deadline (its own, or deadline_ms) passes, frees its
// sequence within one step.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"

namespace conclave::transport {
struct TlsIdentity;
}  // namespace conclave::transport

namespace conclave::frontend {

struct InferenceServerOptions {
  std::string host = "127.0.0.1";  // numeric
  uint16_t port = 0;               // 0: any free one
  // Those that do not speak of HTTP's framing. body_bytes_max bounds a message; connections_max
  // bounds calls.
  HttpLimits limits;
  // Outlives the server.
  const Clock* clock = &Clock::Real();
  // As HttpServerOptions.
  observability::Tracer* tracer = nullptr;
};

// A call that has ended, by the method's name ("Chat", "GetModel") and the name of gRPC's code
// ("OK"; "CANCELLED": the client went away). On a thread of the server; must not block.
using CallObserver = std::function<void(const char* method, const char* code, double seconds)>;

// Thread-safe.
class InferenceServer {
 public:
  // Listens; calls get kUnavailable ("model_loading") until SetBackend. With `tls` every client
  // whose certificate comes from its authority may ask, whatever its name; empty: plain text.
  // kUnavailable ("bind") when the address cannot be had.
  static absl::StatusOr<std::unique_ptr<InferenceServer>> Start(
      const InferenceServerOptions& options, const transport::TlsIdentity& tls,
      CallObserver observer);
  ~InferenceServer();  // ends all calls at once
  InferenceServer(const InferenceServer&) = delete;
  InferenceServer& operator=(const InferenceServer&) = delete;

  uint16_t port() const;

  // `backend` outlives the server.
  void SetBackend(ChatBackend& backend);

  // No new call is taken (kUnavailable, "draining") and the health is NOT_SERVING.
  void StartDraining();
  // That, and waits until running calls have ended or `timeout` passed; returns whether all ended.
  bool Drain(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  explicit InferenceServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::frontend
