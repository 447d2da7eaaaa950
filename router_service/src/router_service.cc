// The router on gRPC: handlers translate, the loop decides.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <utility>

#include "action_log.h"
#include "admin_rpc.h"
#include "cluster.grpc.pb.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/router_service/router_server.h"
#include "conclave/router_service/state_file.h"
#include "conclave/service/address.h"
#include "conclave/transport/grpc_support.h"
#include "core_slot.h"
#include "leader_loop.h"
#include "live_picture.h"
#include "open_streams.h"
#include "router_metrics.h"
#include "rpc_stream.h"
#include "wire.h"

namespace conclave::router_service {
namespace {

using WorkerStream = RpcStream<v1::WorkerReport, v1::WorkerCommand>;
using WatchStream = RpcStream<v1::WatchRequest, v1::PlacementUpdate>;

// A stream that has not registered by then ends: it costs memory and does nothing.
constexpr std::chrono::seconds kSpeakWithin{5};

uint64_t Random64() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

std::string RandomId() {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string id;
  const uint64_t value = Random64();
  for (int shift = 60; shift >= 0; shift -= 4) {
    id.push_back(kDigits[value >> shift & 0xf]);
  }
  return id;
}

}  // namespace

class RouterServer::Impl {
 public:
  explicit Impl(RouterServerOptions options)
      : options_(std::move(options)),
        metrics_(options_.metrics, [this] { RefreshMetrics(); }),
        board_(BoardOptionsOf(options_.live)),
        cluster_(*this) {}

  absl::Status Start();
  ~Impl();

  uint16_t port() const { return port_; }
  live::Board& board() { return board_; }
  live::Feed& feed() { return feed_; }
  void Ask(std::function<void(const absl::StatusOr<const RouterCore*>&)> question);
  void Change(Command command, std::function<void(const AdminReply&)> on_reply);
  absl::StatusOr<std::string> FrontendApi();
  CoreSlot& core() { return core_; }
  AdminReplies& replies() { return replies_; }
  bool Post(std::function<void()> task) {
    return core_.Ask([run = std::move(task)](const RouterCore& /*core*/) { run(); });
  }
  Health health() const {
    MutexLock lock(health_mu_);
    return health_;
  }
  std::string dtype() const { return metrics_.dtype(); }

 private:
  class Cluster final : public v1::ClusterService::CallbackService {
   public:
    explicit Cluster(Impl& owner) : owner_(owner) {}
    grpc::ServerBidiReactor<v1::WorkerReport, v1::WorkerCommand>* JoinWorker(
        grpc::CallbackServerContext* context) override {
      return owner_.OpenWorker(CheckRole(*context, "worker"));
    }
    grpc::ServerBidiReactor<v1::WatchRequest, v1::PlacementUpdate>* WatchPlacement(
        grpc::CallbackServerContext* context) override {
      return owner_.OpenWatch(CheckRole(*context, "frontend"));
    }

   private:
    Impl& owner_;
  };

  WorkerStream* OpenWorker(const absl::Status& allowed);
  WatchStream* OpenWatch(const absl::Status& allowed);
  template <typename Stream>
  Stream* Open(typename Stream::Hooks hooks, SessionId session, const absl::Status& allowed);
  void PostFrom(SessionId session, Event event);
  void OnAction(Action action, const RouterIdentity& router);
  void OnTick(const RouterCore& core);
  void TellBoard(const RouterStatus& status);
  // A frontend's report, of the stream whose figures these are.
  struct Reporter {
    std::string name;
    uint64_t incarnation = 0;
    live::FrontendFigures figures;
  };
  absl::Status TakeReport(SessionId session, const v1::FrontendReport& report, Reporter& reporter);
  static live::BoardOptions BoardOptionsOf(live::BoardOptions options) {
    options.role = "router";
    return options;
  }
  // For a scrape: waits until the loop has said how things are, a moment at most.
  void RefreshMetrics();
  template <typename T>
  void SendCommand(const T& action, const RouterIdentity& router);
  // Loads what the store has and lets a core begin with it.
  absl::Status BeginCore(std::unique_ptr<StateStore> store, std::function<bool()> may_command);
  // Ends it, with everything that peers and operators wait for.
  void EndCore(const absl::Status& why);
  void StandBy(const absl::Status& why);
  std::unique_ptr<LeaderLoop> MakeLeaderLoop();

  const RouterServerOptions options_;
  RouterMetrics metrics_;
  Streams streams_;
  std::atomic<SessionId> next_session_{1};
  uint16_t port_ = 0;
  mutable Mutex health_mu_;
  Health health_ ABSL_GUARDED_BY(health_mu_){"recovering", ""};
  AdminReplies replies_;
  MonotonicTime checked_at_;
  RouterSigns signs_;  // as the board was told last; of the core's loop
  mutable Mutex apis_mu_;
  std::vector<std::string> apis_ ABSL_GUARDED_BY(apis_mu_);
  size_t next_api_ ABSL_GUARDED_BY(apis_mu_) = 0;
  live::Board board_;
  live::Feed feed_{board_, nullptr};
  CoreSlot core_{Error(absl::StatusCode::kUnavailable, "standby",
                       "this router stands by: it has just started")};
  Cluster cluster_;
  std::unique_ptr<grpc::Service> admin_;
  std::unique_ptr<grpc::Server> server_;
  std::string standby_why_;             // as logged last; of the leader loop's thread
  std::unique_ptr<LeaderLoop> leader_;  // null without etcd
};

absl::Status RouterServer::Impl::BeginCore(std::unique_ptr<StateStore> store,
                                           std::function<bool()> may_command) {
  std::optional<RouterState> state;
  CoreOptions core_options = options_.core;
  if (store != nullptr) {
    CONCLAVE_ASSIGN_OR_RETURN(const StoredState stored, store->Load());
    for (const absl::Status& refused : stored.refused) {
      observability::LogError("a kept state is passed over",
                              {{"reason", ReasonOf(refused)}, {"why", MessageOf(refused)}});
    }
    core_options.terms_used = stored.terms_used;
    if (stored.is_found) {
      CONCLAVE_ASSIGN_OR_RETURN(state, ParseRouterState(stored.blob));
      const ModelIdentity& wanted = options_.core.model;
      if (!wanted.manifest_hash.empty() && !state->model.manifest_hash.empty() &&
          state->model != wanted) {
        return Error(absl::StatusCode::kFailedPrecondition, "state_dir",
                     (options_.etcd.empty() ? options_.state_dir : std::string("etcd")) +
                         ": the state is of another model; expected " + wanted.manifest_hash +
                         ", found " + state->model.manifest_hash);
      }
    }
  }
  if (core_options.router_id.empty()) {
    core_options.router_id = RandomId();
  }
  metrics_.BeginCore();
  metrics_.SetLeading(true);
  {
    MutexLock lock(health_mu_);
    health_ = {state.has_value() ? "serving" : "recovering", ""};
  }
  auto loop = std::make_unique<CoreLoop>(
      std::make_unique<RouterCore>(std::move(core_options), std::move(state)), std::move(store),
      options_.tick,
      CoreLoop::Hooks{[this](Action action, const RouterIdentity& router) {
                        OnAction(std::move(action), router);
                      },
                      [this](const RouterCore& core) { OnTick(core); }});
  CoreLoop* started = loop.get();
  core_.Fill(std::move(loop), std::move(may_command));
  started->Start();
  return absl::OkStatus();
}

void RouterServer::Impl::EndCore(const absl::Status& why) {
  // Nothing is posted or sent from here on.
  const std::unique_ptr<CoreLoop> loop = core_.Take(why);
  for (const Streams::Entry& entry : streams_.All()) {
    entry.stream->End(why);
  }
  if (loop != nullptr) {
    loop->Stop();
  }
  // Whoever still waits for an answer gets one, or the server would wait for it.
  AdminReply reply;
  reply.status = why;
  replies_.AnswerAll(reply);
  metrics_.SetLeading(false);
}

void RouterServer::Impl::StandBy(const absl::Status& why) {
  const std::string reason = ReasonOf(why);
  core_.SetRefusal(reason == "standby"
                       ? why
                       : Error(absl::StatusCode::kUnavailable, "standby",
                               "this router stands by: " + reason + ": " + MessageOf(why)));
  if (MessageOf(why) != standby_why_) {
    standby_why_ = MessageOf(why);
    observability::LogInfo("standing by", {{"why", standby_why_}});
  }
  board_.SetState("standby", reason == "standby" ? "" : reason);
  MutexLock lock(health_mu_);
  health_ = {"standby", reason == "standby" ? "" : reason};
}

std::unique_ptr<LeaderLoop> RouterServer::Impl::MakeLeaderLoop() {
  EtcdElectionOptions options;
  options.prefix =
      "/conclave/" + (options_.core.cluster_id.empty() ? "default" : options_.core.cluster_id);
  // Nobody can connect to a wildcard.
  const bool is_wildcard = options_.host == "0.0.0.0" || options_.host == "::";
  options.address = is_wildcard ? "" : service::ToString(service::Address{options_.host, port_});
  options.lease = options_.etcd_lease;
  LeaderLoop::Hooks hooks;
  hooks.on_elected = [this](const std::shared_ptr<EtcdLeadership>& leadership) {
    return BeginCore(std::make_unique<EtcdStateStore>(leadership),
                     [leadership] { return leadership->IsHeld(); });
  };
  hooks.on_deposed = [this](const absl::Status& why) {
    EndCore(why);
    StandBy(why);
  };
  hooks.on_standby = [this](const absl::Status& why) { StandBy(why); };
  hooks.on_failed = [this](const absl::Status& why) {
    StandBy(Error(absl::StatusCode::kUnavailable, "standby", "this router cannot lead"));
    if (options_.on_failed) {
      options_.on_failed(why);
    }
  };
  return std::make_unique<LeaderLoop>(std::make_unique<EtcdClient>(options_.etcd),
                                      std::move(options), std::move(hooks));
}

absl::Status RouterServer::Impl::Start() {
  CONCLAVE_ASSIGN_OR_RETURN(
      const transport::TlsIdentity tls,
      transport::ReadTlsFiles(options_.tls_certificate, options_.tls_key, options_.tls_authority));
  if (options_.etcd.empty()) {
    std::unique_ptr<StateFolder> folder;
    if (!options_.state_dir.empty()) {
      CONCLAVE_ASSIGN_OR_RETURN(folder, StateFolder::Open(options_.state_dir));
    }
    CONCLAVE_RETURN_IF_ERROR(BeginCore(std::move(folder), [] { return true; }));
  } else {
    MutexLock lock(health_mu_);
    health_ = {"standby", ""};
  }

  grpc::ServerBuilder builder;
  transport::SetServerLimits(builder, transport::kControlMessageBytes);
  int bound = 0;
  const std::string address = service::ToString(service::Address{options_.host, options_.port});
  builder.AddListeningPort(address, transport::ServerCredentialsOf(tls), &bound);
  builder.RegisterService(&cluster_);
  admin_ = MakeAdminService(core_, replies_, feed_);
  builder.RegisterService(admin_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || bound == 0) {
    return Error(absl::StatusCode::kUnavailable, "bind",
                 "bind " + address + ": the address is in use or not of this machine");
  }
  port_ = static_cast<uint16_t>(bound);
  if (!options_.etcd.empty()) {
    leader_ = MakeLeaderLoop();
    leader_->Start();
  }
  return absl::OkStatus();
}

void RouterServer::Impl::RefreshMetrics() {
  // A loop that is busy for longer has set the figures at its last tick.
  constexpr std::chrono::milliseconds kWaitMax{250};
  struct Answer {
    Mutex mu;
    CondVar changed;
    bool is_there ABSL_GUARDED_BY(mu) = false;
  };
  const auto answer = std::make_shared<Answer>();
  const bool is_asked = core_.Ask([this, answer](const RouterCore& core) {
    metrics_.Update(core.Status(Clock::Real().Now()), core.counters());
    MutexLock lock(answer->mu);
    answer->is_there = true;
    answer->changed.NotifyAll();
  });
  const MonotonicTime until = Clock::Real().Now() + kWaitMax;
  MutexLock lock(answer->mu);
  while (is_asked && !answer->is_there && Clock::Real().Now() < until) {
    answer->changed.WaitFor(answer->mu, until - Clock::Real().Now());
  }
}

RouterServer::Impl::~Impl() {
  metrics_.Stop();
  streams_.Close();
  if (leader_ != nullptr) {
    leader_->Stop();
  }
  EndCore(Error(absl::StatusCode::kUnavailable, "draining", "the router stops"));
  if (server_ != nullptr) {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    server_->Wait();
  }
}

template <typename Stream>
Stream* RouterServer::Impl::Open(typename Stream::Hooks hooks, SessionId session,
                                 const absl::Status& allowed) {
  hooks.on_closed = [this, session] {
    // The loop forgets the stream behind this event, and what it sent before.
    if (!core_.Post(SessionClosedEvent{session}, [this, session] { streams_.Remove(session); })) {
      streams_.Remove(session);
    }
  };
  const std::shared_ptr<Stream> stream = Stream::Start(std::move(hooks));
  Streams::Entry entry{stream, nullptr, Clock::Real().Now()};
  if constexpr (std::is_same_v<Stream, WorkerStream>) {
    entry.worker = stream;
  }
  if (!allowed.ok()) {
    stream->End(allowed);
  } else if (!core_.MayCommand()) {
    stream->End(core_.refusal());
  } else if (!streams_.Add(session, std::move(entry))) {
    stream->End(Error(absl::StatusCode::kResourceExhausted, "too_many_connections",
                      "expected at most " + std::to_string(Streams::kStreamsMax) + " streams"));
  } else {
    stream->Listen();
    if (!core_.MayCommand()) {
      stream->End(core_.refusal());  // EndCore may have looked before it was in the table
    }
  }
  return stream.get();
}

// On gRPC's thread, from within a read of the stream: it is in the table, or has been ended.
void RouterServer::Impl::PostFrom(SessionId session, Event event) {
  std::shared_ptr<PeerStream> stream = streams_.Find(session).stream;
  const bool is_posted = core_.Post(std::move(event), [stream] {
    if (stream != nullptr) {
      stream->EventDone();
    }
  });
  if (!is_posted && stream != nullptr) {
    stream->End(core_.refusal());
  }
}

WorkerStream* RouterServer::Impl::OpenWorker(const absl::Status& allowed) {
  const SessionId session = next_session_++;
  WorkerStream::Hooks hooks;
  hooks.on_message = [this, session,
                      is_first = true](const v1::WorkerReport& report) mutable -> absl::Status {
    if (report.has_register_() != is_first) {
      return InvalidArgument(
          "message_field", is_first ? "register: expected it first" : "register: expected it once");
    }
    is_first = false;
    CONCLAVE_ASSIGN_OR_RETURN(Event event, FromWire(report, session, Random64()));
    PostFrom(session, std::move(event));
    return absl::OkStatus();
  };
  hooks.fill_view = [](const PlacementView* last, const SendPlacement& placement,
                       v1::WorkerCommand& message) {
    ToWire(placement.view->router, message);
    ToWire(last, *placement.view, std::nullopt, *message.mutable_placement());
  };
  return Open<WorkerStream>(std::move(hooks), session, allowed);
}

WatchStream* RouterServer::Impl::OpenWatch(const absl::Status& allowed) {
  const SessionId session = next_session_++;
  WatchStream::Hooks hooks;
  hooks.on_message = [this, session, is_first = true, reporter = Reporter()](
                         const v1::WatchRequest& request) mutable -> absl::Status {
    if (request.has_register_() != is_first) {
      return InvalidArgument(
          "message_field", is_first ? "register: expected it first" : "register: expected it once");
    }
    is_first = false;
    if (request.has_report()) {
      return TakeReport(session, request.report(), reporter);
    }
    CONCLAVE_ASSIGN_OR_RETURN(Event event, FromWire(request, session));
    if (const auto* frontend = std::get_if<FrontendRegisterEvent>(&event); frontend != nullptr) {
      reporter.name = frontend->registration.name;
      reporter.incarnation = frontend->registration.incarnation;
    }
    PostFrom(session, std::move(event));
    return absl::OkStatus();
  };
  // The id comes with the first placement; keys of pairs need it in all of them.
  hooks.fill_view = [id = std::optional<uint32_t>()](const PlacementView* last,
                                                     const SendPlacement& placement,
                                                     v1::PlacementUpdate& message) mutable {
    if (placement.frontend_id.has_value()) {
      id = placement.frontend_id;
      message.mutable_registered()->set_frontend_id(*id);
      constexpr uint32_t kResyncAfterMs = 5000;
      message.mutable_registered()->set_resync_after_ms(kResyncAfterMs);
    }
    ToWire(last, *placement.view, id.value_or(0), message);
  };
  return Open<WatchStream>(std::move(hooks), session, allowed);
}

template <typename T>
void RouterServer::Impl::SendCommand(const T& action, const RouterIdentity& router) {
  const Streams::Entry entry = streams_.Find(action.session);
  if (entry.worker == nullptr) {
    return;
  }
  v1::WorkerCommand command;
  ToWire(router, command);
  if constexpr (std::is_same_v<T, SendRegistered>) {
    ToWire(action, options_.core, command);
  } else {
    ToWire(action, command);
  }
  entry.worker->Send(std::move(command));
}

void RouterServer::Impl::OnAction(Action action, const RouterIdentity& router) {
  if (const auto* log = std::get_if<LogAction>(&action); log != nullptr) {
    WriteLog(*log);
  } else if (!core_.MayCommand()) {
    // Deposed, or about to be: what the core has decided since counts no more.
  } else if (const auto* end = std::get_if<EndSession>(&action); end != nullptr) {
    if (const Streams::Entry entry = streams_.Find(end->session); entry.stream != nullptr) {
      entry.stream->End(end->status);
    }
  } else if (const auto* placement = std::get_if<SendPlacement>(&action); placement != nullptr) {
    if (const Streams::Entry entry = streams_.Find(placement->session); entry.stream != nullptr) {
      entry.stream->SendView(*placement);
      // Some streams have the new placement, others not.
      (void)CONCLAVE_FAILPOINT("r.partial_publish", {});
    }
  } else if (const auto* reply = std::get_if<AdminReply>(&action); reply != nullptr) {
    replies_.Answer(*reply);
  } else if (const auto* registered = std::get_if<SendRegistered>(&action)) {
    SendCommand(*registered, router);
  } else if (const auto* prepare = std::get_if<SendPrepare>(&action)) {
    (void)CONCLAVE_FAILPOINT("r.migrate_load", {});
    SendCommand(*prepare, router);
  } else if (const auto* retire = std::get_if<SendRetire>(&action)) {
    SendCommand(*retire, router);
  } else if (const auto* drain = std::get_if<SendDrainState>(&action)) {
    if (drain->is_drained) {
      (void)CONCLAVE_FAILPOINT("r.drain_end", {});
    } else {
      (void)CONCLAVE_FAILPOINT("r.drain_begin", {});
    }
    SendCommand(*drain, router);
  } else if (const auto* ack = std::get_if<SendHeartbeatAck>(&action)) {
    SendCommand(*ack, router);
  }
}

absl::Status RouterServer::Impl::TakeReport(SessionId session, const v1::FrontendReport& report,
                                            Reporter& reporter) {
  CONCLAVE_RETURN_IF_ERROR(ApplyReport(report, reporter.figures));
  // One that is not a member yet, or is about to be refused for another model, adds to no sum; its
  // next report has everything.
  if (board_.IsFrontend(reporter.name, reporter.incarnation)) {
    board_.Report(reporter.name, reporter.incarnation, reporter.figures);
  }
  if (const std::shared_ptr<PeerStream> stream = streams_.Find(session).stream; stream != nullptr) {
    stream->EventDone();
  }
  return absl::OkStatus();
}

void RouterServer::Impl::TellBoard(const RouterStatus& status) {
  board_.Update(ToPicture(status));
  std::vector<std::string> apis;
  for (const FrontendStatus& frontend : status.frontends) {
    if (!frontend.api_address.empty()) {
      apis.push_back(frontend.api_address);
    }
  }
  MutexLock lock(apis_mu_);
  apis_ = std::move(apis);
}

absl::StatusOr<std::string> RouterServer::Impl::FrontendApi() {
  MutexLock lock(apis_mu_);
  if (apis_.empty()) {
    return Error(absl::StatusCode::kUnavailable, "no_frontend",
                 "no frontend with an API is connected to this router");
  }
  return apis_[next_api_++ % apis_.size()];
}

void RouterServer::Impl::Ask(
    std::function<void(const absl::StatusOr<const RouterCore*>&)> question) {
  const auto shared = std::make_shared<decltype(question)>(std::move(question));
  if (!core_.Ask([shared](const RouterCore& core) { (*shared)(&core); })) {
    (*shared)(core_.refusal());
  }
}

void RouterServer::Impl::Change(Command command, std::function<void(const AdminReply&)> on_reply) {
  AdminEvent event;
  event.command = std::move(command);
  event.request = replies_.Add(std::move(on_reply));
  AdminReply refused;
  refused.request = event.request;
  refused.status = core_.refusal();
  if (!core_.Post(std::move(event))) {
    replies_.Answer(refused);
  }
}

void RouterServer::Impl::OnTick(const RouterCore& core) {
  const MonotonicTime now = Clock::Real().Now();
  // What happens to members is told at once, so that events have their time; the rest now and then.
  RouterSigns signs = core.Signs();
  const bool has_news = !(signs == signs_);
  if (!has_news && now - checked_at_ < std::chrono::milliseconds(500)) {
    return;
  }
  signs_ = std::move(signs);
  const RouterStatus status = core.Status(now);
  TellBoard(status);
  if (now - checked_at_ < std::chrono::milliseconds(500)) {
    return;
  }
  checked_at_ = now;
  metrics_.Update(status, core.counters());
  {
    MutexLock lock(health_mu_);
    health_ = {status.state, status.blocked};
  }
  if (leader_ != nullptr && status.state == "standby") {
    // A peer obeys a higher term. Whoever leads next starts with that knowledge to come.
    leader_->StepDown(status.blocked);
  }
  for (const Streams::Entry& entry : streams_.All()) {
    if (now - entry.since > kSpeakWithin && !entry.stream->HasSpoken()) {
      entry.stream->End(Error(absl::StatusCode::kDeadlineExceeded, "deadline",
                              "expected a registration within 5 s"));
    }
  }
}

RouterServer::RouterServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
RouterServer::~RouterServer() = default;

absl::StatusOr<std::unique_ptr<RouterServer>> RouterServer::Start(RouterServerOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  CONCLAVE_RETURN_IF_ERROR(impl->Start());
  return std::unique_ptr<RouterServer>(new RouterServer(std::move(impl)));
}

uint16_t RouterServer::port() const { return impl_->port(); }
live::Board& RouterServer::board() { return impl_->board(); }
live::Feed& RouterServer::feed() { return impl_->feed(); }
absl::StatusOr<std::string> RouterServer::FrontendApi() { return impl_->FrontendApi(); }
void RouterServer::Ask(std::function<void(const absl::StatusOr<const RouterCore*>&)> question) {
  impl_->Ask(std::move(question));
}
void RouterServer::Change(Command command, std::function<void(const AdminReply&)> on_reply) {
  impl_->Change(std::move(command), std::move(on_reply));
}
bool RouterServer::Post(std::function<void()> task) { return impl_->Post(std::move(task)); }
RouterServer::Health RouterServer::health() const { return impl_->health(); }
std::string RouterServer::dtype() const { return impl_->dtype(); }

void RouterServer::StartRecording(RecordingDone done) {
  Record(true, impl_->core(), impl_->replies(), std::move(done));
}
void RouterServer::StopRecording(RecordingDone done) {
  Record(false, impl_->core(), impl_->replies(), std::move(done));
}
void RouterServer::GetRecording(const RecordingTake& done) { TakeRecording(impl_->core(), done); }

}  // namespace conclave::router_service
