#include "conclave/transport/grpc_server.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "conclave/base/check.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/transport/pair_key.h"
#include "conclave/transport/rows.h"
#include "expert.grpc.pb.h"
#include "frame_io.h"
#include "grpc_pair.h"
#include "grpc_session.h"
#include "side_server.h"

namespace conclave::transport {
namespace {

// Streams in the worst case take this long to end; then they are reset.
constexpr std::chrono::milliseconds kShutdownGrace{200};
// An address of a frontend for a channel beside the stream; UCX's are a few hundred bytes.
constexpr size_t kSideAddressBytesMax = 4096;

absl::Status Mismatch(const std::string& what, const std::string& expected,
                      const std::string& found) {
  return Error(absl::StatusCode::kFailedPrecondition, "cluster_mismatch",
               "handshake: " + what + ": expected " + expected + ", found " + found);
}

template <typename T>
absl::Status CheckSame(const char* what, T expected, T found) {
  return expected == found ? absl::OkStatus()
                           : Mismatch(what, std::to_string(expected), std::to_string(found));
}

// What a peer says is cut: it goes into a log.
absl::Status CheckSameText(const char* what, const std::string& expected,
                           const std::string& found) {
  return expected == found ? absl::OkStatus() : Mismatch(what, expected, found.substr(0, 64));
}

// Not 0.
uint64_t RandomId() {
  uint64_t id = 0;
  while (id == 0) {
    CONCLAVE_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(&id), sizeof(id)) == 1);
  }
  return id;
}

// A stream that ends before it began.
class RefusedStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedStream(const absl::Status& why) { Finish(ToGrpc(why)); }
  void OnDone() override { delete this; }
};

// The stream of a session whose frames travel beside it. Nothing is said on it; its end is the
// session's, and the other way round.
class LifelineStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                             public std::enable_shared_from_this<LifelineStream> {
 public:
  explicit LifelineStream(std::shared_ptr<SessionCounters> counters)
      : counters_(std::move(counters)) {
    counters_->sessions.fetch_add(1);
  }

  // Once, before gRPC has the stream.
  void Start(const std::shared_ptr<SideSession>& session) {
    bool is_over = false;  // the session has ended already, and the stream been finished
    {
      MutexLock lock(mu_);
      self_ = shared_from_this();
      session_ = session;
      is_over = is_over_;
    }
    if (is_over) {
      session->Close();
      return;
    }
    StartSendInitialMetadata();
    StartRead(&message_);
  }

  // Any thread; nothing after the first time.
  void End(const grpc::Status& status) {
    std::shared_ptr<SideSession> session;
    std::shared_ptr<LifelineStream> keep;
    {
      MutexLock lock(mu_);
      if (std::exchange(is_over_, true)) {
        return;
      }
      session = session_;
      keep = self_;
    }
    if (session != nullptr) {
      session->Close();
    }
    Finish(status);
  }

  void OnReadDone(bool ok) override {
    if (ok) {
      counters_->malformed.fetch_add(1, std::memory_order_relaxed);
    }
    End(ok ? ToGrpc(FrameError("type", "expected none on the stream beside a channel"))
           : grpc::Status::OK);
  }
  void OnCancel() override { End(grpc::Status::CANCELLED); }
  void OnDone() override {
    counters_->sessions.fetch_sub(1);
    std::shared_ptr<LifelineStream> self;  // goes last
    MutexLock lock(mu_);
    self = std::move(self_);
  }

 private:
  const std::shared_ptr<SessionCounters> counters_;
  grpc::ByteBuffer message_;
  Mutex mu_;
  std::shared_ptr<LifelineStream> self_ ABSL_GUARDED_BY(mu_);  // until OnDone
  std::shared_ptr<SideSession> session_ ABSL_GUARDED_BY(mu_);
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;
};

using ExpertServiceBase = v1::ExpertService::WithCallbackMethod_Hello<
    v1::ExpertService::WithRawCallbackMethod_Exchange<v1::ExpertService::Service>>;

class GrpcExpertServer final : public ExpertServer, private ExpertServiceBase {
 public:
  GrpcExpertServer(const ExpertServerOptions& options, CallSink& sink)
      : options_(options), sink_(sink), counters_(std::make_shared<SessionCounters>()) {}

  ~GrpcExpertServer() override {
    if (server_ == nullptr) {
      return;
    }
    const absl::Status why = Error(absl::StatusCode::kUnavailable, "draining",
                                   "worker: ends; expected no further frames");
    for (const Live& live : LiveSessions()) {
      live.Close(ToGrpc(why), false);
    }
    if (options_.side != nullptr) {
      options_.side->Stop();
    }
    server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
    server_.reset();
  }

  absl::Status Listen();

  uint16_t port() const override { return port_; }

  void SetRegistration(WorkerId worker, uint64_t worker_key, Epoch epoch) override {
    SetEpoch(epoch);
    MutexLock lock(mu_);
    registration_ = Registration{worker, worker_key};
  }

  void SetEpoch(Epoch epoch) override { counters_->epoch.store(epoch.value()); }

  void SetDraining(bool is_draining) override {
    MutexLock lock(mu_);
    is_draining_ = is_draining;
  }

  ExpertServerCounters counters() const override {
    ExpertServerCounters counters;
    counters.bytes_sent = counters_->bytes_sent.load();
    counters.bytes_received = counters_->bytes_received.load();
    counters.calls = counters_->calls.load();
    counters.refused = counters_->refused.load();
    counters.duplicates = counters_->duplicates.load();
    counters.cancelled = counters_->cancelled.load();
    counters.malformed = counters_->malformed.load();
    counters.slow_peers = counters_->slow_peers.load();
    counters.sessions = counters_->sessions.load();
    return counters;
  }

 private:
  struct Registration {
    WorkerId worker;
    uint64_t key = 0;
  };
  // From the handshake on; forgotten when no stream comes, or when the stream is over.
  struct Pair {
    SessionTerms terms;
    uint64_t frontend_incarnation = 0;
    MonotonicTime made_at;
    std::string side_address;  // empty: frames travel through the stream
    bool has_stream = false;
    std::weak_ptr<Session> session;
    std::weak_ptr<LifelineStream> lifeline;

    bool is_over() const { return has_stream && session.expired() && lifeline.expired(); }
  };
  // The stream of a pair, of one kind or the other.
  struct Live {
    std::shared_ptr<Session> session;
    std::shared_ptr<LifelineStream> lifeline;

    void Close(const grpc::Status& status, bool is_reset) const {
      if (session != nullptr) {
        session->Close(status, is_reset);
      }
      if (lifeline != nullptr) {
        lifeline->End(status);
      }
    }
  };

  grpc::ServerUnaryReactor* Hello(grpc::CallbackServerContext* context,
                                  const v1::HelloRequest* request,
                                  v1::HelloResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(ShakeHands(*context, *request, *response)));
    return reactor;
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Exchange(
      grpc::CallbackServerContext* context) override {
    const absl::StatusOr<Live> live = OpenStream(context);
    if (!live.ok()) {
      return new RefusedStream(live.status());
    }
    if (live->lifeline != nullptr) {
      return live->lifeline.get();
    }
    live->session->Start();
    return live->session.get();
  }

  absl::Status ShakeHands(const grpc::CallbackServerContext& context, const v1::HelloRequest& hello,
                          v1::HelloResponse& answer) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status CheckHello(const v1::HelloRequest& hello) const;
  absl::StatusOr<Live> OpenStream(grpc::CallbackServerContext* context) ABSL_LOCKS_EXCLUDED(mu_);
  // The lifeline of a session beside the stream, started.
  absl::StatusOr<std::shared_ptr<LifelineStream>> OpenSide(uint64_t id, const Pair& pair)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CheckPeer(const grpc::CallbackServerContext& context) const {
    return options_.tls.empty() ? absl::OkStatus() : CheckRole(*context.auth_context(), "frontend");
  }
  void ForgetOld() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Refuses a frontend that has been started again since; the sessions of its earlier starts.
  absl::StatusOr<std::vector<Live>> CheckIncarnation(const v1::HelloRequest& hello)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::vector<Live> LiveSessions() ABSL_LOCKS_EXCLUDED(mu_);

  const ExpertServerOptions options_;
  CallSink& sink_;
  const std::shared_ptr<SessionCounters> counters_;
  uint16_t port_ = 0;

  Mutex mu_;
  std::optional<Registration> registration_ ABSL_GUARDED_BY(mu_);
  bool is_draining_ ABSL_GUARDED_BY(mu_) = false;
  std::map<uint64_t, Pair> pairs_ ABSL_GUARDED_BY(mu_);  // by session

  std::unique_ptr<grpc::Server> server_;  // its threads go first
};

absl::Status GrpcExpertServer::Listen() {
  const FrameLimits& limits = options_.limits;
  if (limits.dtype != WireDtypeOf(options_.mode)) {
    return InvalidArgument("config_range", "grpc server: expected limits with the rows of " +
                                               std::string(NameOf(options_.mode)) +
                                               ", found others");
  }
  const uint64_t pairs = uint64_t{limits.max_rows} * limits.top_k;
  const bool is_sane = limits.max_rows >= 1 && limits.max_rows <= kMaxRowsPerCall &&
                       limits.row_width >= 1 && limits.top_k >= 1 && pairs <= UINT16_MAX &&
                       options_.num_slots >= 1 && options_.num_sessions_max >= 1 &&
                       options_.num_sessions_max <= 100 &&
                       MaxFrameBytes(limits) <= kSendQueueBytesMax;
  if (!is_sane) {
    return InvalidArgument("config_range",
                           "grpc server: expected 1 to " + std::to_string(kMaxRowsPerCall) +
                               " rows, slots, and calls of at most " +
                               std::to_string(kSendQueueBytesMax) + " bytes, found " +
                               std::to_string(limits.max_rows) + " rows of " +
                               std::to_string(limits.row_width) + " elements and " +
                               std::to_string(options_.num_slots) + " slots");
  }
  const std::string address = options_.host + ":" + std::to_string(options_.port);
  grpc::ServerBuilder builder;
  // A handshake with an address may be larger than a frame of a tiny model.
  const size_t message_bytes = std::max(MaxFrameBytes(limits) + kEnvelopeBytesMax,
                                        options_.side != nullptr ? kSideHelloBytesMax : 0);
  SetServerLimits(builder, static_cast<int>(message_bytes));
  int port = 0;
  builder.AddListeningPort(address, ServerCredentialsOf(options_.tls), &port);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port <= 0) {
    return Error(absl::StatusCode::kUnavailable, "bind",
                 address + ": expected to listen there, found that it is taken or not here");
  }
  port_ = static_cast<uint16_t>(port);
  if (options_.side != nullptr) {
    options_.side->Start(sink_, counters_, *options_.clock);
  }
  return absl::OkStatus();
}

absl::Status GrpcExpertServer::CheckHello(const v1::HelloRequest& hello) const {
  const FrameLimits& limits = options_.limits;
  CONCLAVE_RETURN_IF_ERROR(CheckSame("protocol_major", kProtocolMajor, hello.protocol_major()));
  const bool is_side = options_.side != nullptr && hello.channel() == options_.side->name();
  if (!is_side) {
    CONCLAVE_RETURN_IF_ERROR(CheckSameText(
        "channel", options_.is_side_only ? options_.side->name() : "grpc", hello.channel()));
  }
  if (!options_.cluster_id.empty() && !hello.cluster_id().empty()) {
    CONCLAVE_RETURN_IF_ERROR(CheckSameText("cluster_id", options_.cluster_id, hello.cluster_id()));
  }
  CONCLAVE_RETURN_IF_ERROR(
      CheckSameText("model.manifest_hash", options_.manifest_hash, hello.model().manifest_hash()));
  CONCLAVE_RETURN_IF_ERROR(
      CheckSame<int64_t>("model.row_width", limits.row_width, hello.model().row_width()));
  CONCLAVE_RETURN_IF_ERROR(CheckSame<int64_t>("model.top_k", limits.top_k, hello.model().top_k()));
  CONCLAVE_RETURN_IF_ERROR(
      CheckSameText("numeric.dtype", std::string(NameOf(options_.mode)), hello.numeric().dtype()));
  if (!hello.numeric().isa().empty()) {
    CONCLAVE_RETURN_IF_ERROR(CheckSameText("numeric.isa", options_.isa, hello.numeric().isa()));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckSame("numeric.kernel_revision", options_.kernel_revision,
                                     hello.numeric().kernel_revision()));
  CONCLAVE_RETURN_IF_ERROR(
      CheckSame("worker_incarnation", options_.incarnation, hello.worker_incarnation()));
  if (hello.num_slots() == 0 || hello.max_rows() == 0) {
    return InvalidArgument("bad_items",
                           "handshake: expected at least one slot and one row, found " +
                               std::to_string(hello.num_slots()) + " and " +
                               std::to_string(hello.max_rows()));
  }
  return absl::OkStatus();
}

void GrpcExpertServer::ForgetOld() {
  const MonotonicTime now = options_.clock->Now();
  std::erase_if(pairs_, [&](const auto& entry) {
    const Pair& pair = entry.second;
    return pair.has_stream ? pair.is_over() : now - pair.made_at > options_.stream_within;
  });
}

absl::StatusOr<std::vector<GrpcExpertServer::Live>> GrpcExpertServer::CheckIncarnation(
    const v1::HelloRequest& hello) {
  std::vector<Live> old;
  for (auto& [id, pair] : pairs_) {
    if (pair.terms.frontend != hello.frontend_id()) {
      continue;
    }
    if (pair.frontend_incarnation > hello.frontend_incarnation()) {
      return Mismatch("frontend_incarnation",
                      "none before " + std::to_string(pair.frontend_incarnation),
                      std::to_string(hello.frontend_incarnation()));
    }
    if (pair.frontend_incarnation < hello.frontend_incarnation()) {
      old.push_back({pair.session.lock(), pair.lifeline.lock()});
    }
  }
  std::erase_if(pairs_, [&](const auto& entry) {
    return entry.second.terms.frontend == hello.frontend_id() &&
           entry.second.frontend_incarnation < hello.frontend_incarnation();
  });
  return old;
}

absl::Status GrpcExpertServer::ShakeHands(const grpc::CallbackServerContext& context,
                                          const v1::HelloRequest& hello,
                                          v1::HelloResponse& answer) {
  CONCLAVE_RETURN_IF_ERROR(CheckPeer(context));
  std::vector<Live> old;
  {
    MutexLock lock(mu_);
    if (!registration_.has_value()) {
      return Error(absl::StatusCode::kUnavailable, "not_registered",
                   "worker: expected the router to have taken it in, found that it has not yet");
    }
    if (is_draining_) {
      return Error(absl::StatusCode::kUnavailable, "draining", "worker: takes no new frontends");
    }
    CONCLAVE_RETURN_IF_ERROR(CheckHello(hello));
    const uint64_t key = PairKey(registration_->key, hello.frontend_id());
    const uint64_t claimed = hello.pair_key();
    if (CRYPTO_memcmp(&key, &claimed, sizeof(key)) != 0) {
      return Mismatch("pair_key", "the router's for this pair", "another");
    }
    CONCLAVE_ASSIGN_OR_RETURN(old, CheckIncarnation(hello));
    ForgetOld();
    if (pairs_.size() >= options_.num_sessions_max) {
      return Error(absl::StatusCode::kResourceExhausted, "too_many_sessions",
                   "worker: expected fewer than " + std::to_string(options_.num_sessions_max) +
                       " sessions, found all of them taken");
    }
    Pair pair;
    pair.terms.frontend = hello.frontend_id();
    pair.terms.limits = options_.limits;
    pair.terms.limits.max_rows =
        static_cast<uint16_t>(std::min<uint32_t>(hello.max_rows(), options_.limits.max_rows));
    pair.terms.limits.max_pairs =
        static_cast<uint16_t>(pair.terms.limits.max_rows * pair.terms.limits.top_k);
    pair.terms.num_slots =
        static_cast<uint16_t>(std::min<uint32_t>(hello.num_slots(), options_.num_slots));
    pair.terms.send_bytes_max = options_.send_bytes_max;
    pair.frontend_incarnation = hello.frontend_incarnation();
    pair.made_at = options_.clock->Now();
    if (hello.channel() != "grpc") {
      if (hello.ucx_address().empty() || hello.ucx_address().size() > kSideAddressBytesMax) {
        return InvalidArgument("bad_items", "handshake: ucx_address: expected 1 to " +
                                                std::to_string(kSideAddressBytesMax) +
                                                " bytes, found " +
                                                std::to_string(hello.ucx_address().size()));
      }
      pair.side_address = hello.ucx_address();
      answer.set_ucx_address(options_.side->address());
    }
    answer.set_session(RandomId());
    answer.set_worker_incarnation(options_.incarnation);
    answer.set_worker_id(registration_->worker.value());
    answer.set_num_slots(pair.terms.num_slots);
    answer.set_max_rows(pair.terms.limits.max_rows);
    answer.set_max_pairs(pair.terms.limits.max_pairs);
    answer.set_credits(uint32_t{pair.terms.num_slots} * pair.terms.limits.max_rows);
    answer.set_epoch(counters_->epoch.load());
    pairs_[answer.session()] = std::move(pair);
  }
  for (const Live& live : old) {
    live.Close(grpc::Status::CANCELLED, true);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::shared_ptr<LifelineStream>> GrpcExpertServer::OpenSide(uint64_t id,
                                                                           const Pair& pair) {
  auto lifeline = std::make_shared<LifelineStream>(counters_);
  const std::weak_ptr<LifelineStream> weak = lifeline;
  CONCLAVE_ASSIGN_OR_RETURN(
      const std::shared_ptr<SideSession> session,
      options_.side->Open(id, pair.terms, pair.side_address, [weak](const absl::Status& why) {
        if (const std::shared_ptr<LifelineStream> stream = weak.lock(); stream != nullptr) {
          stream->End(ToGrpc(why));
        }
      }));
  lifeline->Start(session);
  return lifeline;
}

absl::StatusOr<GrpcExpertServer::Live> GrpcExpertServer::OpenStream(
    grpc::CallbackServerContext* context) {
  CONCLAVE_RETURN_IF_ERROR(CheckPeer(*context));
  const auto& metadata = context->client_metadata();
  const auto [first, last] = metadata.equal_range(kSessionMetadata);
  uint64_t id = 0;  // of no session
  if (first != last && std::next(first) == last) {
    id = ParseSessionText({first->second.data(), first->second.size()}).value_or(0);
  }
  MutexLock lock(mu_);
  ForgetOld();
  const auto it = pairs_.find(id);
  if (it == pairs_.end() || it->second.has_stream) {
    return Error(absl::StatusCode::kUnauthenticated, "unknown_session",
                 "stream: expected the session of a handshake, once and in time, found none");
  }
  Pair& pair = it->second;
  Live live;
  if (!pair.side_address.empty()) {
    CONCLAVE_ASSIGN_OR_RETURN(live.lifeline, OpenSide(id, pair));
  } else {
    live.session =
        std::make_shared<Session>(pair.terms, sink_, counters_, *options_.clock, context);
  }
  pair.has_stream = true;
  pair.session = live.session;
  pair.lifeline = live.lifeline;
  return live;
}

std::vector<GrpcExpertServer::Live> GrpcExpertServer::LiveSessions() {
  MutexLock lock(mu_);
  std::vector<Live> live;
  for (auto& [id, pair] : pairs_) {
    live.push_back({pair.session.lock(), pair.lifeline.lock()});
  }
  return live;
}

}  // namespace

absl::StatusOr<std::unique_ptr<ExpertServer>> ExpertServer::Start(
    const ExpertServerOptions& options, CallSink& sink) {
  auto server = std::make_unique<GrpcExpertServer>(options, sink);
  CONCLAVE_RETURN_IF_ERROR(server->Listen());
  return server;
}

}  // namespace conclave::transport
