#include <chrono>
#include <deque>
#include <string>
#include <utility>

#include "admin_rpc.h"
#include "cluster.grpc.pb.h"
#include "conclave/base/clock.h"
#include "conclave/base/status.h"
#include "conclave/transport/grpc_support.h"
#include "wire.h"

namespace conclave::router_service {
namespace {

using Reactor = grpc::ServerUnaryReactor;

class Admin final : public v1::AdminService::CallbackService {
 public:
  Admin(CoreSlot& core, AdminReplies& replies, live::Feed& feed)
      : core_(core), replies_(replies), feed_(feed) {}

  Reactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                     v1::GetStatusResponse* response) override;
  Reactor* DrainWorker(grpc::CallbackServerContext* context, const v1::DrainWorkerRequest* request,
                       v1::DrainWorkerResponse* response) override;
  Reactor* UndrainWorker(grpc::CallbackServerContext* context,
                         const v1::UndrainWorkerRequest* request,
                         v1::UndrainWorkerResponse* response) override;
  Reactor* PinExpert(grpc::CallbackServerContext* context, const v1::PinExpertRequest* request,
                     v1::PinExpertResponse* response) override;
  Reactor* ReplicateExpert(grpc::CallbackServerContext* context,
                           const v1::ReplicateExpertRequest* request,
                           v1::ReplicateExpertResponse* response) override;
  Reactor* Rebalance(grpc::CallbackServerContext* context, const v1::RebalanceRequest* request,
                     v1::RebalanceResponse* response) override;
  Reactor* CheckKillSafe(grpc::CallbackServerContext* context,
                         const v1::CheckKillSafeRequest* request,
                         v1::CheckKillSafeResponse* response) override;
  grpc::ServerWriteReactor<v1::LiveUpdate>* WatchLive(grpc::CallbackServerContext* context,
                                                      const v1::WatchLiveRequest* request) override;
  Reactor* StartRecording(grpc::CallbackServerContext* context,
                          const v1::StartRecordingRequest* request,
                          v1::StartRecordingResponse* response) override;
  Reactor* StopRecording(grpc::CallbackServerContext* context,
                         const v1::StopRecordingRequest* request,
                         v1::StopRecordingResponse* response) override;
  grpc::ServerWriteReactor<v1::GetRecordingResponse>* GetRecording(
      grpc::CallbackServerContext* context, const v1::GetRecordingRequest* request) override;

 private:
  // Answers at once with an error, or lets the loop do it.
  using Question = std::function<absl::Status(const RouterCore& core)>;
  Reactor* Ask(grpc::CallbackServerContext* context, absl::Status checked, Question question);
  using Command = decltype(AdminEvent::command);
  Reactor* Change(grpc::CallbackServerContext* context, absl::Status checked, Command command,
                  AdminReplies::Waiter fill);
  Reactor* RecordInto(grpc::CallbackServerContext* context, bool is_start,
                      v1::RecordingStatus* recording);
  // Ends the call unless `checked` is OK, which gets the peer's role too.
  static Reactor* Begin(grpc::CallbackServerContext* context, absl::Status& checked);

  CoreSlot& core_;
  AdminReplies& replies_;
  live::Feed& feed_;
};

// One watcher of the live picture. Lives until gRPC is done with it.
class LiveStream final : public grpc::ServerWriteReactor<v1::LiveUpdate> {
 public:
  explicit LiveStream(live::Feed& feed) : feed_(feed) {}

  void Begin() {
    watch_ = feed_.Watch([this](const live::Message& message) { Push(message); });
  }
  void Refuse(const absl::Status& status) {
    MutexLock lock(mu_);
    Close(status);
  }

 private:
  // A client that does not read for so long connects again and gets a new snapshot.
  static constexpr size_t kMessagesMax = 30;

  void Push(const live::Message& message) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    if (is_over_) {
      return;
    }
    if (messages_.size() >= kMessagesMax) {
      messages_.clear();
      Close(Error(absl::StatusCode::kResourceExhausted, "slow_reader",
                  "the watcher does not read what is sent to it"));
      return;
    }
    messages_.push_back(message);
    Pump();
  }
  // gRPC never calls back from within StartWrite and Finish.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (is_writing_ || is_over_ || messages_.empty()) {
      return;
    }
    outgoing_.set_event(messages_.front().is_snapshot ? "snapshot" : "delta");
    outgoing_.set_json(*messages_.front().json);
    messages_.pop_front();
    is_writing_ = true;
    StartWrite(&outgoing_);
  }
  void Close(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!is_over_) {
      is_over_ = true;
      Finish(transport::ToGrpc(status));
    }
  }
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    is_writing_ = false;
    if (!ok) {
      Close(Error(absl::StatusCode::kCancelled, "cancelled", "the watcher has gone"));
      return;
    }
    Pump();
  }
  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    Close(Error(absl::StatusCode::kCancelled, "cancelled", "the watcher has gone"));
  }
  void OnDone() override {
    if (watch_ != 0) {
      feed_.Unwatch(watch_);
    }
    delete this;
  }

  live::Feed& feed_;
  uint64_t watch_ = 0;
  v1::LiveUpdate outgoing_;
  Mutex mu_;
  std::deque<live::Message> messages_ ABSL_GUARDED_BY(mu_);
  bool is_writing_ ABSL_GUARDED_BY(mu_) = false;
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;
};

grpc::ServerWriteReactor<v1::LiveUpdate>* Admin::WatchLive(grpc::CallbackServerContext* context,
                                                           const v1::WatchLiveRequest* /*r*/) {
  auto* stream = new LiveStream(feed_);
  if (const absl::Status allowed = CheckRole(*context, "operator"); !allowed.ok()) {
    stream->Refuse(allowed);
  } else {
    stream->Begin();
  }
  return stream;
}

Reactor* Admin::Begin(grpc::CallbackServerContext* context, absl::Status& checked) {
  Reactor* reactor = context->DefaultReactor();
  const absl::Status allowed = CheckRole(*context, "operator");
  checked = allowed.ok() ? checked : allowed;
  if (!checked.ok()) {
    reactor->Finish(transport::ToGrpc(checked));
  }
  return reactor;
}

Reactor* Admin::Ask(grpc::CallbackServerContext* context, absl::Status checked, Question question) {
  Reactor* reactor = Begin(context, checked);
  if (!checked.ok()) {
    return reactor;
  }
  const bool is_asked =
      core_.Ask([reactor, question = std::move(question)](const RouterCore& core) {
        reactor->Finish(transport::ToGrpc(question(core)));
      });
  if (!is_asked) {
    reactor->Finish(transport::ToGrpc(core_.refusal()));
  }
  return reactor;
}

Reactor* Admin::Change(grpc::CallbackServerContext* context, absl::Status checked, Command command,
                       AdminReplies::Waiter fill) {
  Reactor* reactor = Begin(context, checked);
  if (!checked.ok()) {
    return reactor;
  }
  AdminEvent event;
  event.command = std::move(command);
  event.request = replies_.Add([reactor, fill = std::move(fill)](const AdminReply& reply) {
    if (reply.status.ok()) {
      fill(reply);
    }
    reactor->Finish(transport::ToGrpc(reply.status));
  });
  AdminReply refused;
  refused.request = event.request;
  refused.status = core_.refusal();
  if (!core_.Post(std::move(event))) {
    replies_.Answer(refused);
  }
  return reactor;
}

absl::Status CheckName(const std::string& name) {
  return IsName(name)
             ? absl::OkStatus()
             : InvalidArgument("message_field", "name: expected 1 to 64 letters, digits or ._-");
}

Reactor* Admin::GetStatus(grpc::CallbackServerContext* context,
                          const v1::GetStatusRequest* /*request*/,
                          v1::GetStatusResponse* response) {
  return Ask(context, absl::OkStatus(), [response](const RouterCore& core) {
    ToWire(core.Status(Clock::Real().Now()), *response);
    return absl::OkStatus();
  });
}

Reactor* Admin::DrainWorker(grpc::CallbackServerContext* context,
                            const v1::DrainWorkerRequest* request,
                            v1::DrainWorkerResponse* response) {
  return Change(
      context, CheckName(request->name()), DrainCommand{request->name(), false},
      [response](const AdminReply& reply) { response->set_is_drained(reply.is_drained); });
}

Reactor* Admin::UndrainWorker(grpc::CallbackServerContext* context,
                              const v1::UndrainWorkerRequest* request,
                              v1::UndrainWorkerResponse* /*response*/) {
  return Change(context, CheckName(request->name()), DrainCommand{request->name(), true},
                [](const AdminReply& /*reply*/) {});
}

Reactor* Admin::PinExpert(grpc::CallbackServerContext* context, const v1::PinExpertRequest* request,
                          v1::PinExpertResponse* response) {
  const absl::StatusOr<ExpertUnit> unit = FromWire(request->expert());
  const absl::Status checked = unit.ok() ? CheckName(request->worker()) : unit.status();
  return Change(context, checked,
                PinCommand{unit.value_or(ExpertUnit{}), request->worker(), request->unpin()},
                [response](const AdminReply& reply) { response->set_epoch(reply.epoch.value()); });
}

Reactor* Admin::ReplicateExpert(grpc::CallbackServerContext* context,
                                const v1::ReplicateExpertRequest* request,
                                v1::ReplicateExpertResponse* response) {
  const absl::StatusOr<ExpertUnit> unit = FromWire(request->expert());
  return Change(context, unit.status(),
                ReplicateCommand{unit.value_or(ExpertUnit{}), request->replicas()},
                [response](const AdminReply& reply) { response->set_epoch(reply.epoch.value()); });
}

Reactor* Admin::Rebalance(grpc::CallbackServerContext* context, const v1::RebalanceRequest* request,
                          v1::RebalanceResponse* response) {
  const bool is_full = request->full();
  if (!request->dry_run()) {
    return Change(context, absl::OkStatus(), RebalanceCommand{is_full},
                  [response](const AdminReply& reply) { ToWire(reply.rebalance, *response); });
  }
  return Ask(context, absl::OkStatus(),
             [response, is_full](const RouterCore& core) -> absl::Status {
               CONCLAVE_ASSIGN_OR_RETURN(const RebalancePlan plan, core.TryRebalance(is_full));
               ToWire(plan, *response);
               return absl::OkStatus();
             });
}

Reactor* Admin::CheckKillSafe(grpc::CallbackServerContext* context,
                              const v1::CheckKillSafeRequest* request,
                              v1::CheckKillSafeResponse* response) {
  return Ask(context, CheckName(request->name()),
             [response, name = request->name()](const RouterCore& core) -> absl::Status {
               CONCLAVE_ASSIGN_OR_RETURN(const std::vector<ExpertUnit> at_risk,
                                         core.AtRiskWithout(name));
               response->set_is_safe(at_risk.empty());
               for (const ExpertUnit unit : at_risk) {
                 ToWire(unit, *response->add_at_risk());
               }
               return absl::OkStatus();
             });
}

Reactor* Admin::RecordInto(grpc::CallbackServerContext* context, bool is_start,
                           v1::RecordingStatus* recording) {
  absl::Status checked;
  Reactor* reactor = Begin(context, checked);
  if (checked.ok()) {
    Record(is_start, core_, replies_,
           [reactor, recording](const absl::StatusOr<RecordingStatus>& found) {
             if (found.ok()) {
               ToWire(*found, *recording);
             }
             reactor->Finish(transport::ToGrpc(found.status()));
           });
  }
  return reactor;
}

Reactor* Admin::StartRecording(grpc::CallbackServerContext* context,
                               const v1::StartRecordingRequest* /*request*/,
                               v1::StartRecordingResponse* response) {
  return RecordInto(context, true, response->mutable_recording());
}

Reactor* Admin::StopRecording(grpc::CallbackServerContext* context,
                              const v1::StopRecordingRequest* /*request*/,
                              v1::StopRecordingResponse* response) {
  return RecordInto(context, false, response->mutable_recording());
}

// Sends a file piece by piece. Deletes itself when gRPC is done with it.
class RecordingSender final : public grpc::ServerWriteReactor<v1::GetRecordingResponse> {
 public:
  // Once, before anything else; any thread.
  void Begin(absl::StatusOr<Recording> recording) {
    if (!recording.ok()) {
      Finish(transport::ToGrpc(recording.status()));
      return;
    }
    recording_ = *std::move(recording);
    Next();
  }
  void OnWriteDone(bool ok) override {
    if (ok) {
      Next();
    } else {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, "the client has gone"));
    }
  }
  void OnDone() override { delete this; }

 private:
  void Next() {
    constexpr size_t kChunkBytes = size_t{256} << 10;
    while (piece_ < recording_.pieces.size() && at_ == recording_.pieces[piece_]->size()) {
      ++piece_;
      at_ = 0;
    }
    if (piece_ == recording_.pieces.size()) {
      Finish(grpc::Status::OK);
      return;
    }
    const std::string& piece = *recording_.pieces[piece_];
    message_.set_chunk(piece.substr(at_, kChunkBytes));
    at_ += message_.chunk().size();
    StartWrite(&message_);
  }

  Recording recording_;
  size_t piece_ = 0;
  size_t at_ = 0;
  v1::GetRecordingResponse message_;
};

grpc::ServerWriteReactor<v1::GetRecordingResponse>* Admin::GetRecording(
    grpc::CallbackServerContext* context, const v1::GetRecordingRequest* /*request*/) {
  auto* sender = new RecordingSender();
  if (const absl::Status allowed = CheckRole(*context, "operator"); !allowed.ok()) {
    sender->Begin(allowed);
  } else {
    TakeRecording(core_, [sender](absl::StatusOr<Recording> recording) {
      sender->Begin(std::move(recording));
    });
  }
  return sender;
}

}  // namespace

void Record(bool is_start, CoreSlot& core, AdminReplies& replies, RecordingDone done) {
  AdminEvent event;
  event.command = RecordCommand{is_start, std::chrono::duration_cast<std::chrono::microseconds>(
                                              std::chrono::system_clock::now().time_since_epoch())
                                              .count()};
  event.request = replies.Add([done = std::move(done)](const AdminReply& reply) {
    if (reply.status.ok()) {
      done(reply.recording);
    } else {
      done(reply.status);
    }
  });
  AdminReply refused;
  refused.request = event.request;
  refused.status = core.refusal();
  if (!core.Post(std::move(event))) {
    replies.Answer(refused);
  }
}

void TakeRecording(CoreSlot& core, const RecordingTake& done) {
  const bool is_asked =
      core.Ask([done](const RouterCore& asked) { done(asked.CurrentRecording()); });
  if (!is_asked) {
    done(core.refusal());
  }
}

uint64_t AdminReplies::Add(Waiter waiter) {
  MutexLock lock(mu_);
  waiters_[next_] = std::move(waiter);
  return next_++;
}

void AdminReplies::Answer(const AdminReply& reply) {
  Waiter waiter;
  {
    MutexLock lock(mu_);
    const auto it = waiters_.find(reply.request);
    if (it == waiters_.end()) {
      return;
    }
    waiter = std::move(it->second);
    waiters_.erase(it);
  }
  waiter(reply);
}

void AdminReplies::AnswerAll(const AdminReply& reply) {
  std::map<uint64_t, Waiter> waiters;
  {
    MutexLock lock(mu_);
    waiters.swap(waiters_);
  }
  for (const auto& [request, waiter] : waiters) {
    waiter(reply);
  }
}

std::unique_ptr<grpc::Service> MakeAdminService(CoreSlot& core, AdminReplies& replies,
                                                live::Feed& feed) {
  return std::make_unique<Admin>(core, replies, feed);
}

absl::Status CheckRole(const grpc::CallbackServerContext& context, const char* role) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string found,
                            transport::RoleOfPeer(*context.auth_context()));
  if (found.empty() || found == role) {
    return absl::OkStatus();
  }
  return Error(absl::StatusCode::kPermissionDenied, "peer_role",
               std::string("expected a certificate of role ") + role + ", found " + found);
}

}  // namespace conclave::router_service
