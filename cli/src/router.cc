// `conclave router`: membership and placements of a cluster of processes.
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

#include "admin_key.h"
#include "commands.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/observability/log.h"
#include "conclave/router_service/router_server.h"
#include "conclave/service/admin_server.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/process.h"
#include "conclave/service/ready.h"
#include "conclave/service/signals.h"
#include "conclave/service/watchdog.h"
#include "engine_options.h"
#include "live_routes.h"
#include "output.h"
#include "server_process.h"
#include "tls_options.h"

namespace conclave::cli {
namespace {

using observability::LogInfo;
using service::ExitCode;
using std::chrono::milliseconds;

struct RouterSettings {
  service::Address listen{"127.0.0.1", 7000};
  service::Address admin_listen{"127.0.0.1", 9000};
  std::string model;
  std::string experts;
  std::string state_dir;
  std::string etcd;
  milliseconds etcd_lease{3000};
  std::vector<service::Address> etcd_endpoints;  // of etcd, numeric
  int32_t replicas = 2;
  std::string cluster_id;
  milliseconds recover_time{3000};
  bool insecure = false;
  std::string admin_key_file;
  TlsFileSettings tls;
  ProcessSettings process;
  LogSettings log;
};

void Declare(service::OptionSet& set, RouterSettings& settings) {
  set.Add({.name = "listen",
           .help = "control address, for workers, frontends and operators; port 0: any",
           .group = "Network"},
          &settings.listen);
  set.Add({.name = "admin-listen",
           .help = "address of the page, metrics and health; port 0: any",
           .group = "Network"},
          &settings.admin_listen);
  AddAdminKeyOption(set, settings.admin_key_file);
  set.Add({.name = "insecure",
           .help = "allow addresses that others can reach, without TLS",
           .group = "Network"},
          &settings.insecure);
  AddTlsFileOptions(set, settings.tls, "this router");
  set.AddPath({.name = "model",
               .help = "checkpoint folder that says what there is to place",
               .group = "Cluster",
               .short_name = 'm',
               .unset_means = "what the first worker has"},
              &settings.model, service::PathKind::kExistingFolder);
  set.AddPath({.name = "experts",
               .help = "what `conclave inspect --json` printed, instead of the folder",
               .group = "Cluster",
               .unset_means = "what the first worker has"},
              &settings.experts, service::PathKind::kExistingFile);
  set.AddPath({.name = "state-dir",
               .help = "folder of this router's state",
               .group = "Cluster",
               .unset_means = "none: a restart learns from the workers"},
              &settings.state_dir, service::PathKind::kAny);
  set.Add(
      {.name = "etcd",
       .help = "endpoints HOST:PORT[,...] of the etcd that has the state, instead of a folder; of "
               "several routers with the same --cluster-id one leads and the others stand by",
       .group = "Cluster",
       .unset_means = "none: this is the only router"},
      &settings.etcd);
  set.Add({.name = "etcd-lease",
           .help = "whole seconds without a sign of life after which another router leads",
           .group = "Cluster"},
          &settings.etcd_lease, {milliseconds(2000), milliseconds(60'000)});
  set.Add({.name = "replicas",
           .help = "replicas of every expert, as far as there are workers and memory",
           .group = "Cluster"},
          &settings.replicas, {1, 64});
  set.Add({.name = "cluster-id",
           .help = "name of the cluster; members of another one are refused",
           .group = "Cluster",
           .unset_means = "any"},
          &settings.cluster_id);
  set.Add({.name = "recover-time",
           .help = "how long a router without state listens to workers before it decides",
           .group = "Cluster"},
          &settings.recover_time, {milliseconds(0), milliseconds(60'000)});
  AddProcessOptions(set, settings.process, "how long a stop may take after SIGTERM");
  AddLogOptions(set, settings.log);
}

// Numeric addresses of --etcd. What is said to etcd is neither encrypted nor authenticated.
absl::Status CheckEtcd(RouterSettings& settings) {
  if (settings.etcd.empty()) {
    return absl::OkStatus();
  }
  if (!settings.state_dir.empty()) {
    return InvalidArgument("usage", "--state-dir and --etcd: expected one of them");
  }
  if (settings.etcd_lease.count() % 1000 != 0) {
    return InvalidArgument("usage", "--etcd-lease: expected whole seconds, found " +
                                        service::ToString(settings.etcd_lease));
  }
  std::string plain;
  std::stringstream parts(settings.etcd);
  for (std::string part; std::getline(parts, part, ',');) {
    if (part.starts_with("https://")) {
      return InvalidArgument("usage",
                             "--etcd: TLS to etcd is not built in; expected HOST:PORT of a "
                             "listener without it, found " +
                                 service::Quoted(part));
    }
    constexpr std::string_view kScheme = "http://";
    plain += (plain.empty() ? "" : ",") +
             (part.starts_with(kScheme) ? part.substr(kScheme.size()) : part);
  }
  auto addresses = service::ParseAddresses(plain);
  if (!addresses.ok()) {
    return Annotate(addresses.status(), "--etcd");
  }
  for (service::Address& address : *addresses) {
    CONCLAVE_ASSIGN_OR_RETURN(address.host, service::ResolveHost(address.host));
    if (address.port == 0) {
      return InvalidArgument("usage", "--etcd: expected a port from 1, found 0");
    }
    if (!service::IsLoopback(address.host) && !settings.insecure) {
      return InvalidArgument("usage", "--etcd: " + service::ToString(address) +
                                          " is reached without TLS; expected a loopback address, "
                                          "or --insecure");
    }
  }
  settings.etcd_endpoints = *std::move(addresses);
  return absl::OkStatus();
}

absl::Status CheckTogether(RouterSettings& settings) {
  CONCLAVE_RETURN_IF_ERROR(service::CheckReadyFd(settings.process.ready_fd));
  CONCLAVE_RETURN_IF_ERROR(CheckTlsFiles(settings.tls));
  if (!settings.model.empty() && !settings.experts.empty()) {
    return InvalidArgument("usage", "--model and --experts: expected one of them");
  }
  CONCLAVE_RETURN_IF_ERROR(CheckEtcd(settings));
  return ResolveListeners({&settings.listen, &settings.admin_listen},
                          settings.insecure || settings.tls.is_set(), settings.insecure);
}

// The layers of a checkpoint folder, and its identity where its weights are there.
absl::Status ReadModelFolder(const std::string& folder, router_service::CoreOptions& options) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<checkpoint::Checkpoint> opened,
                            checkpoint::Checkpoint::Open(folder));
  const checkpoint::ModelDesc& desc = opened->desc();
  for (const checkpoint::MoeLayerSpec& layer : desc.moe.layers) {
    options.layers.push_back({LayerId(layer.layer), layer.num_experts});
  }
  if (options.layers.empty()) {
    return InvalidArgument("config_moe", folder + ": a dense model; expected one with experts");
  }
  options.model = {checkpoint::ManifestHash(*opened), desc.moe.io_dim, desc.moe.top_k};
  return absl::OkStatus();
}

absl::Status BadExperts(const std::string& path, const std::string& why) {
  return InvalidArgument("config_value",
                         path + ": " + why + "; expected what `conclave inspect --json` prints");
}

// {"moe": {"layers": [1, 3], "experts": [4, 4], ...}, ...}.
absl::Status ReadExpertsFile(const std::string& path, router_service::CoreOptions& options) {
  constexpr std::streamsize kBytesMax = 1 << 20;
  std::ifstream file(path, std::ios::binary);
  std::string text(kBytesMax + 1, '\0');
  file.read(text.data(), kBytesMax + 1);
  if (file.gcount() > kBytesMax || file.bad()) {
    return BadExperts(path, "it cannot be read, or is larger than 1 MiB");
  }
  text.resize(static_cast<size_t>(file.gcount()));
  boost::system::error_code error;
  const boost::json::value value = boost::json::parse(text, error);
  if (error.failed()) {
    return BadExperts(path, "no JSON");
  }
  const boost::json::value* layers = value.find_pointer("/moe/layers", error);
  const boost::json::value* experts = value.find_pointer("/moe/experts", error);
  if (layers == nullptr || experts == nullptr || !layers->is_array() || !experts->is_array() ||
      layers->as_array().size() != experts->as_array().size()) {
    return BadExperts(path, "moe.layers and moe.experts are not two lists of one length");
  }
  for (size_t i = 0; i < layers->as_array().size(); ++i) {
    const boost::json::value& layer = layers->as_array()[i];
    const boost::json::value& count = experts->as_array()[i];
    if (!layer.is_int64() || !count.is_int64() || layer.as_int64() < 0 ||
        layer.as_int64() >= 65'536 || count.as_int64() < 1 || count.as_int64() > 65'536 ||
        (i > 0 && layer.as_int64() <= options.layers.back().layer.value())) {
      return BadExperts(path, "layers are not ascending, or a number of experts is no 1 to 65536");
    }
    options.layers.push_back(
        {LayerId(static_cast<int32_t>(layer.as_int64())), static_cast<int32_t>(count.as_int64())});
  }
  return absl::OkStatus();
}

absl::StatusOr<router_service::CoreOptions> ToCore(const RouterSettings& settings) {
  router_service::CoreOptions options;
  options.cluster_id = settings.cluster_id;
  options.replication = settings.replicas;
  options.recover = settings.recover_time;
  if (!settings.model.empty()) {
    CONCLAVE_RETURN_IF_ERROR(ReadModelFolder(settings.model, options));
  }
  if (!settings.experts.empty()) {
    CONCLAVE_RETURN_IF_ERROR(ReadExpertsFile(settings.experts, options));
  }
  return options;
}

class Router {
 public:
  Router(const Invocation& invocation, RouterSettings settings)
      : invocation_(invocation), settings_(std::move(settings)), key_(settings_.admin_key_file) {}

  int Run() {
    absl::StatusOr<std::unique_ptr<service::SignalWatcher>> signals =
        service::SignalWatcher::Start({.on_stop = [this](int /*signal*/) { Stop(); },
                                       .on_stop_again = nullptr,
                                       .on_reload = [this] { Reload(); }});
    if (!signals.ok()) {
      return service::Fail(signals.status(), ExitCode::kInternal);
    }
    if (const absl::Status status = key_.Load(); !status.ok()) {
      return service::Fail(status, ExitCode::kConfig);
    }
    absl::StatusOr<router_service::CoreOptions> core = ToCore(settings_);
    if (!core.ok()) {
      return service::Fail(core.status(),
                           settings_.model.empty() ? ExitCode::kConfig : ExitCode::kModel);
    }
    if (const absl::Status status = Listen(*std::move(core)); !status.ok()) {
      return service::Fail(status, ExitCode::kNetwork);
    }
    if (const absl::Status status = AnnounceServing(); !status.ok()) {
      return service::Fail(status, ExitCode::kInternal);
    }
    std::unique_ptr<service::Watchdog> watchdog = StartWatchdog(
        invocation_, {{"router-core", service::Knock([this](std::function<void()> answer) {
                         return server_->Post(std::move(answer));
                       })}});
    WaitForStop();
    watchdog.reset();  // it asks the server, which ends now
    if (const absl::Status failed = Failed(); !failed.ok()) {
      server_.reset();
      return service::Fail(failed, ExitCode::kState);
    }
    // Nothing of a router is worth waiting for: members go on with the last placement.
    LogInfo("draining", {{"timeout", service::ToString(settings_.process.drain_timeout)}});
    AnnounceStopping(invocation_, milliseconds(0));
    server_.reset();
    LogInfo("drained");
    return static_cast<int>(ExitCode::kDone);
  }

 private:
  absl::Status Listen(router_service::CoreOptions core) {
    metrics_.AddProcessMetrics();
    // What its workers compute in, which it learns from them.
    metrics_.AddCollector("conclave_build_info", "1; the labels say what runs.",
                          observability::Metrics::Kind::kGauge, [this] {
                            return std::vector<observability::Metrics::Sample>{
                                {{{"version", Version()}, {"dtype", server_->dtype()}}, 1}};
                          });
    (void)service::RaiseOpenFilesLimit(8192);
    router_service::RouterServerOptions options;
    options.core = std::move(core);
    options.host = settings_.listen.host;
    options.port = settings_.listen.port;
    options.state_dir = settings_.state_dir;
    options.etcd = settings_.etcd_endpoints;
    options.etcd_lease = std::chrono::duration_cast<std::chrono::seconds>(settings_.etcd_lease);
    options.on_failed = [this](const absl::Status& why) { StopFor(why); };
    options.tls_certificate = settings_.tls.certificate;
    options.tls_key = settings_.tls.key;
    options.tls_authority = settings_.tls.authority;
    options.metrics = &metrics_;
    options.live.version = Version();
    options.live.bounds = LiveBounds();
    options.live.is_admin_enabled = key_.is_set();
    options.live.admin_reason = key_.is_set() ? "" : "the router has no --admin-key-file";
    CONCLAVE_ASSIGN_OR_RETURN(server_, router_service::RouterServer::Start(std::move(options)));
    settings_.listen.port = server_->port();
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
    return LiveRoutes({.board = &server_->board(),
                       .feed = &server_->feed(),
                       .key = &key_,
                       .router = server_.get(),
                       .api = [this]() -> absl::StatusOr<service::Address> {
                         CONCLAVE_ASSIGN_OR_RETURN(const std::string api, server_->FrontendApi());
                         // Numeric, as frontends say it: a name would be asked for on the
                         // listener's thread.
                         return service::ParseAddress(api);
                       }});
  }

  absl::Status AnnounceServing() {
    return Announce("router",
                    {{"admin", service::HttpUrl(settings_.admin_listen)},
                     {"control", service::ToString(settings_.listen)}},
                    settings_.process, invocation_);
  }

  // Ready: registrations are taken. What else there is to say is the state.
  service::Health Health() const {
    const router_service::RouterServer::Health health = server_->health();
    if (health.state == "standby") {
      return {false, "standby", 1.0};
    }
    return {true, health.blocked.empty() ? "ready" : "degraded", 1.0};
  }

  void Stop() {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  void StopFor(const absl::Status& why) {
    MutexLock lock(mu_);
    failed_ = why;
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  absl::Status Failed() const {
    MutexLock lock(mu_);
    return failed_;
  }
  void WaitForStop() {
    MutexLock lock(mu_);
    while (!is_stopping_) {
      changed_.Wait(mu_);
    }
  }

  // On the signal thread: of the settings only the log level is taken again, and the key's file is
  // read again.
  void Reload() {
    if (const absl::Status status = key_.Load(); !status.ok()) {
      observability::LogError("the admin key stays as it was", {{"why", MessageOf(status)}});
    }
    RouterSettings fresh;
    service::OptionSet set("conclave router", Version(), "");
    Declare(set, fresh);
    ReloadLogLevel(set, fresh.log, invocation_);
  }

  const Invocation& invocation_;
  RouterSettings settings_;
  AdminKey key_;
  mutable Mutex mu_;
  CondVar changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mu_);
  observability::Metrics metrics_;
  // The listener of metrics ends before what it asks.
  std::unique_ptr<router_service::RouterServer> server_;
  std::unique_ptr<service::AdminServer> admin_;
};

}  // namespace

int RunRouter(const Invocation& invocation) {
  RouterSettings settings;
  service::OptionSet set("conclave router", Version(),
                         "Tells workers and frontends who is there and who holds which expert.");
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
    absl::Status status = AdminKey(settings.admin_key_file).Load();
    status.Update(ToCore(settings).status());
    return status.ok() ? PrintResult("ok\n") : service::Fail(status, ExitCode::kConfig);
  }
  if (!settings.process.core_dumps) {
    service::ForbidDumps();
  }
  LogInfo("conclave router", {{"version", Version()}, {"settings", set.Summary()}});
  return Router(invocation, std::move(settings)).Run();
}

}  // namespace conclave::cli
