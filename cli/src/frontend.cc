// `conclave frontend`: engine and API of a cluster; its experts are on workers that a router
// places.
#include <string>
#include <utility>

#include "api_server.h"
#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/observability/log.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/machine.h"
#include "conclave/service/process.h"
#include "conclave/transport/grpc_support.h"
#include "engine_options.h"
#include "membership.h"
#include "output.h"

namespace conclave::cli {
namespace {

using service::ExitCode;

struct FrontendSettings {
  ApiServerSettings api;
  MembershipSettings cluster;
};

void Declare(service::OptionSet& set, FrontendSettings& settings) {
  AddApiServerOptions(set, settings.api, false);
  set.Add({.name = "router",
           .help = "control addresses of the routers, of which one leads",
           .group = "Cluster"},
          &settings.cluster.router);
  set.Add({.name = "name",
           .help = "name of this frontend in the cluster",
           .group = "Cluster",
           .unset_means = "frontend- and the process id"},
          &settings.cluster.name);
  set.Add({.name = "cluster-id",
           .help = "refuse a router of another cluster",
           .group = "Cluster",
           .unset_means = "any"},
          &settings.cluster.cluster_id);
  set.AddChoice({.name = "channel",
                 .help = "how rows travel to workers; auto: the best that both ends allow, ucx "
                         "before grpc",
                 .group = "Cluster"},
                &settings.cluster.channel, {"auto", "ucx", "grpc"});
  set.Add({.name = "trusted-network",
           .help = "only the cluster is on the network to the workers: ucx may be used there",
           .group = "Cluster"},
          &settings.cluster.is_trusted_network);
  set.Add(
      {.name = "payload-crc",
       .help = "rows to and from workers carry a CRC on every channel, for soaks and debugging; "
               "without it only where ucx leaves the machine",
       .group = "Cluster"},
      &settings.cluster.has_payload_crc);
  set.Add({.name = "rescue-memory",
           .help = "experts that no worker serves are computed here, up to this; 0B: never",
           .group = "Cluster"},
          &settings.cluster.rescue_memory, {{0}, {int64_t{64} << 40}});
}

}  // namespace

int RunFrontend(const Invocation& invocation) {
  FrontendSettings settings;
  settings.api.engine.threads = service::DefaultThreads(service::ReadMachine());
  settings.api.admin_listen.port = 9001;
  service::OptionSet set("conclave frontend", Version(),
                         "Serves a model over an OpenAI-compatible HTTP API, and over gRPC with "
                         "--grpc-listen; its experts are on the workers of a cluster.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (const absl::Status status = CheckApiServerSettings(settings.api); !status.ok()) {
    return service::Fail(status, ExitCode::kUsage);
  }
  Apply(settings.api.log);
  const absl::StatusOr<transport::TlsIdentity> tls = transport::ReadTlsFiles(
      settings.api.tls.certificate, settings.api.tls.key, settings.api.tls.authority);
  if (!tls.ok()) {
    return service::Fail(tls.status(), ExitCode::kConfig);
  }
  const bool is_check = parsed->action == service::OptionSet::Action::kCheckConfig;
  if (const absl::Status status = SettleDtype(settings.api.engine, settings.api.engine);
      !status.ok()) {
    return service::Fail(status, is_check ? ExitCode::kConfig : ExitCode::kModel);
  }
  if (is_check) {
    const absl::StatusOr<std::string> folder = ModelFolder(settings.api.engine, invocation);
    const absl::Status status =
        folder.ok() ? checkpoint::Checkpoint::Open(*folder, {}).status() : folder.status();
    return status.ok() ? PrintResult("ok\n") : service::Fail(status, ExitCode::kConfig);
  }
  if (!settings.api.process.core_dumps) {
    service::ForbidDumps();
  }
  observability::LogInfo("conclave frontend",
                         {{"version", Version()}, {"settings", set.Summary()}});
  Membership membership(settings.cluster, *tls);
  return RunApiServer(invocation, {.name = "frontend", .cluster = &membership}, settings.api, *tls,
                      [&invocation] {
                        FrontendSettings fresh;
                        service::OptionSet again("conclave frontend", Version(), "");
                        Declare(again, fresh);
                        ReloadLogLevel(again, fresh.api.log, invocation);
                      });
}

}  // namespace conclave::cli
