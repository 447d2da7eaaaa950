// `conclave worker`: experts of a model, for the frontends of a cluster.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/worker_server.h"
#include "conclave/model/ffn.h"
#include "conclave/observability/log.h"
#include "conclave/service/admin_server.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/process.h"
#include "conclave/service/ready.h"
#include "conclave/service/signals.h"
#include "conclave/service/watchdog.h"
#include "conclave/transport/ucx_channel.h"
#include "engine_options.h"
#include "memory_budget.h"
#include "output.h"
#include "server_process.h"
#include "tls_options.h"
#include "worker_metrics.h"

namespace conclave::cli {
namespace {

using observability::LogInfo;
using service::ExitCode;

// Of what is free, for experts; the rest is for buffers, and for whoever else is here.
constexpr double kMemoryShare = 0.8;

struct WorkerSettings {
  ModelSettings model;
  ComputeSettings compute;
  LogSettings log;
  ProcessSettings process;
  std::vector<service::Address> router{{"127.0.0.1", 7000}};
  service::Address listen{"127.0.0.1", 0};
  service::Address admin_listen{"127.0.0.1", 0};
  std::string advertise;
  std::string channel = "auto";
  bool insecure = false;
  bool trusted_network = false;
  TlsFileSettings tls;
  std::string cluster_id;
  std::string name;
  service::ByteSize memory;  // 0: chosen
};

void DeclareNetwork(service::OptionSet& set, WorkerSettings& settings) {
  set.Add({.name = "router",
           .help = "control addresses of the routers, of which one leads",
           .group = "Network"},
          &settings.router);
  set.Add({.name = "listen",
           .help = "data address, where frontends come in; port 0: any",
           .group = "Network"},
          &settings.listen);
  set.Add({.name = "advertise",
           .help = "data address that frontends are told, HOST:PORT",
           .group = "Network",
           .unset_means = "the one that is listened on"},
          &settings.advertise);
  set.Add({.name = "admin-listen",
           .help = "address of metrics and health; port 0: any",
           .group = "Network"},
          &settings.admin_listen);
  set.AddChoice({.name = "channel",
                 .help = "how frontends send calls; auto: ucx where it may be used, and grpc",
                 .group = "Network"},
                &settings.channel, {"auto", "ucx", "grpc"});
  set.Add({.name = "insecure",
           .help = "allow addresses that others can reach, without TLS",
           .group = "Network"},
          &settings.insecure);
  set.Add({.name = "trusted-network",
           .help = "only the cluster is on the data address's network: it needs no TLS, and ucx "
                   "may be used there",
           .group = "Network"},
          &settings.trusted_network);
  AddTlsFileOptions(set, settings.tls, "this worker");
}

void Declare(service::OptionSet& set, WorkerSettings& settings) {
  AddModelOptions(set, settings.model);
  DeclareNetwork(set, settings);
  set.Add({.name = "cluster-id",
           .help = "name of the cluster; a router of another one is refused",
           .group = "Cluster",
           .unset_means = "any"},
          &settings.cluster_id);
  set.Add({.name = "name",
           .help = "name in the cluster, letters, digits and . _ -",
           .group = "Cluster",
           .unset_means = "host and process id"},
          &settings.name);
  set.Add({.name = "memory",
           .help = "memory that experts may take",
           .group = "Compute",
           .unset_means = "four fifths of what is free, at most all experts"},
          &settings.memory, {{1 << 10}, {int64_t{64} << 40}});
  AddComputeOptions(set, settings.compute);
  AddProcessOptions(set, settings.process,
                    "how long it waits after SIGTERM until its experts are elsewhere");
  AddLogOptions(set, settings.log);
}

bool IsName(const std::string& name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

// "host-4711", with what a name may not hold left out.
std::string DefaultName() {
  std::array<char, 256> host{};
  (void)::gethostname(host.data(), host.size() - 1);
  std::string name;
  for (const char* c = host.data(); *c != '\0' && name.size() < 48; ++c) {
    if (IsName(std::string(1, *c))) {
      name += *c;
    }
  }
  return (name.empty() ? "worker" : name) + "-" + std::to_string(::getpid());
}

// What the values mean together; listeners get numeric hosts.
absl::Status CheckTogether(WorkerSettings& settings) {
  CONCLAVE_RETURN_IF_ERROR(service::CheckReadyFd(settings.process.ready_fd));
  if (settings.name.empty()) {
    settings.name = DefaultName();
  } else if (!IsName(settings.name)) {
    return InvalidArgument("usage",
                           "--name: expected 1 to 64 letters, digits, '.', '_' or '-', found " +
                               service::Quoted(settings.name));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckTlsFiles(settings.tls));
  CONCLAVE_RETURN_IF_ERROR(ResolveListeners(
      {&settings.listen, &settings.admin_listen},
      settings.insecure || settings.trusted_network || settings.tls.is_set(), settings.insecure));
  if (settings.channel == "ucx") {
    if (const absl::Status reach =
            transport::CheckUcxReach({settings.listen.host, settings.trusted_network});
        !reach.ok()) {
      return InvalidArgument("usage", "--channel ucx: " + MessageOf(reach));
    }
  }
  if (!settings.advertise.empty()) {
    const absl::StatusOr<service::Address> address = service::ParseAddress(settings.advertise);
    if (!address.ok()) {
      return InvalidArgument("usage", "--advertise: " + MessageOf(address.status()));
    }
  } else if (settings.listen.host == "0.0.0.0" || settings.listen.host == "::") {
    return InvalidArgument("usage",
                           "--advertise: nothing says where frontends find this worker; expected "
                           "HOST:PORT beside --listen " +
                               service::ToString(settings.listen));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<checkpoint::Checkpoint>> OpenModel(const WorkerSettings& settings,
                                                                  const Invocation& invocation) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::string folder, ModelFolder(settings.model, invocation));
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<checkpoint::Checkpoint> opened,
                            checkpoint::Checkpoint::Open(folder, OpenOptionsOf(settings.model)));
  if (opened->desc().moe.layers.empty()) {
    return InvalidArgument("config_moe", folder + ": a dense model; expected one with experts");
  }
  return opened;
}

int64_t ChooseMemory(const checkpoint::ModelDesc& desc, DType dtype) {
  int64_t num_experts = 0;
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    num_experts += layer.num_experts;
  }
  const int64_t all =
      num_experts * static_cast<int64_t>(model::FfnBytes(desc.ffn, desc.moe.io_dim, dtype));
  return std::min(all, static_cast<int64_t>(static_cast<double>(AvailableBytes()) * kMemoryShare));
}

class Worker {
 public:
  Worker(const Invocation& invocation, WorkerSettings settings)
      : invocation_(invocation), settings_(std::move(settings)) {}

  // `isa` was resolved with the settings.
  int Run(kernels::Isa isa) {
    absl::StatusOr<std::unique_ptr<service::SignalWatcher>> signals =
        service::SignalWatcher::Start({.on_stop = [this](int signal) { phase_.Stop(signal); },
                                       .on_stop_again = nullptr,
                                       .on_reload = [this] { Reload(); }});
    if (!signals.ok()) {
      return service::Fail(signals.status(), ExitCode::kInternal);
    }
    absl::StatusOr<std::unique_ptr<checkpoint::Checkpoint>> opened =
        OpenModel(settings_, invocation_);
    if (!opened.ok()) {
      return service::Fail(opened.status(), ExitCode::kModel);
    }
    checkpoint_ = *std::move(opened);
    if (const absl::Status status = Start(isa); !status.ok()) {
      return service::Fail(status, ExitCode::kNetwork);
    }
    if (server_->WaitReady()) {
      if (const absl::Status status = AnnounceServing(); !status.ok()) {
        return service::Fail(status, ExitCode::kInternal);
      }
      watchdog_ = StartWatchdog(invocation_,
                                {{"compute-0", [this] { return server_->compute_pulse(); }},
                                 {"control", service::Knock([this](std::function<void()> answer) {
                                    server_->PostToControl(std::move(answer));
                                    return true;
                                  })}});
      LogInfo("ready",
              {{"worker", server_->worker_id()}, {"experts", server_->figures().num_experts}});
    }
    const absl::Status stopped = server_->WaitStopped();
    if (!stopped.ok()) {
      return service::Fail(stopped, ExitCode::kNetwork);
    }
    LogInfo("drained");
    return static_cast<int>(ExitCode::kDone);
  }

 private:
  absl::Status Start(kernels::Isa isa) {
    metrics_.AddProcessMetrics();
    metrics_
        .AddGauge("conclave_build_info", "1; the labels say what runs.",
                  {{"version", Version()}, {"dtype", settings_.compute.dtype}})
        .Set(1);
    expert_worker::WorkerServerOptions options;
    options.routers = service::ToStrings(settings_.router);
    options.listen_host = settings_.listen.host;
    options.listen_port = settings_.listen.port;
    options.advertise = settings_.advertise;
    options.channel = settings_.channel;
    options.is_trusted_network = settings_.trusted_network;
    options.name = settings_.name;
    options.cluster_id = settings_.cluster_id;
    options.tls_certificate = settings_.tls.certificate;
    options.tls_key = settings_.tls.key;
    options.tls_authority = settings_.tls.authority;
    options.dtype = DtypeOf(settings_.compute);
    options.isa = isa;
    // Not before: the signal mask has to be set when threads start.
    pool_ = std::make_unique<ThreadPool>(settings_.compute.threads, CoresOf(settings_.compute));
    options.compute = kernels::Context(isa, *pool_);
    options.memory_bytes = settings_.memory.bytes > 0
                               ? settings_.memory.bytes
                               : ChooseMemory(checkpoint_->desc(), options.dtype);
    options.drain_timeout = settings_.process.drain_timeout;
    LogInfo("starting", {{"model", checkpoint_->folder()},
                         {"name", options.name},
                         {"router", service::ToString(settings_.router)},
                         {"memory_bytes", options.memory_bytes},
                         {"isa", kernels::NameOf(isa)}});
    CONCLAVE_ASSIGN_OR_RETURN(server_, expert_worker::WorkerServer::Start(*checkpoint_, options));
    settings_.listen.port = server_->port();
    AddWorkerMetrics(metrics_, *server_);
    CONCLAVE_ASSIGN_OR_RETURN(
        admin_, service::AdminServer::Start({.host = settings_.admin_listen.host,
                                             .port = settings_.admin_listen.port,
                                             .metrics_text = [this] { return metrics_.Text(); },
                                             .health = [this] { return Health(); }}));
    settings_.admin_listen.port = admin_->port();
    phase_.StartServing([this] {
      LogInfo("draining", {{"timeout", service::ToString(settings_.process.drain_timeout)}});
      AnnounceStopping(invocation_, settings_.process.drain_timeout);
      server_->Drain();
    });
    return absl::OkStatus();
  }

  absl::Status AnnounceServing() {
    return Announce("worker",
                    {{"data", service::ToString(settings_.listen)},
                     {"admin", service::HttpUrl(settings_.admin_listen)}},
                    settings_.process, invocation_);
  }

  // Whether the router is there does not count: calls are served without it.
  service::Health Health() const {
    const expert_worker::WorkerFigures figures = server_->figures();
    if (phase_.state() == Phase::State::kDraining) {
      return {false, "draining", 1.0};
    }
    if (!figures.is_ready) {
      const double total = static_cast<double>(figures.num_experts + figures.num_loading);
      return {false, "loading", total > 0 ? static_cast<double>(figures.num_experts) / total : 0.0};
    }
    return {true, "ready", 1.0};
  }

  // On the signal thread.
  void Reload() {
    WorkerSettings fresh;
    service::OptionSet set("conclave worker", Version(), "");
    Declare(set, fresh);
    ReloadLogLevel(set, fresh.log, invocation_);
  }

  const Invocation& invocation_;
  WorkerSettings settings_;
  std::unique_ptr<ThreadPool> pool_;
  Phase phase_;
  observability::Metrics metrics_;
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::unique_ptr<expert_worker::WorkerServer> server_;
  // Last: they ask the server.
  std::unique_ptr<service::AdminServer> admin_;
  std::unique_ptr<service::Watchdog> watchdog_;  // null where nobody asks for it
};

}  // namespace

int RunWorker(const Invocation& invocation) {
  WorkerSettings settings;
  settings.compute.threads = service::DefaultThreads(service::ReadMachine());
  service::OptionSet set("conclave worker", Version(),
                         "Holds experts of a model and computes for the frontends of a cluster.");
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
  const absl::StatusOr<kernels::Isa> isa = ResolveIsaFlag(settings.compute);
  if (!isa.ok()) {
    return service::Fail(isa.status(), ExitCode::kUsage);
  }
  Apply(settings.log);
  const bool is_check = parsed->action == service::OptionSet::Action::kCheckConfig;
  if (const absl::Status status = SettleDtype(settings.model, settings.compute); !status.ok()) {
    return service::Fail(status, is_check ? ExitCode::kConfig : ExitCode::kModel);
  }
  if (is_check) {
    const absl::Status status = OpenModel(settings, invocation).status();
    return status.ok() ? PrintResult("ok\n") : service::Fail(status, ExitCode::kConfig);
  }
  if (!settings.process.core_dumps) {
    service::ForbidDumps();
  }
  LogInfo("conclave worker", {{"version", Version()}, {"settings", set.Summary()}});
  return Worker(invocation, std::move(settings)).Run(*isa);
}

}  // namespace conclave::cli
