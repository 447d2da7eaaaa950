#include "grpc/chat_call.h"

#include <chrono>
#include <iterator>
#include <string>
#include <utility>

#include "conclave/observability/trace.h"
#include "grpc/chat_wire.h"
#include "grpc/grpc_error.h"
#include "http/chat_response.h"

namespace conclave::frontend {
namespace {

// The only one under that name; "" for none or several.
std::string OnlyOne(const grpc::CallbackServerContext& context, const char* name) {
  const auto [begin, end] = context.client_metadata().equal_range(name);
  return begin != end && std::next(begin) == end
             ? std::string(begin->second.data(), begin->second.size())
             : std::string();
}

// Null: the call is not traced.
std::shared_ptr<observability::RequestTrace> StartTrace(const ServerState& state,
                                                        const grpc::CallbackServerContext& context,
                                                        MonotonicTime start) {
  if (state.options().tracer == nullptr) {
    return nullptr;
  }
  const std::string parent = OnlyOne(context, "traceparent");
  const std::string list = OnlyOne(context, "tracestate");
  auto trace = state.options().tracer->StartRequest({parent, list},
                                                    "conclave.v1.InferenceService/Chat", start);
  if (trace != nullptr) {
    trace->Set({"rpc.system", "grpc"});
    trace->Set({"rpc.service", "conclave.v1.InferenceService"});
    trace->Set({"rpc.method", "Chat"});
  }
  return trace;
}

// As OpenTelemetry has it for a server's spans: what a client did wrong is no error of ours.
bool IsServersFault(grpc::StatusCode code) {
  return code == grpc::StatusCode::UNKNOWN || code == grpc::StatusCode::DEADLINE_EXCEEDED ||
         code == grpc::StatusCode::UNIMPLEMENTED || code == grpc::StatusCode::INTERNAL ||
         code == grpc::StatusCode::UNAVAILABLE || code == grpc::StatusCode::DATA_LOSS;
}

HttpError TooManyCalls() {
  return {503, "too_many_connections", "too many calls; try again later", ""};
}

HttpError DeadlineExceeded() {
  return {504, "deadline_exceeded", "the request took longer than its deadline", ""};
}

// Nobody reads it: the client has gone, or has given up.
HttpError ClientGone() { return {499, "request_cancelled", "the client cancelled the call", ""}; }

HttpError SlowReader(int64_t pending_bytes_max) {
  return {429, "slow_reader",
          "more than " + std::to_string(pending_bytes_max) +
              " bytes of the answer waited for the client; expected one that reads",
          ""};
}

}  // namespace

std::string NameRequest(grpc::CallbackServerContext& context, ServerState& state) {
  constexpr const char* kName = "x-request-id";
  std::string id;
  const auto found = context.client_metadata().find(kName);
  if (found != context.client_metadata().end()) {
    id.assign(found->second.data(), found->second.size());
  }
  if (!IsSaneRequestId(id)) {
    id = "req-" + state.NewId();
  }
  context.AddInitialMetadata(kName, id);
  return id;
}

ChatCall::ChatCall(const CallContext& shared, grpc::CallbackServerContext& context)
    : shared_(shared), context_(context), start_(shared.clock.Now()) {}

std::shared_ptr<ChatCall> ChatCall::Start(const CallContext& shared,
                                          grpc::CallbackServerContext& context) {
  std::shared_ptr<ChatCall> call(new ChatCall(shared, context));
  call->self_ = call;
  call->running_.emplace(shared.state);
  return call;
}

std::optional<HttpError> ChatCall::Admit() {
  if (std::optional<HttpError> error = NotServing(shared_.state); error.has_value()) {
    return error;
  }
  if (!shared_.loop.Add(shared_from_this())) {
    return TooManyCalls();
  }
  return std::nullopt;
}

void ChatCall::Serve(const grpc::ByteBuffer& request) {
  const std::string request_id = NameRequest(context_, shared_.state);
  trace_ = StartTrace(shared_.state, context_, start_);
  const auto refuse = [this](const HttpError& error) {
    MutexLock lock(mu_);
    FinishWith(error);
  };
  if (const std::optional<HttpError> error = Admit(); error.has_value()) {
    refuse(*error);
    return;
  }
  const HttpLimits& limits = shared_.state.limits();
  ChatBackend& backend = *shared_.state.backend();
  absl::StatusOr<WireChat> chat = ReadChat(request, limits, backend.model());
  if (!chat.ok()) {
    refuse(ErrorFromRequest(chat.status()));
    return;
  }
  chat->request.request_id = request_id;
  chat->request.trace = trace_;
  if (!chat->has_seed) {
    chat->request.sampling.seed = shared_.state.NewSeed();
  }
  const auto stream =
      std::make_shared<ChatStream>(1, static_cast<size_t>(limits.pending_bytes_max),
                                   [weak = weak_from_this(), &loop = shared_.loop] {
                                     if (std::shared_ptr<ChatCall> self = weak.lock()) {
                                       loop.Poke(std::move(self));
                                     }
                                   });
  const absl::StatusOr<ChatId> id = backend.Submit(std::move(chat->request), stream);
  if (!id.ok()) {
    stream->Detach();
    refuse(ErrorFromBackend(id.status()));
    return;
  }
  Ended ended;
  {
    MutexLock lock(mu_);
    stream_ = stream;
    active_ = std::make_unique<ActiveChat>(backend, *id, stream);
    if (chat->deadline.count() > 0) {
      deadline_ = start_ + chat->deadline;
    }
    // The loop may have been poked before there was anything to find, for the last time.
    ended = LookAtStream();
  }
  if (chat->deadline.count() > 0) {
    shared_.loop.Wake();  // it sleeps by the deadlines that it knows
  }
}

void ChatCall::Pump() {
  Ended ended;
  MutexLock lock(mu_);
  ended = LookAtStream();
}

ChatCall::Ended ChatCall::LookAtStream() {
  if (stream_ != nullptr && stream_->has_overflowed()) {
    return End(SlowReader(shared_.state.limits().pending_bytes_max));
  }
  return Advance();
}

std::optional<MonotonicTime> ChatCall::Check(MonotonicTime now) {
  Ended ended;
  MutexLock lock(mu_);
  if (is_done_) {
    return std::nullopt;
  }
  if (stalled_at_.has_value() && now >= *stalled_at_) {
    // gRPC still waits to hand on what it was given, so the call cannot end in an orderly way.
    stalled_at_.reset();
    context_.TryCancel();
  }
  if (deadline_.has_value() && now >= *deadline_) {
    deadline_.reset();
    ended = End(DeadlineExceeded());
  }
  return deadline_;
}

void ChatCall::ExpectProgress() {
  stalled_at_ = shared_.clock.Now() + shared_.state.limits().write_timeout;
}

ChatCall::Ended ChatCall::End(const HttpError& error) {
  if (has_finished_) {
    return nullptr;
  }
  if (!end_.has_value()) {
    end_ = error;
  }
  Ended ended = std::move(active_);
  if (!is_writing_) {
    FinishWith(*end_);
  }
  return ended;
}

void ChatCall::FinishWith(const HttpError& error) {
  has_finished_ = true;
  deadline_.reset();
  code_ = error.status == 499 ? grpc::StatusCode::CANCELLED : CodeOfHttp(error.status);
  ExpectProgress();
  Finish(error.status == 499 ? grpc::Status(code_, error.code + ": " + error.message)
                             : ToGrpcError(error, context_));
}

ChatCall::Ended ChatCall::Advance() {
  if (has_finished_ || is_writing_) {
    return nullptr;
  }
  if (end_.has_value()) {
    return End(*end_);
  }
  if (active_ == nullptr) {
    return nullptr;
  }
  ChatEvents events = active_->Take();
  if (events.is_empty()) {
    return nullptr;
  }
  ChatPiece piece;
  if (std::optional<ChatDelta>& delta = events.choices[0].delta; delta.has_value()) {
    piece.text = std::move(delta->text);
    piece.token_ids = std::move(delta->token_ids);
  }
  const bool has_news = !piece.text.empty() || !piece.token_ids.empty();
  if (const std::optional<HttpError> failure = FailureIn(events); failure.has_value()) {
    if (!has_news) {
      return End(*failure);
    }
    end_ = failure;  // behind what was generated before it
  }
  if (events.choices[0].end.has_value()) {
    reason_ = events.choices[0].end->reason;
  }
  if (!end_.has_value() && events.done.has_value()) {
    piece.reason = reason_;
    piece.usage = events.done->usage;
    outgoing_ = WritePiece(piece);
    has_finished_ = true;
    deadline_.reset();
    ExpectProgress();
    StartWriteAndFinish(&outgoing_, grpc::WriteOptions(), grpc::Status::OK);
    return std::move(active_);
  }
  if (has_news) {
    outgoing_ = WritePiece(piece);
    is_writing_ = true;
    ExpectProgress();
    StartWrite(&outgoing_);
  }
  return nullptr;
}

void ChatCall::OnWriteDone(bool ok) {
  Ended ended;
  MutexLock lock(mu_);
  is_writing_ = false;
  stalled_at_.reset();
  ended = ok ? Advance() : End(ClientGone());
}

void ChatCall::OnCancel() {
  Ended ended;
  MutexLock lock(mu_);
  const bool is_late = std::chrono::system_clock::now() >= context_.deadline();
  if (has_finished_) {
    // The end of the answer did not reach the client.
    code_ = is_late ? grpc::StatusCode::DEADLINE_EXCEEDED : grpc::StatusCode::CANCELLED;
    return;
  }
  ended = End(is_late ? DeadlineExceeded() : ClientGone());
}

void ChatCall::OnDone() {
  Ended ended;
  grpc::StatusCode code = grpc::StatusCode::OK;
  {
    MutexLock lock(mu_);
    is_done_ = true;
    has_finished_ = true;
    stalled_at_.reset();
    ended = std::move(active_);
    code = code_;
  }
  ended.reset();
  shared_.loop.Remove(this);
  const MonotonicTime end = shared_.clock.Now();
  if (trace_ != nullptr) {
    trace_->Set({"rpc.grpc.status_code", static_cast<int>(code)});
    if (IsServersFault(code)) {
      trace_->Fail(NameOf(code));
    }
    trace_->End(end);
    trace_.reset();
  }
  const std::chrono::duration<double> elapsed = end - start_;
  if (shared_.observer) {
    shared_.observer("Chat", NameOf(code), elapsed.count());
  }
  // The last use of this object, unless the loop still holds it; and of the server, once nothing
  // runs.
  const std::shared_ptr<ChatCall> self = std::move(self_);
  running_.reset();
}

}  // namespace conclave::frontend
