// One call of InferenceService.Chat, on gRPC's callback threads, the loop's and, for a moment that
// only hands on, the engine's.
//
// At most one write is under way; what comes meanwhile waits, merged and bounded, in a ChatStream.
// Every operation of gRPC is started under the lock, which is safe since gRPC never calls back from
// within one, and orders it before the one that ends the call, behind which gRPC may have freed
// what it would touch.
#pragma once

#include <grpcpp/grpcpp.h>

#include <memory>
#include <optional>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/inference_server.h"
#include "grpc/call_loop.h"
#include "http/api_error.h"
#include "http/chat_stream.h"
#include "http/server_state.h"
#include "http/session_guards.h"

namespace conclave::frontend {

// What all calls of a server share; outlives them.
struct CallContext {
  ServerState& state;
  CallLoop& loop;
  const Clock& clock;
  const CallObserver& observer;
};

// "req-..." or what the client sent as x-request-id; sent back under that name.
std::string NameRequest(grpc::CallbackServerContext& context, ServerState& state);

class ChatCall final : public grpc::ServerWriteReactor<grpc::ByteBuffer>,
                       public LoopCall,
                       public std::enable_shared_from_this<ChatCall> {
 public:
  // Lives until gRPC is done with it, whoever else holds it. `context` is gRPC's, of this call.
  static std::shared_ptr<ChatCall> Start(const CallContext& shared,
                                         grpc::CallbackServerContext& context);

  // Checks the request and gives it to the backend, or ends the call. Once, before gRPC gets the
  // reactor.
  void Serve(const grpc::ByteBuffer& request) ABSL_LOCKS_EXCLUDED(mu_);

  void Pump() override ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<MonotonicTime> Check(MonotonicTime now) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Let go of outside of the lock: its end cancels the request in the backend.
  using Ended = std::unique_ptr<ActiveChat>;

  ChatCall(const CallContext& shared, grpc::CallbackServerContext& context);

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone() override ABSL_LOCKS_EXCLUDED(mu_);

  std::optional<HttpError> Admit();
  // The call ends with `error` as soon as no write is under way. The first end counts.
  Ended End(const HttpError& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What the stream has to say: more than a slow client may leave lying, or something to send.
  Ended LookAtStream() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Starts the next write, or ends the call.
  Ended Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishWith(const HttpError& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Something was given to gRPC that the peer has to take.
  void ExpectProgress() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const CallContext shared_;
  grpc::CallbackServerContext& context_;
  const MonotonicTime start_;
  std::shared_ptr<ChatCall> self_;
  std::optional<RunningRequest> running_;
  std::shared_ptr<observability::RequestTrace> trace_;  // null: not traced

  Mutex mu_;
  std::shared_ptr<ChatStream> stream_ ABSL_GUARDED_BY(mu_);
  Ended active_ ABSL_GUARDED_BY(mu_);
  grpc::ByteBuffer outgoing_ ABSL_GUARDED_BY(mu_);  // of the write under way
  bool is_writing_ ABSL_GUARDED_BY(mu_) = false;
  bool has_finished_ ABSL_GUARDED_BY(mu_) = false;  // gRPC was told how the call ends
  bool is_done_ ABSL_GUARDED_BY(mu_) = false;       // gRPC has forgotten the call
  FinishReason reason_ ABSL_GUARDED_BY(mu_) = FinishReason::kStop;
  std::optional<HttpError> end_ ABSL_GUARDED_BY(mu_);
  grpc::StatusCode code_ ABSL_GUARDED_BY(mu_) = grpc::StatusCode::OK;
  std::optional<MonotonicTime> deadline_ ABSL_GUARDED_BY(mu_);
  std::optional<MonotonicTime> stalled_at_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::frontend
