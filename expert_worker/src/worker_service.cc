#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <fstream>
#include <thread>
#include <utility>

#include "cluster.grpc.pb.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/expert_worker/worker_server.h"
#include "conclave/observability/log.h"
#include "conclave/transport/channel_choice.h"
#include "conclave/transport/grpc_server.h"
#include "conclave/transport/grpc_support.h"
#include "conclave/transport/ucx_channel.h"
#include "router_link.h"
#include "worker_messages.h"
#include "worker_runtime.h"

namespace conclave::expert_worker {
namespace {

using transport::ExpertServer;

constexpr uint16_t kCallSlots = 4;  // of one frontend (data-plane.md section 7)

// Failure domain: the boot id names a machine, and a new one after its restart.
std::string ReadHostId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id.empty() ? "unknown" : id;
}

// Elements per instruction: a guess at relative speed that holds until loads are seen.
double WidthOf(kernels::Isa isa) {
  switch (isa) {
    case kernels::Isa::kScalar:
      return 1;
    case kernels::Isa::kAvx2:
      return 8;
    case kernels::Isa::kAvx512:
      return 16;
    case kernels::Isa::kAvx512Bf16:
      return 32;
  }
  return 1;
}

// One JoinWorker stream after the other. The thread of a stream opens it, registers and reads; the
// control thread writes once the router has answered, so that the two never write at once.
class GrpcRouterLink final : public RouterLink {
 public:
  GrpcRouterLink(std::vector<std::string> addresses, const transport::TlsIdentity& tls)
      : addresses_(std::move(addresses)), tls_(tls) {}
  ~GrpcRouterLink() override { Close(); }

  // What never changes. Before the first Open.
  void SetIdentity(const v1::RegisterWorker& identity) { identity_ = identity; }

  void Open(const RegistrationFacts& facts, StreamEvents events) override {
    Close();
    v1::WorkerReport report;
    *report.mutable_register_() = identity_;
    AddFacts(facts, report.mutable_register_());
    stream_ = std::make_unique<Stream>();
    stream_->events = std::move(events);
    stream_->thread = std::thread([this, stream = stream_.get(), report = std::move(report)] {
      ::pthread_setname_np(::pthread_self(), "router");
      Run(*stream, report);
    });
  }

  void Close() override {
    if (stream_ == nullptr) {
      return;
    }
    stream_->GiveUp();
    stream_->thread.join();
    stream_.reset();
  }

  void Send(const RouterReport& report) override {
    if (stream_ != nullptr) {
      stream_->Write(ToReport(report));
    }
  }

 private:
  struct Stream {
    StreamEvents events;
    std::atomic<bool> is_given_up{false};
    bool has_command = false;  // of the stream's thread
    Mutex context_mu;
    grpc::ClientContext* context ABSL_GUARDED_BY(context_mu) = nullptr;
    Mutex mu;  // of writes, and of the end of the stream
    std::unique_ptr<grpc::ClientReaderWriter<v1::WorkerReport, v1::WorkerCommand>> stream
        ABSL_GUARDED_BY(mu);
    std::thread thread;

    void GiveUp() {
      MutexLock lock(context_mu);
      is_given_up.store(true);
      if (context != nullptr) {
        context->TryCancel();
      }
    }

    // False: the stream has been given up.
    bool SetContext(grpc::ClientContext* now) {
      MutexLock lock(context_mu);
      context = now;
      return !is_given_up.load();
    }

    // One address, from the opening of the stream to its end; why it ended.
    absl::Status Run(v1::ClusterService::Stub& stub, const v1::WorkerReport& registration) {
      grpc::ClientContext call;
      if (!SetContext(&call)) {
        return absl::CancelledError();
      }
      grpc::ClientReaderWriter<v1::WorkerReport, v1::WorkerCommand>* reader = nullptr;
      {
        MutexLock lock(mu);
        stream = stub.JoinWorker(&call);
        reader = stream.get();
        reader->Write(registration);
      }
      absl::Status why;
      v1::WorkerCommand message;
      while (why.ok() && reader->Read(&message)) {
        has_command = true;
        const absl::StatusOr<RouterCommand> command = FromCommand(message);
        if (!command.ok()) {
          why = command.status();
        } else if (!events.on_command(*command)) {
          why = Error(absl::StatusCode::kResourceExhausted, "router_flood",
                      "router: sends commands faster than they can be taken");
        }
      }
      if (!why.ok()) {
        call.TryCancel();
      }
      (void)SetContext(nullptr);
      grpc::Status status;
      {
        MutexLock lock(mu);
        status = reader->Finish();
        stream.reset();
      }
      if (why.ok()) {
        why = status.ok() ? Error(absl::StatusCode::kUnavailable, "link_lost",
                                  "router: it ended the stream")
                          : transport::FromGrpc(status);
      }
      return why;
    }

    void Write(const v1::WorkerReport& report) {
      MutexLock lock(mu);
      if (stream != nullptr) {
        stream->Write(report);  // false: the reader learns of it too
      }
    }
  };

  // Every address once, behind the one of the last stream, until a router answers or one refuses
  // this worker for another reason than being away or standing by.
  void Run(Stream& stream, const v1::WorkerReport& registration) {
    absl::Status why;
    const size_t first = preferred_;
    for (size_t i = 0; i < addresses_.size() && !stream.is_given_up.load(); ++i) {
      preferred_ = (first + i) % addresses_.size();
      // A channel per stream: a connection that has gone bad is not met again.
      const auto stub = v1::ClusterService::NewStub(
          grpc::CreateCustomChannel(addresses_[preferred_], transport::ChannelCredentialsOf(tls_),
                                    transport::ClientArguments(transport::kControlMessageBytes)));
      why = stream.Run(*stub, registration);
      if (stream.has_command || !absl::IsUnavailable(why)) {
        break;
      }
    }
    // The next stream begins with another one: this one may hang without refusing anything.
    preferred_ = (preferred_ + 1) % addresses_.size();
    if (!stream.is_given_up.load()) {
      stream.events.on_lost(why);
    }
  }

  const std::vector<std::string> addresses_;
  const transport::TlsIdentity tls_;
  v1::RegisterWorker identity_;
  size_t preferred_ = 0;  // of the stream's thread; there is one at a time
  std::unique_ptr<Stream> stream_;
};

class ServerDataPlane final : public DataPlane {
 public:
  void SetServer(ExpertServer* server) { server_ = server; }
  int32_t worker_id() const { return worker_id_.load(); }

  void SetRegistration(WorkerId worker, uint64_t worker_key, Epoch epoch) override {
    worker_id_.store(worker.value());
    server_->SetRegistration(worker, worker_key, epoch);
  }
  void SetEpoch(Epoch epoch) override { server_->SetEpoch(epoch); }
  void SetDraining(bool is_draining) override { server_->SetDraining(is_draining); }

 private:
  ExpertServer* server_ = nullptr;  // outlived by the runtime, which ends first
  std::atomic<int32_t> worker_id_{-1};
};

WorkerCoreOptions CoreOptions(const checkpoint::ModelDesc& desc,
                              const WorkerServerOptions& options) {
  WorkerCoreOptions core;
  core.dtype = options.dtype;
  core.compute = options.compute;
  core.max_rows = options.max_rows;
  core.max_pairs = static_cast<uint16_t>(
      std::min<int64_t>(UINT16_MAX, int64_t{options.max_rows} * std::max(desc.moe.top_k, 1)));
  core.max_merged_calls = static_cast<uint16_t>(options.queue.batch_calls_max);
  core.max_merged_rows =
      static_cast<uint16_t>(std::max<uint32_t>(options.queue.batch_rows_max, options.max_rows));
  core.memory_bytes = options.memory_bytes;
  return core;
}

uint64_t NowNanoseconds() {
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(
                                   std::chrono::system_clock::now().time_since_epoch())
                                   .count());
}

}  // namespace

struct WorkerServer::State {
  State(const checkpoint::Checkpoint& opened, const WorkerServerOptions& server_options,
        transport::TlsIdentity identity)
      : checkpoint(opened),
        options(server_options),
        tls(std::move(identity)),
        manifest_hash(checkpoint::ManifestHash(opened)),
        core(WorkerCore::Create(opened.desc(), CoreOptions(opened.desc(), server_options))),
        queue(server_options.queue, Clock::Real()),
        router(server_options.routers, tls) {}

  absl::Status Listen();
  // Sets `channels`, and in `listen` what they need.
  absl::Status OpenChannels(transport::ExpertServerOptions& listen);
  v1::RegisterWorker Identity() const;

  const checkpoint::Checkpoint& checkpoint;
  const WorkerServerOptions options;
  const transport::TlsIdentity tls;
  const std::string manifest_hash;
  const uint64_t incarnation = NowNanoseconds();
  const std::unique_ptr<WorkerCore> core;
  CallQueue queue;
  GrpcRouterLink router;
  ServerDataPlane data;
  std::vector<std::string> channels;  // that are offered, best first
  std::unique_ptr<ExpertServer> server;
  // Last: its threads use all of the above; it finishes every call before the server ends.
  std::unique_ptr<WorkerRuntime> runtime;
};

absl::Status WorkerServer::State::OpenChannels(transport::ExpertServerOptions& listen) {
  const transport::ChannelWish wish = transport::ChannelWishOf(options.channel);
  absl::Status ucx;
  if (wish != transport::ChannelWish::kGrpc) {
    absl::StatusOr<std::shared_ptr<transport::SideServer>> side =
        transport::MakeUcxServer({options.listen_host, options.is_trusted_network});
    ucx = side.status();
    if (side.ok()) {
      listen.side = *std::move(side);
    }
  }
  CONCLAVE_ASSIGN_OR_RETURN(transport::ChannelOffer offer, transport::OfferChannels(wish, ucx));
  listen.is_side_only = wish == transport::ChannelWish::kUcx;
  channels = std::move(offer.channels);
  observability::LogInfo("channels offered", {{"best", channels.front()}, {"why", offer.why}});
  return absl::OkStatus();
}

absl::Status WorkerServer::State::Listen() {
  transport::ExpertServerOptions listen;
  listen.host = options.listen_host;
  listen.port = options.listen_port;
  listen.tls = tls;
  listen.cluster_id = options.cluster_id;
  listen.manifest_hash = manifest_hash;
  listen.isa = std::string(kernels::NameOf(options.isa));
  listen.kernel_revision = kernels::kKernelRevision;
  listen.incarnation = incarnation;
  listen.limits = core->limits();
  listen.mode = options.dtype;
  listen.num_slots = kCallSlots;
  CONCLAVE_RETURN_IF_ERROR(OpenChannels(listen));
  CONCLAVE_ASSIGN_OR_RETURN(server, ExpertServer::Start(listen, queue));
  data.SetServer(server.get());
  return absl::OkStatus();
}

v1::RegisterWorker WorkerServer::State::Identity() const {
  const checkpoint::ModelDesc& desc = checkpoint.desc();
  v1::RegisterWorker identity;
  identity.set_protocol_major(1);
  identity.set_protocol_minor(0);
  identity.set_cluster_id(options.cluster_id);
  identity.set_name(options.name);
  identity.set_incarnation(incarnation);
  identity.set_data_address(options.advertise.empty()
                                ? options.listen_host + ":" + std::to_string(server->port())
                                : options.advertise);
  identity.set_host_id(ReadHostId());
  for (const std::string& channel : channels) {
    identity.add_channels(channel);
  }
  identity.mutable_model()->set_manifest_hash(manifest_hash);
  identity.mutable_model()->set_row_width(desc.moe.io_dim);
  identity.mutable_model()->set_top_k(desc.moe.top_k);
  identity.mutable_numeric()->set_dtype(std::string(NameOf(options.dtype)));
  identity.mutable_numeric()->set_isa(std::string(kernels::NameOf(options.isa)));
  identity.mutable_numeric()->set_kernel_revision(kernels::kKernelRevision);
  identity.set_memory_bytes(options.memory_bytes);
  identity.set_speed(options.compute.pool->num_threads() * WidthOf(options.isa));
  identity.set_expert_bytes(static_cast<int64_t>(core->expert_bytes()));
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    v1::MoeLayer* out = identity.add_moe_layers();
    out->set_layer(layer.layer);
    out->set_num_experts(layer.num_experts);
  }
  return identity;
}

WorkerServer::WorkerServer(std::unique_ptr<State> state) : state_(std::move(state)) {}
WorkerServer::~WorkerServer() = default;

absl::StatusOr<std::unique_ptr<WorkerServer>> WorkerServer::Start(
    const checkpoint::Checkpoint& checkpoint, const WorkerServerOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(
      transport::TlsIdentity tls,
      transport::ReadTlsFiles(options.tls_certificate, options.tls_key, options.tls_authority));
  auto state = std::make_unique<State>(checkpoint, options, std::move(tls));
  CONCLAVE_RETURN_IF_ERROR(state->Listen());
  state->router.SetIdentity(state->Identity());
  RuntimeOptions runtime;
  runtime.control.drain_timeout = options.drain_timeout;
  // Differs between workers and starts; nothing but the jitter of reconnects comes of it.
  runtime.control.seed = state->incarnation ^ static_cast<uint64_t>(::getpid());
  runtime.canary_interval = options.canary_interval;
  state->runtime = std::make_unique<WorkerRuntime>(checkpoint, *state->core, state->queue,
                                                   state->router, state->data, runtime);
  state->runtime->Start();
  return std::unique_ptr<WorkerServer>(new WorkerServer(std::move(state)));
}

uint16_t WorkerServer::port() const { return state_->server->port(); }
bool WorkerServer::WaitReady() { return state_->runtime->WaitReady(); }
void WorkerServer::Drain() { state_->runtime->Drain(); }
absl::Status WorkerServer::WaitStopped() { return state_->runtime->WaitStopped(); }
void WorkerServer::PostToControl(std::function<void()> task) {
  state_->runtime->PostToControl(std::move(task));
}
service::Pulse WorkerServer::compute_pulse() const {
  const CallQueue::Figures figures = state_->queue.figures();
  const CallQueueCounts& counts = figures.counts;
  return {counts.batches + counts.late + counts.cancelled, figures.is_idle};
}
std::vector<ExpertLoad> WorkerServer::Loads() const { return state_->core->Loads(); }
int32_t WorkerServer::worker_id() const { return state_->data.worker_id(); }

WorkerFigures WorkerServer::figures() const {
  const WorkerRuntime::Status status = state_->runtime->status();
  const ComputeFigures compute = state_->runtime->compute_figures();
  const transport::ExpertServerCounters link = state_->server->counters();
  WorkerFigures figures;
  figures.state = status.state;
  figures.is_ready = status.is_ready;
  figures.epoch = status.epoch.value();
  figures.num_experts = state_->core->Held().size();
  figures.num_loading = status.num_loading;
  figures.memory_bytes = state_->options.memory_bytes;
  figures.memory_used_bytes = static_cast<int64_t>(state_->core->weight_bytes());
  figures.canary_failures = status.canary_failures;
  figures.calls = compute.calls;
  figures.calls_refused = compute.calls_refused;
  figures.rows = compute.rows;
  figures.busy_seconds = compute.busy_seconds;
  figures.us_per_row = compute.us_per_row;
  figures.queue = state_->queue.figures();
  figures.link_bytes_sent = link.bytes_sent;
  figures.link_bytes_received = link.bytes_received;
  figures.link_malformed = link.malformed;
  figures.link_duplicates = link.duplicates;
  figures.link_sessions = link.sessions;
  return figures;
}

}  // namespace conclave::expert_worker
