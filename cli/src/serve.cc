// `conclave serve`: worker cores, engine and API in one process.
#include <string>
#include <utility>

#include "admin_key.h"
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
#include "spawned_cluster.h"

namespace conclave::cli {
namespace {

using service::ExitCode;

struct ServeSettings {
  ApiServerSettings api;
  int32_t spawn = 0;
};

void Declare(service::OptionSet& set, ServeSettings& settings) {
  AddApiServerOptions(set, settings.api, true);
  set.Add(
      {.name = "spawn",
       .help = "expert workers as processes of their own, with a router: a whole cluster on this "
               "machine",
       .group = "Compute",
       .unset_means = "none, all in this process"},
      &settings.spawn, {1, 256});
}

// --check-config: everything that can be opened without taking memory or a port.
absl::Status CheckConfig(const ApiServerSettings& settings, const Invocation& invocation) {
  CONCLAVE_RETURN_IF_ERROR(AdminKey(settings.admin_key_file).Load());
  CONCLAVE_ASSIGN_OR_RETURN(const EmbeddedOptions options, ToEmbedded(settings.engine, invocation));
  return checkpoint::Checkpoint::Open(options.model_dir, options.open).status();
}

}  // namespace

int RunServe(const Invocation& invocation) {
  ServeSettings settings;
  settings.api.engine.threads = service::DefaultThreads(service::ReadMachine());
  service::OptionSet set("conclave serve", Version(),
                         "Serves a model over an OpenAI-compatible HTTP API, and over gRPC with "
                         "--grpc-listen; all in one process.");
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
  if (settings.api.grpc_listen.empty() && settings.api.tls.is_set()) {
    return service::Fail(
        InvalidArgument("usage",
                        "--tls-cert, --tls-key, --tls-ca: nothing here uses them; expected "
                        "--grpc-listen beside them"),
        ExitCode::kUsage);
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
    const absl::Status status = CheckConfig(settings.api, invocation);
    return status.ok() ? PrintResult("ok\n") : service::Fail(status, ExitCode::kConfig);
  }
  if (const absl::Status key = AdminKey(settings.api.admin_key_file).Load(); !key.ok()) {
    return service::Fail(key, ExitCode::kConfig);
  }
  if (!settings.api.process.core_dumps) {
    service::ForbidDumps();
  }
  observability::LogInfo("conclave serve", {{"version", Version()}, {"settings", set.Summary()}});
  const auto reload = [&invocation] {
    ServeSettings fresh;
    service::OptionSet again("conclave serve", Version(), "");
    Declare(again, fresh);
    ReloadLogLevel(again, fresh.api.log, invocation);
  };
  if (settings.spawn == 0) {
    return RunApiServer(invocation, {.name = "serve"}, settings.api, *tls, reload);
  }
  const auto spawned = SpawnedCluster::Start(invocation, settings.api.engine, settings.api.log,
                                             settings.spawn, settings.api.admin_key_file);
  if (!spawned.ok()) {
    return service::Fail(spawned.status(), ExitCode::kInternal);
  }
  Membership membership({.router = {(*spawned)->router()}}, {});
  return RunApiServer(
      invocation,
      {.name = "serve", .cluster = &membership, .router_admin = (*spawned)->router_admin()},
      settings.api, *tls, reload);
}

}  // namespace conclave::cli
