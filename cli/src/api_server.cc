#include "api_server.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/frontend/http_server.h"
#include "conclave/frontend/inference_server.h"
#include "conclave/observability/engine_metrics.h"
#include "conclave/observability/log.h"
#include "conclave/service/admin_server.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/process.h"
#include "conclave/service/progress.h"
#include "conclave/service/ready.h"
#include "conclave/service/signals.h"
#include "conclave/service/watchdog.h"
#include "live_routes.h"
#include "output.h"

namespace conclave::cli {
namespace {

using observability::LogInfo;
using observability::LogWarning;
using service::ExitCode;
using std::chrono::milliseconds;

class Server {
 public:
  Server(const Invocation& invocation, ApiServerRole role, ApiServerSettings settings,
         const transport::TlsIdentity& tls, std::function<void()> reload)
      : invocation_(invocation),
        role_(std::move(role)),
        settings_(std::move(settings)),
        tls_(tls),
        reload_(std::move(reload)),
        cluster_side_(role_.cluster),
        key_(settings_.admin_key_file),
        http_metrics_(metrics_),
        grpc_metrics_(metrics_),
        progress_({.label = "loading the model",
                   .is_terminal = service::IsProgressTerminal(Variable(invocation, "TERM"))}) {}

  ~Server() {
    if (cluster_side_ != nullptr) {
      cluster_side_->Report(nullptr);
    }
  }

  int Run() {
    absl::StatusOr<std::unique_ptr<service::SignalWatcher>> signals =
        service::SignalWatcher::Start({.on_stop = [this](int signal) { phase_.Stop(signal); },
                                       .on_stop_again = nullptr,
                                       .on_reload = reload_});
    if (!signals.ok()) {
      return service::Fail(signals.status(), ExitCode::kInternal);
    }
    if (const absl::Status status = Listen(); !status.ok()) {
      return service::Fail(status, ExitCode::kNetwork);
    }
    if (const absl::Status status = Load(); !status.ok()) {
      return service::Fail(status, ExitCode::kModel);
    }
    phase_.StartServing();
    if (const absl::Status status = AnnounceServing(); !status.ok()) {
      return service::Fail(status, ExitCode::kInternal);
    }
    watchdog_ =
        StartWatchdog(invocation_, {{"engine", [this] { return cluster_->engine_pulse(); }},
                                    {"http", service::Knock([this](std::function<void()> answer) {
                                       api_->Post(std::move(answer));
                                       return true;
                                     })}});
    phase_.WaitForStop();
    Drain();
    return static_cast<int>(ExitCode::kDone);
  }

 private:
  absl::Status Listen() {
    metrics_.AddProcessMetrics();
    if (settings_.metrics_compat == "vllm") {
      observability::AddVllmNames(metrics_);
    }
    metrics_
        .AddGauge("conclave_build_info", "1; the labels say what runs.",
                  {{"version", Version()}, {"dtype", settings_.engine.dtype}})
        .Set(1);
    tracing_ = std::make_unique<Tracing>(settings_.trace, role_.name, metrics_);
    frontend::HttpServerOptions api;
    api.host = settings_.listen.host;
    api.port = settings_.listen.port;
    api.limits.body_bytes_max = settings_.max_body.bytes;
    api.load_progress = [this] { return progress_.fraction(); };
    api.version = Version();
    api.tracer = tracing_->tracer();
    if (service::IsLoopback(settings_.listen.host)) {
      api.metrics_text = [this] { return metrics_.Text(); };
    }
    CheckOpenFiles(api.limits.connections_max);
    frontend::HttpObserver observer;
    observer.on_request = [this](const std::string& route, int status, double seconds) {
      http_metrics_.Observe(route, status, seconds);
    };
    observer.on_unknown_field = [](const std::string& name) {
      LogInfo("request field ignored", {{"field", observability::FromUser(name)}});
    };
    observer.on_mislabelled_images = [this](int32_t num_images) {
      http_metrics_.image_mime_mismatch.Add(num_images);
    };
    CONCLAVE_ASSIGN_OR_RETURN(api_,
                              frontend::HttpServer::Start(std::move(api), std::move(observer)));
    settings_.listen.port = api_->port();
    CONCLAVE_RETURN_IF_ERROR(ListenGrpc());

    CONCLAVE_ASSIGN_OR_RETURN(
        admin_, service::AdminServer::Start({.host = settings_.admin_listen.host,
                                             .port = settings_.admin_listen.port,
                                             .metrics_text = [this] { return metrics_.Text(); },
                                             .health = [this] { return Health(); },
                                             .routes = Routes()}));
    settings_.admin_listen.port = admin_->port();
    return absl::OkStatus();
  }

  std::vector<service::AdminRoute> Routes() {
    std::vector<service::AdminRoute> routes = PageRoutes();
    if (cluster_side_ != nullptr) {
      // In front of those that hand everything below /moe/ on.
      routes.insert(routes.begin(), StragglersRoute([this] {
                      return is_loaded_.load() ? cluster_->stragglers() : std::string("{}");
                    }));
    }
    return routes;
  }

  // The page: of the router beside this server, or of this process, which has no other.
  std::vector<service::AdminRoute> PageRoutes() {
    const auto body_max = static_cast<size_t>(settings_.max_body.bytes);
    if (role_.router_admin.port != 0) {
      return HandOnLive([this] { return absl::StatusOr<service::Address>(role_.router_admin); },
                        body_max);
    }
    if (cluster_side_ != nullptr) {
      return {};
    }
    live::BoardOptions options;
    options.role = role_.name;
    options.version = Version();
    options.bounds = LiveBounds();
    options.admin_reason = "all experts are in this process: there is nothing to place";
    board_ = std::make_unique<live::Board>(std::move(options));
    feed_ = std::make_unique<live::Feed>(*board_, [this] { TellBoard(); });
    return LiveRoutes({.board = board_.get(),
                       .feed = feed_.get(),
                       .key = &key_,
                       .router = nullptr,
                       .api = [this] { return absl::StatusOr<service::Address>(settings_.listen); },
                       .body_bytes_max = body_max});
  }

  // On the feed's thread.
  void TellBoard() {
    if (!is_loaded_.load()) {
      board_->SetState("loading", "");
      return;
    }
    live::ClusterPicture picture = cluster_->Picture();
    picture.frontends.push_back({0, role_.name, 0, picture.epoch, true});
    board_->Update(picture);
    board_->Report(role_.name, 0, cluster_->Figures());
  }

  absl::Status ListenGrpc() {
    if (settings_.grpc_listen.empty()) {
      return absl::OkStatus();
    }
    frontend::InferenceServerOptions options;
    options.host = settings_.grpc_address.host;
    options.port = settings_.grpc_address.port;
    options.limits.body_bytes_max = settings_.max_body.bytes;
    options.tracer = tracing_->tracer();
    CONCLAVE_ASSIGN_OR_RETURN(
        grpc_, frontend::InferenceServer::Start(
                   options, tls_, [this](const char* method, const char* code, double seconds) {
                     grpc_metrics_.Observe(method, code, seconds);
                   }));
    settings_.grpc_address.port = grpc_->port();
    return absl::OkStatus();
  }

  static void CheckOpenFiles(int connections_max) {
    const int64_t wanted = int64_t{connections_max} + 256;
    if (const int64_t limit = service::RaiseOpenFilesLimit(wanted); limit < wanted) {
      LogWarning("the limit of open files is below what all connections may need",
                 {{"limit", limit}, {"needed", wanted}, {"see", "ulimit -n"}});
    }
  }

  absl::Status Load() {
    CONCLAVE_ASSIGN_OR_RETURN(EmbeddedOptions options, ToEmbedded(settings_.engine, invocation_));
    options.served_model_name = settings_.served_model_name;
    options.metrics = settings_.metrics == "on" ? &metrics_ : nullptr;
    options.api_address = service::ToString(settings_.listen);
    options.image_cpu_time_max = settings_.image_decode_timeout;
    options.image_memory_bytes = settings_.image_memory.bytes;
    if (cluster_side_ != nullptr) {
      CONCLAVE_RETURN_IF_ERROR(cluster_side_->Join(options, metrics_));
    }
    LogInfo("loading", {{"model", options.model_dir},
                        {"workers", options.num_workers},
                        {"threads", options.num_threads},
                        {"dtype", settings_.engine.dtype},
                        {"isa", kernels::NameOf(options.isa)}});
    const MonotonicTime start = Clock::Real().Now();
    CONCLAVE_ASSIGN_OR_RETURN(
        cluster_, EmbeddedCluster::Start(options, [this](double fraction, const std::string& what) {
          progress_.Update(fraction, what);
        }));
    progress_.Finish();
    if (cluster_side_ != nullptr) {
      CONCLAVE_RETURN_IF_ERROR(cluster_side_->WaitForPlacement());
      cluster_side_->Report([this] { return cluster_->Figures(); });
    }
    is_loaded_.store(true);
    LogInfo("loaded",
            {{"model", cluster_->backend().model().id},
             {"seconds", std::chrono::duration<double>(Clock::Real().Now() - start).count()}});
    api_->SetBackend(cluster_->backend());
    if (grpc_ != nullptr) {
      grpc_->SetBackend(cluster_->backend());
    }
    return absl::OkStatus();
  }

  absl::Status AnnounceServing() {
    std::vector<std::pair<std::string, std::string>> endpoints = {
        {"api", service::HttpUrl(settings_.listen)},
        {"admin", service::HttpUrl(settings_.admin_listen)}};
    if (grpc_ != nullptr) {
      endpoints.emplace_back("grpc", service::ToString(settings_.grpc_address));
    }
    return Announce(role_.name, std::move(endpoints), settings_.process, invocation_);
  }

  void Drain() {
    LogInfo("draining", {{"timeout", service::ToString(settings_.process.drain_timeout)}});
    AnnounceStopping(invocation_, settings_.process.drain_timeout);
    // Both doors close before either waits, and one time bounds both.
    const MonotonicTime end = Clock::Real().Now() + settings_.process.drain_timeout;
    if (grpc_ != nullptr) {
      grpc_->StartDraining();
    }
    bool is_done = api_->Drain(settings_.process.drain_timeout);
    if (grpc_ != nullptr) {
      const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::Real().Now());
      is_done = grpc_->Drain(std::max(left, milliseconds(0))) && is_done;
    }
    if (!is_done) {
      LogWarning("answers were cut: they took longer than --drain-timeout");
    }
    cluster_->Drain(milliseconds(0));
    LogInfo("drained");
  }

  service::Health Health() const {
    if (phase_.state() == Phase::State::kDraining) {
      return {false, "draining", 1.0};
    }
    if (!is_loaded_.load()) {
      return {false, "loading", progress_.fraction()};
    }
    const bool is_ready = cluster_->backend().Readiness().ok();
    return {is_ready, is_ready ? "ready" : "degraded", 1.0};
  }

  const Invocation& invocation_;
  const ApiServerRole role_;
  ApiServerSettings settings_;
  const transport::TlsIdentity& tls_;
  const std::function<void()> reload_;
  ClusterSide* const cluster_side_;
  AdminKey key_;
  Phase phase_;
  observability::Metrics metrics_;
  // Made when signals are watched, since it has a thread; what is traced ends before it.
  std::unique_ptr<Tracing> tracing_;
  observability::HttpMetrics http_metrics_;
  observability::GrpcMetrics grpc_metrics_;
  service::Progress progress_;
  std::atomic<bool> is_loaded_{false};
  // The servers end before what they ask.
  std::unique_ptr<EmbeddedCluster> cluster_;
  std::unique_ptr<live::Board> board_;  // null where another process has the page
  std::unique_ptr<live::Feed> feed_;
  std::unique_ptr<frontend::HttpServer> api_;
  std::unique_ptr<frontend::InferenceServer> grpc_;  // null without --grpc-listen
  std::unique_ptr<service::AdminServer> admin_;
  std::unique_ptr<service::Watchdog> watchdog_;  // null where nobody asks for it
};

}  // namespace

void AddApiServerOptions(service::OptionSet& set, ApiServerSettings& settings, bool has_experts) {
  AddEngineOptions(set, settings.engine, has_experts);
  set.Add({.name = "served-model-name",
           .help = "the model's name in the API",
           .group = "Model",
           .unset_means = "the folder's name"},
          &settings.served_model_name);
  set.Add({.name = "listen", .help = "address of the API; port 0: any", .group = "Network"},
          &settings.listen);
  set.Add({.name = "admin-listen",
           .help = has_experts ? "address of the page, metrics and health; port 0: any"
                               : "address of metrics and health; port 0: any",
           .group = "Network"},
          &settings.admin_listen);
  if (has_experts) {
    AddAdminKeyOption(set, settings.admin_key_file);
  }
  set.Add({.name = "grpc-listen",
           .help = "address of the API over gRPC, HOST:PORT; port 0: any",
           .group = "Network",
           .unset_means = "none"},
          &settings.grpc_listen);
  AddTlsFileOptions(
      set, settings.tls,
      has_experts ? "the gRPC API" : "this frontend, for the cluster and for the gRPC API");
  set.Add({.name = "insecure",
           .help = "allow addresses that others can reach, without TLS and keys",
           .group = "Network"},
          &settings.insecure);
  set.Add({.name = "max-body", .help = "largest request body", .group = "Network"},
          &settings.max_body, {{1024}, {int64_t{1} << 30}});
  set.Add({.name = "image-decode-timeout",
           .help = "CPU time that decoding one image may take; a longer one is refused",
           .group = "Images"},
          &settings.image_decode_timeout, {milliseconds(1), milliseconds(3'600'000)});
  set.Add({.name = "image-memory",
           .help = "memory of images that wait or are decoded; requests beyond it get 503",
           .group = "Images"},
          &settings.image_memory, {{int64_t{1} << 20}, {int64_t{64} << 40}});
  set.AddChoice({.name = "metrics",
                 .help = "off: engine, experts and dispatch are not counted, to measure what "
                         "counting costs",
                 .group = "Metrics"},
                &settings.metrics, {"on", "off"});
  set.AddChoice({.name = "metrics-compat",
                 .help = "vllm: the metrics that vLLM has too are also there under its names",
                 .group = "Metrics"},
                &settings.metrics_compat, {"none", "vllm"});
  AddTraceOptions(set, settings.trace);
  AddProcessOptions(set, settings.process, "how long running answers may take after SIGTERM");
  AddLogOptions(set, settings.log);
  set.Refuse("api-key",
             "refused: every user of this machine sees the command line; keys are "
             "never taken from it");
}

absl::Status CheckApiServerSettings(ApiServerSettings& settings) {
  CONCLAVE_RETURN_IF_ERROR(service::CheckReadyFd(settings.process.ready_fd));
  CONCLAVE_RETURN_IF_ERROR(CheckTlsFiles(settings.tls));
  CONCLAVE_RETURN_IF_ERROR(CheckTraceSettings(settings.trace));
  CONCLAVE_RETURN_IF_ERROR(ResolveListeners({&settings.listen, &settings.admin_listen},
                                            settings.insecure, settings.insecure));
  if (settings.grpc_listen.empty()) {
    return absl::OkStatus();
  }
  const absl::StatusOr<service::Address> address = service::ParseAddress(settings.grpc_listen);
  if (!address.ok()) {
    return InvalidArgument("usage", "--grpc-listen: " + MessageOf(address.status()));
  }
  CONCLAVE_ASSIGN_OR_RETURN(settings.grpc_address,
                            service::ResolveListener(*address, "--grpc-listen",
                                                     settings.insecure || settings.tls.is_set()));
  for (const auto& [flag, other] : {std::pair("--listen", settings.listen),
                                    std::pair("--admin-listen", settings.admin_listen)}) {
    if (settings.grpc_address.port != 0 && settings.grpc_address == other) {
      return InvalidArgument("usage", std::string(flag) + " and --grpc-listen are both " +
                                          service::ToString(other) + "; expected two addresses");
    }
  }
  return absl::OkStatus();
}

int RunApiServer(const Invocation& invocation, ApiServerRole role, ApiServerSettings settings,
                 const transport::TlsIdentity& tls, std::function<void()> reload) {
  return Server(invocation, std::move(role), std::move(settings), tls, std::move(reload)).Run();
}

}  // namespace conclave::cli
