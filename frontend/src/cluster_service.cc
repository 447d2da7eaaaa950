#include <algorithm>
#include <atomic>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "cluster.grpc.pb.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/frontend/router_client.h"
#include "conclave/observability/log.h"
#include "conclave/transport/grpc_support.h"
#include "report_wire.h"

namespace conclave::frontend {
namespace {

using std::chrono::milliseconds;

constexpr uint32_t kProtocolMajor = 1;
constexpr uint32_t kProtocolMinor = 0;
constexpr milliseconds kBackoffMin{100};
constexpr milliseconds kBackoffMax{2'000};
constexpr size_t kOutgoingMax = 256;
// Ids are small numbers that the router counts up; a table is indexed by them.
constexpr int32_t kWorkerIdMax = 1 << 16;

v1::PeerReport::Kind KindOf(PeerSighting sighting) {
  switch (sighting) {
    case PeerSighting::kLinkLost:
      return v1::PeerReport::KIND_LINK_LOST;
    case PeerSighting::kTimeout:
      return v1::PeerReport::KIND_TIMEOUT;
    case PeerSighting::kSlow:
      return v1::PeerReport::KIND_SLOW;
    case PeerSighting::kBadReply:
      return v1::PeerReport::KIND_BAD_REPLY;
    case PeerSighting::kRecovered:
      return v1::PeerReport::KIND_RECOVERED;
  }
  return v1::PeerReport::KIND_UNSPECIFIED;
}

absl::StatusOr<ClusterMember> ToMember(const v1::Member& member) {
  if (member.worker_id() < 0 || member.worker_id() > kWorkerIdMax) {
    return InvalidArgument("placement_worker", "placement update: expected a worker id of 0 to " +
                                                   std::to_string(kWorkerIdMax) + ", found " +
                                                   std::to_string(member.worker_id()));
  }
  ClusterMember out;
  out.id = WorkerId(member.worker_id());
  out.name = member.name();
  out.incarnation = member.incarnation();
  out.data_address = member.data_address();
  out.channels.assign(member.channels().begin(), member.channels().end());
  out.is_suspect = member.state() == v1::Member::STATE_SUSPECT;
  out.is_draining = member.state() == v1::Member::STATE_DRAINING;
  out.pair_key = member.pair_key();
  return out;
}

}  // namespace

// The router's word as it stands, updated by snapshots and deltas. Fences: the highest term is
// obeyed, and within it the first router.
class ClusterPicture {
 public:
  explicit ClusterPicture(std::vector<placement::ExpertUnit> units) : units_(std::move(units)) {
    std::sort(units_.begin(), units_.end());
  }

  enum class Outcome : uint8_t { kTaken, kResync, kIgnored };

  absl::StatusOr<Outcome> Apply(const v1::PlacementUpdate& update) {
    const v1::RouterIdentity& router = update.router();
    if (router.term() < term_ ||
        (router.term() == term_ && !router_id_.empty() && router.router_id() != router_id_)) {
      return Outcome::kIgnored;
    }
    if (update.epoch() < epoch_) {
      return Outcome::kIgnored;
    }
    if (update.base_epoch() != 0 && update.base_epoch() != epoch_) {
      return Outcome::kResync;
    }
    ClusterPicture next = *this;
    if (update.base_epoch() == 0) {
      next.members_.clear();
      next.holders_.clear();
    }
    for (const v1::Member& member : update.workers()) {
      CONCLAVE_ASSIGN_OR_RETURN(ClusterMember parsed, ToMember(member));
      next.members_.insert_or_assign(parsed.id, std::move(parsed));
    }
    for (const int32_t id : update.removed_workers()) {
      next.members_.erase(WorkerId(id));
    }
    for (const v1::ExpertReplicas& expert : update.experts()) {
      const placement::ExpertUnit unit{LayerId(expert.expert().layer()),
                                       ExpertId(expert.expert().expert())};
      if (!std::binary_search(units_.begin(), units_.end(), unit)) {
        return InvalidArgument("placement_unknown_unit",
                               "placement update: expected experts of the model, found layer " +
                                   std::to_string(unit.layer.value()) + " expert " +
                                   std::to_string(unit.expert.value()));
      }
      std::vector<WorkerId> workers;
      for (const int32_t id : expert.workers()) {
        workers.emplace_back(id);
      }
      next.holders_.insert_or_assign(unit, std::move(workers));
    }
    next.term_ = router.term();
    next.router_id_ = router.router_id();
    next.epoch_ = update.epoch();
    if (update.has_registered()) {
      next.frontend_id_ = update.registered().frontend_id();
    }
    std::vector<placement::Replica> replicas;
    for (const auto& [unit, workers] : next.holders_) {
      for (const WorkerId worker : workers) {
        replicas.push_back({unit, worker});
      }
    }
    CONCLAVE_ASSIGN_OR_RETURN(
        placement::Placement placement,
        placement::Placement::CreatePartial(Epoch(next.epoch_), units_, replicas));
    next.placement_ = std::make_shared<const placement::Placement>(std::move(placement));
    *this = std::move(next);
    return Outcome::kTaken;
  }

  ClusterView View() const {
    ClusterView view;
    view.frontend_id = frontend_id_;
    view.placement = placement_;
    for (const auto& [id, member] : members_) {
      view.members.push_back(member);
    }
    return view;
  }

  uint32_t term() const { return term_; }
  const std::string& router_id() const { return router_id_; }
  uint64_t epoch() const { return epoch_; }

 private:
  std::vector<placement::ExpertUnit> units_;
  uint32_t term_ = 0;
  std::string router_id_;
  uint64_t epoch_ = 0;
  uint32_t frontend_id_ = 0;
  std::map<WorkerId, ClusterMember> members_;
  std::map<placement::ExpertUnit, std::vector<WorkerId>> holders_;
  std::shared_ptr<const placement::Placement> placement_;
};

struct RouterClient::State {
  State(RouterClientOptions client_options, const transport::TlsIdentity& tls_identity)
      : options(std::move(client_options)), tls(tls_identity), picture(options.units) {}

  using Stream = grpc::ClientReaderWriter<v1::WatchRequest, v1::PlacementUpdate>;

  void Loop();
  absl::Status Watch(const std::string& router);
  void Write(Stream& stream);
  v1::WatchRequest Registration() const;
  void Enqueue(v1::WatchRequest request);

  const RouterClientOptions options;
  const transport::TlsIdentity tls;
  ClusterPicture picture;             // of the loop's thread
  std::atomic<bool> is_heard{false};  // on the stream that stands
  std::atomic<int64_t> heard_ns{0};   // until the end of the last one

  mutable Mutex mu;
  CondVar changed;
  bool is_stopping ABSL_GUARDED_BY(mu) = false;
  bool is_connected ABSL_GUARDED_BY(mu) = false;
  absl::Status last ABSL_GUARDED_BY(mu) = Error(absl::StatusCode::kUnavailable,
                                                "router_unreachable", "not connected yet");
  std::deque<v1::WatchRequest> outgoing ABSL_GUARDED_BY(mu);
  std::optional<live::FrontendFigures> figures ABSL_GUARDED_BY(mu);  // to be reported
  Epoch acknowledged ABSL_GUARDED_BY(mu);
  grpc::ClientContext* context ABSL_GUARDED_BY(mu) = nullptr;
  std::thread thread;
};

v1::WatchRequest RouterClient::State::Registration() const {
  v1::WatchRequest request;
  v1::RegisterFrontend& hello = *request.mutable_register_();
  hello.set_protocol_major(kProtocolMajor);
  hello.set_protocol_minor(kProtocolMinor);
  hello.set_cluster_id(options.cluster_id);
  hello.set_name(options.name);
  hello.set_incarnation(options.incarnation);
  hello.set_api_address(options.api_address);
  hello.mutable_model()->set_manifest_hash(options.manifest_hash);
  hello.mutable_model()->set_row_width(options.row_width);
  hello.mutable_model()->set_top_k(options.top_k);
  hello.mutable_numeric()->set_dtype(options.dtype);
  hello.mutable_numeric()->set_isa(options.isa);
  hello.mutable_numeric()->set_kernel_revision(options.kernel_revision);
  hello.mutable_last_router()->set_term(picture.term());
  hello.mutable_last_router()->set_router_id(picture.router_id());
  hello.set_last_epoch(picture.epoch());
  return request;
}

void RouterClient::State::Enqueue(v1::WatchRequest request) {
  MutexLock lock(mu);
  if (is_connected && outgoing.size() < kOutgoingMax) {
    outgoing.push_back(std::move(request));
    changed.NotifyAll();
  }
}

// The writing half of a stream, on a thread of its own: a blocked write must not keep updates away.
void RouterClient::State::Write(Stream& stream) {
  std::optional<live::FrontendFigures> reported;  // on this stream
  while (true) {
    v1::WatchRequest request;
    std::optional<live::FrontendFigures> fresh;
    {
      MutexLock lock(mu);
      while (is_connected && outgoing.empty() && !figures) {
        changed.Wait(mu);
      }
      if (!is_connected) {
        return;
      }
      if (!outgoing.empty()) {
        request = std::move(outgoing.front());
        outgoing.pop_front();
      } else {
        fresh = std::exchange(figures, std::nullopt);
      }
    }
    if (fresh) {
      ToWire(reported ? &*reported : nullptr, *fresh, *request.mutable_report());
      reported = std::move(fresh);
    }
    if (!stream.Write(request)) {
      return;
    }
  }
}

// One stream, from its opening to its end.
absl::Status RouterClient::State::Watch(const std::string& router) {
  const auto channel =
      grpc::CreateCustomChannel(router, transport::ChannelCredentialsOf(tls),
                                transport::ClientArguments(transport::kControlMessageBytes));
  const std::unique_ptr<v1::ClusterService::Stub> stub = v1::ClusterService::NewStub(channel);
  grpc::ClientContext client_context;
  {
    MutexLock lock(mu);
    if (is_stopping) {
      return absl::CancelledError();
    }
    context = &client_context;
  }
  const std::unique_ptr<Stream> stream = stub->WatchPlacement(&client_context);
  absl::Status refused;
  std::thread writer;
  if (stream->Write(Registration())) {
    {
      MutexLock lock(mu);
      is_connected = true;
      outgoing.clear();
    }
    writer = std::thread([&] { Write(*stream); });
    v1::PlacementUpdate update;
    while (stream->Read(&update)) {
      is_heard.store(true);
      const absl::StatusOr<ClusterPicture::Outcome> outcome = picture.Apply(update);
      if (!outcome.ok()) {
        refused = outcome.status();
        client_context.TryCancel();
        break;
      }
      if (*outcome == ClusterPicture::Outcome::kResync) {
        v1::WatchRequest request;
        request.mutable_resync();
        Enqueue(std::move(request));
      } else if (*outcome == ClusterPicture::Outcome::kTaken) {
        {
          MutexLock lock(mu);
          last = absl::OkStatus();
        }
        options.on_view(picture.View());
        // A router that has started anew does not know what this frontend routes by.
        if (update.has_registered()) {
          Epoch epoch;
          {
            MutexLock lock(mu);
            epoch = acknowledged;
          }
          v1::WatchRequest request;
          request.mutable_ack()->set_epoch(epoch.value());
          Enqueue(std::move(request));
        }
      }
    }
  }
  if (is_heard.load()) {
    heard_ns.store(Clock::Real().Now().time_since_epoch().count());
    is_heard.store(false);
  }
  {
    MutexLock lock(mu);
    is_connected = false;
    changed.NotifyAll();
  }
  if (writer.joinable()) {
    writer.join();
  }
  const absl::Status status = transport::FromGrpc(stream->Finish());
  MutexLock lock(mu);
  context = nullptr;
  return refused.ok() ? status : refused;
}

void RouterClient::State::Loop() {
  milliseconds backoff = kBackoffMin;
  std::string logged;
  size_t which = 0;
  size_t num_tried = 0;  // since the last pause
  while (true) {
    const MonotonicTime start = Clock::Real().Now();
    const std::string& router = options.routers[which];
    absl::Status status = Watch(router);
    if (status.ok()) {
      status = Error(absl::StatusCode::kUnavailable, "router_unreachable",
                     "the router ended the stream");
    }
    MutexLock lock(mu);
    if (is_stopping) {
      return;
    }
    if (Clock::Real().Now() - start > kBackoffMax) {
      backoff = kBackoffMin;
    }
    last = status;
    if (const std::string line = router + MessageOf(status); line != logged) {
      logged = line;
      observability::LogWarning("no stream to the router, trying on",
                                {{"router", router}, {"why", MessageOf(status)}});
    }
    which = (which + 1) % options.routers.size();
    // A pause is for when none of them leads.
    if (++num_tried % options.routers.size() != 0) {
      continue;
    }
    const MonotonicTime until = Clock::Real().Now() + backoff;
    while (!is_stopping && Clock::Real().Now() < until) {
      changed.WaitFor(mu, until - Clock::Real().Now());
    }
    if (is_stopping) {
      return;
    }
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

RouterClient::RouterClient(RouterClientOptions options, const transport::TlsIdentity& tls)
    : state_(std::make_unique<State>(std::move(options), tls)) {}

void RouterClient::Start() {
  state_->thread = std::thread([s = state_.get()] { s->Loop(); });
}

RouterClient::~RouterClient() {
  {
    MutexLock lock(state_->mu);
    state_->is_stopping = true;
    if (state_->context != nullptr) {
      state_->context->TryCancel();
    }
    state_->changed.NotifyAll();
  }
  if (state_->thread.joinable()) {
    state_->thread.join();
  }
}

void RouterClient::Acknowledge(Epoch epoch) {
  {
    MutexLock lock(state_->mu);
    state_->acknowledged = epoch;
  }
  v1::WatchRequest request;
  request.mutable_ack()->set_epoch(epoch.value());
  state_->Enqueue(std::move(request));
}

void RouterClient::Report(live::FrontendFigures figures) {
  MutexLock lock(state_->mu);
  state_->figures = std::move(figures);
  state_->changed.NotifyAll();
}

void RouterClient::Report(WorkerId worker, uint64_t incarnation, PeerSighting sighting) {
  v1::WatchRequest request;
  request.mutable_peer_report()->set_worker_id(worker.value());
  request.mutable_peer_report()->set_worker_incarnation(incarnation);
  request.mutable_peer_report()->set_kind(KindOf(sighting));
  state_->Enqueue(std::move(request));
}

absl::Status RouterClient::status() const {
  MutexLock lock(state_->mu);
  return state_->last;
}

int64_t RouterClient::silence_ms() const {
  if (state_->is_heard.load()) {
    return 0;
  }
  const int64_t heard = state_->heard_ns.load();
  if (heard == 0) {
    return -1;
  }
  return (Clock::Real().Now().time_since_epoch().count() - heard) / 1'000'000;
}

}  // namespace conclave::frontend
