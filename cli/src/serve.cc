// `conclave serve`: worker cores, engine and HTTP API in one process.
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>
#include <utility>

#include "commands.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/frontend/http_server.h"
#include "conclave/observability/engine_metrics.h"
#include "conclave/observability/log.h"
#include "conclave/service/admin_server.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/process.h"
#include "conclave/service/progress.h"
#include "conclave/service/ready.h"
#include "conclave/service/signals.h"
#include "embedded_cluster.h"
#include "engine_options.h"
#include "output.h"

namespace conclave::cli {
namespace {

using observability::LogInfo;
using observability::LogWarning;
using service::ExitCode;
using std::chrono::milliseconds;

struct ServeSettings {
  EngineSettings engine;
  LogSettings log;
  service::Address listen{"127.0.0.1", 8000};
  service::Address admin_listen{"127.0.0.1", 9000};
  bool insecure = false;
  std::string served_model_name;
  service::ByteSize max_body{int64_t{32} << 20};
  milliseconds drain_timeout{30'000};
  int32_t ready_fd = -1;
  bool core_dumps = false;
};

void Declare(service::OptionSet& set, ServeSettings& settings) {
  AddEngineOptions(set, settings.engine);
  set.Add({.name = "served-model-name",
           .help = "the model's name in the API",
           .group = "Model",
           .unset_means = "the folder's name"},
          &settings.served_model_name);
  set.Add({.name = "listen", .help = "address of the API; port 0: any", .group = "Network"},
          &settings.listen);
  set.Add({.name = "admin-listen",
           .help = "address of metrics and health; port 0: any",
           .group = "Network"},
          &settings.admin_listen);
  set.Add({.name = "insecure",
           .help = "allow addresses that others can reach, without TLS and keys",
           .group = "Network"},
          &settings.insecure);
  set.Add({.name = "max-body", .help = "largest request body", .group = "Network"},
          &settings.max_body, {{1024}, {int64_t{1} << 30}});
  set.Add({.name = "drain-timeout",
           .help = "how long running answers may take after SIGTERM",
           .group = "Process"},
          &settings.drain_timeout, {milliseconds(0), milliseconds(3'600'000)});
  set.Add({.name = "ready-fd",
           .help = "descriptor that gets a byte when ready",
           .group = "Process",
           .unset_means = "none"},
          &settings.ready_fd, {3, 1 << 20});
  set.Add({.name = "core-dumps",
           .help = "allow core dumps and debuggers, which see prompts and images",
           .group = "Process"},
          &settings.core_dumps);
  AddLogOptions(set, settings.log);
  set.Refuse("api-key",
             "refused: every user of this machine sees the command line; keys are "
             "never taken from it");
}

// From start to the end of the drain, and who waits for it.
class Phase {
 public:
  enum class State : uint8_t { kLoading, kServing, kDraining };

  // The first stop signal. While loading there is nothing to finish: the process ends here.
  void Stop(int signal) {
    MutexLock lock(mu_);
    if (state_ == State::kLoading) {
      LogInfo("stopped while loading", {{"signal", signal}});
      std::_Exit(static_cast<int>(ExitCode::kDone));
    }
    state_ = State::kDraining;
    changed_.NotifyAll();
  }
  void StartServing() {
    MutexLock lock(mu_);
    state_ = State::kServing;
  }
  void WaitForStop() {
    MutexLock lock(mu_);
    while (state_ != State::kDraining) {
      changed_.Wait(mu_);
    }
  }
  State state() const {
    MutexLock lock(mu_);
    return state_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kLoading;
};

class Server {
 public:
  Server(const Invocation& invocation, ServeSettings settings)
      : invocation_(invocation),
        settings_(std::move(settings)),
        http_metrics_(metrics_),
        progress_({.label = "loading the model",
                   .is_terminal = service::IsProgressTerminal(Variable(invocation, "TERM"))}) {}

  int Run() {
    absl::StatusOr<std::unique_ptr<service::SignalWatcher>> signals =
        service::SignalWatcher::Start({.on_stop = [this](int signal) { phase_.Stop(signal); },
                                       .on_stop_again = nullptr,
                                       .on_reload = [this] { Reload(); }});
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
    if (const absl::Status status = Announce(); !status.ok()) {
      return service::Fail(status, ExitCode::kInternal);
    }
    phase_.WaitForStop();
    Drain();
    return static_cast<int>(ExitCode::kDone);
  }

 private:
  absl::Status Listen() {
    metrics_.AddProcessMetrics();
    metrics_
        .AddGauge("conclave_build_info", "1; the labels say what runs.",
                  {{"version", Version()}, {"dtype", settings_.engine.dtype}})
        .Set(1);
    frontend::HttpServerOptions api;
    api.host = settings_.listen.host;
    api.port = settings_.listen.port;
    api.limits.body_bytes_max = settings_.max_body.bytes;
    api.load_progress = [this] { return progress_.fraction(); };
    api.version = Version();
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
    CONCLAVE_ASSIGN_OR_RETURN(api_,
                              frontend::HttpServer::Start(std::move(api), std::move(observer)));
    settings_.listen.port = api_->port();

    CONCLAVE_ASSIGN_OR_RETURN(
        admin_, service::AdminServer::Start({.host = settings_.admin_listen.host,
                                             .port = settings_.admin_listen.port,
                                             .metrics_text = [this] { return metrics_.Text(); },
                                             .health = [this] { return Health(); }}));
    settings_.admin_listen.port = admin_->port();
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
    options.metrics = &metrics_;
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
    is_loaded_.store(true);
    LogInfo("loaded",
            {{"model", cluster_->backend().model().id},
             {"seconds", std::chrono::duration<double>(Clock::Real().Now() - start).count()}});
    api_->SetBackend(cluster_->backend());
    return absl::OkStatus();
  }

  absl::Status Announce() {
    service::ReadyState state;
    state.role = "serve";
    state.endpoints = {{"api", service::HttpUrl(settings_.listen)},
                       {"admin", service::HttpUrl(settings_.admin_listen)}};
    state.pid = static_cast<int>(::getpid());
    return service::AnnounceReady(state, settings_.ready_fd,
                                  Variable(invocation_, "NOTIFY_SOCKET"));
  }

  void Drain() {
    LogInfo("draining", {{"timeout", service::ToString(settings_.drain_timeout)}});
    // Only the unit's state line suffers when nobody listens.
    (void)service::NotifyServiceManager(Variable(invocation_, "NOTIFY_SOCKET"), "STOPPING=1");
    if (!api_->Drain(settings_.drain_timeout)) {
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

  // On the signal thread: the command line, variables and file once more, of which only the log
  // level is taken.
  void Reload() {
    ServeSettings fresh;
    service::OptionSet set("conclave serve", Version(), "");
    Declare(set, fresh);
    const auto parsed = set.Parse(invocation_.args, invocation_.variables);
    if (!parsed.ok()) {
      observability::LogError("reload refused, the old settings stay",
                              {{"why", MessageOf(parsed.status())}});
      return;
    }
    observability::SetLogLevel(
        observability::ParseLogLevel(fresh.log.level).value_or(observability::LogLevel::kInfo));
    LogInfo("reloaded", {{"log_level", fresh.log.level}});
  }

  const Invocation& invocation_;
  ServeSettings settings_;
  Phase phase_;
  observability::Metrics metrics_;
  observability::HttpMetrics http_metrics_;
  service::Progress progress_;
  std::atomic<bool> is_loaded_{false};
  // The servers end before what they ask.
  std::unique_ptr<EmbeddedCluster> cluster_;
  std::unique_ptr<frontend::HttpServer> api_;
  std::unique_ptr<service::AdminServer> admin_;
};

// What the values mean together; listeners get numeric hosts.
absl::Status CheckTogether(ServeSettings& settings) {
  CONCLAVE_RETURN_IF_ERROR(service::CheckReadyFd(settings.ready_fd));
  CONCLAVE_ASSIGN_OR_RETURN(
      settings.listen, service::ResolveListener(settings.listen, "--listen", settings.insecure));
  CONCLAVE_ASSIGN_OR_RETURN(
      settings.admin_listen,
      service::ResolveListener(settings.admin_listen, "--admin-listen", settings.insecure));
  if (settings.listen.port != 0 && settings.listen == settings.admin_listen) {
    return InvalidArgument("usage", "--listen and --admin-listen are both " +
                                        service::ToString(settings.listen) +
                                        "; expected two addresses");
  }
  return absl::OkStatus();
}

// --check-config: everything that can be opened without taking memory or a port.
absl::Status CheckConfig(const ServeSettings& settings, const Invocation& invocation) {
  CONCLAVE_ASSIGN_OR_RETURN(const EmbeddedOptions options, ToEmbedded(settings.engine, invocation));
  return checkpoint::Checkpoint::Open(
             options.model_dir,
             {.vision_tower = options.vision_tower, .require_manifest = options.require_manifest})
      .status();
}

}  // namespace

int RunServe(const Invocation& invocation) {
  ServeSettings settings;
  settings.engine.threads = service::DefaultThreads(service::ReadMachine());
  service::OptionSet set("conclave serve", Version(),
                         "Serves a model over an OpenAI-compatible HTTP API, all in one process.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (const absl::Status status = CheckTogether(settings); !status.ok()) {
    return service::Fail(status, ExitCode::kUsage);
  }
  Apply(settings.log);
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    const absl::Status status = CheckConfig(settings, invocation);
    return status.ok() ? PrintResult("ok\n") : service::Fail(status, ExitCode::kConfig);
  }
  if (!settings.core_dumps) {
    service::ForbidDumps();
  }
  LogInfo("conclave serve", {{"version", Version()}, {"settings", set.Summary()}});
  return Server(invocation, std::move(settings)).Run();
}

}  // namespace conclave::cli
