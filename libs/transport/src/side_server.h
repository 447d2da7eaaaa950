// A worker's end of a channel whose frames do not travel through the gRPC stream of their session.
// The gRPC server answers its handshakes and keeps the stream as a sign of life (Lifeline).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/transport/call_server.h"
#include "session_terms.h"

namespace conclave::transport {

// One frontend's session. Any thread.
class SideSession {
 public:
  virtual ~SideSession() = default;
  // The frontend is gone, or unwanted: its calls are cancelled and nothing more is taken from it.
  // Does not wait; nothing after the first time.
  virtual void Close() = 0;
};

// Any thread.
class SideServer {
 public:
  virtual ~SideServer() = default;

  // In HelloRequest::channel.
  virtual const char* name() const = 0;
  // Where frontends send frames, for HelloResponse.
  virtual const std::string& address() const = 0;

  // Before the first Open; all of it outlives the server.
  virtual void Start(CallSink& sink, std::shared_ptr<SessionCounters> counters,
                     const Clock& clock) = 0;

  // Takes frames that name `session` from now on, and answers at `peer_address`, which the frontend
  // gave and the handshake vouches for. `on_end` is called once, when the session ends by
  // itself: with why. kInvalidArgument ("bad_items") for an address that cannot be one.
  virtual absl::StatusOr<std::shared_ptr<SideSession>> Open(
      uint64_t session, const SessionTerms& terms, const std::string& peer_address,
      std::function<void(const absl::Status&)> on_end) = 0;

  // Ends all sessions and takes no more. Their calls may be finished later still. Waits.
  virtual void Stop() = 0;
};

}  // namespace conclave::transport
