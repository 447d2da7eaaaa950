// `conclave cluster`: an operator's calls to a router.
#include <unistd.h>

#include <string>
#include <utility>

#include "cluster_report.h"
#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/router_service/admin_client.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/units.h"
#include "conclave/transport/authority.h"
#include "engine_options.h"
#include "output.h"
#include "tls_options.h"
#include "trace_file.h"

namespace conclave::cli {
namespace {

using router_service::AdminClient;
using service::ExitCode;

// What `conclave plan` reads.
constexpr size_t kRecordingBytesMax = size_t{128} << 20;

struct ClusterSettings {
  std::vector<service::Address> router{{"127.0.0.1", 7000}};
  std::vector<std::string> words;
  bool json = false;
  bool dry_run = false;
  bool full = false;
  bool undo = false;
  std::string cluster_id;
  TlsFileSettings tls;
  std::chrono::milliseconds timeout{10'000};
  LogSettings log{.level = "warning", .format = "text"};
};

void Declare(service::OptionSet& set, ClusterSettings& settings) {
  set.AddPositional(
      {.name = "ACTION",
       .help = "status, drain NAME, undrain NAME, pin LAYER:EXPERT WORKER, replicate LAYER:EXPERT "
               "N, rebalance, kill-safe NAME, record start|stop|save FILE, certs DIR",
       .num_min = 1,
       .num_max = 3},
      &settings.words);
  set.Add({.name = "router",
           .help = "control addresses of the routers; the first one that leads is asked",
           .group = "Network"},
          &settings.router);
  set.Add({.name = "json", .help = "print one JSON object"}, &settings.json);
  set.Add({.name = "dry-run", .help = "rebalance: only say what it would do"}, &settings.dry_run);
  set.Add({.name = "full", .help = "rebalance: plan from nothing, with many moves"},
          &settings.full);
  set.Add({.name = "undo", .help = "pin: take it back"}, &settings.undo);
  set.Add({.name = "cluster-id", .help = "certs: the cluster's name", .unset_means = "test"},
          &settings.cluster_id);
  set.Add({.name = "timeout", .help = "how long the router may take", .group = "Network"},
          &settings.timeout, {std::chrono::milliseconds(1), std::chrono::milliseconds(600'000)});
  AddTlsFileOptions(set, settings.tls, "the operator");
  AddLogOptions(set, settings.log);
}

// One action: how many words it takes, and what it does with a connected client. Prints and returns
// the exit code.
class Actions {
 public:
  explicit Actions(const ClusterSettings& settings) : settings_(settings) {}

  // kInvalidArgument ("usage").
  absl::Status Check() const {
    struct Shape {
      const char* name;
      size_t num_words;
      const char* usage;
    };
    constexpr Shape kShapes[] = {{"status", 1, "status"},
                                 {"drain", 2, "drain NAME"},
                                 {"undrain", 2, "undrain NAME"},
                                 {"pin", 3, "pin LAYER:EXPERT WORKER"},
                                 {"replicate", 3, "replicate LAYER:EXPERT N"},
                                 {"rebalance", 1, "rebalance [--dry-run] [--full]"},
                                 {"kill-safe", 2, "kill-safe NAME"},
                                 {"record", 0, "record start|stop|save FILE"},
                                 {"certs", 2, "certs DIR [--cluster-id NAME]"}};
    for (const Shape& shape : kShapes) {
      if (action() == shape.name) {
        const bool is_record =
            shape.num_words == 0 &&
            ((settings_.words.size() == 2 && (word(1) == "start" || word(1) == "stop")) ||
             (settings_.words.size() == 3 && word(1) == "save"));
        return settings_.words.size() == shape.num_words || is_record
                   ? absl::OkStatus()
                   : InvalidArgument("usage",
                                     std::string("expected: conclave cluster ") + shape.usage);
      }
    }
    return InvalidArgument(
        "usage", "unknown action " + service::Quoted(action()) + "; see conclave cluster --help");
  }

  absl::StatusOr<int> Run(AdminClient& client) const {
    if (action() == "status") {
      CONCLAVE_ASSIGN_OR_RETURN(const router_service::RouterStatus status, client.Status());
      return PrintResult(settings_.json ? StatusJson(status) : StatusText(status));
    }
    if (action() == "drain") {
      CONCLAVE_ASSIGN_OR_RETURN(const bool is_drained, client.Drain(word(1)));
      return Print(word(1) + (is_drained ? " is drained" : " drains"),
                   is_drained ? R"({"is_drained":true})" : R"({"is_drained":false})");
    }
    if (action() == "undrain") {
      CONCLAVE_RETURN_IF_ERROR(client.Undrain(word(1)));
      return Print(word(1) + " takes experts again", "{}");
    }
    if (action() == "rebalance") {
      CONCLAVE_ASSIGN_OR_RETURN(const router_service::RebalancePlan plan,
                                client.Rebalance(settings_.dry_run, settings_.full));
      return PrintResult(settings_.json ? RebalanceJson(plan, settings_.dry_run)
                                        : RebalanceText(plan, settings_.dry_run));
    }
    if (action() == "kill-safe") {
      CONCLAVE_ASSIGN_OR_RETURN(const std::vector<placement::ExpertUnit> at_risk,
                                client.AtRiskWithout(word(1)));
      const int printed = PrintResult(settings_.json ? KillSafeJson(word(1), at_risk)
                                                     : KillSafeText(word(1), at_risk));
      return at_risk.empty() || printed != 0 ? printed : 1;
    }
    if (action() == "record") {
      return RunRecord(client);
    }
    return RunOnExpert(client);
  }

 private:
  absl::StatusOr<int> RunRecord(AdminClient& client) const {
    if (word(1) != "save") {
      CONCLAVE_ASSIGN_OR_RETURN(
          const router_service::RecordingStatus recording,
          word(1) == "start" ? client.StartRecording() : client.StopRecording());
      return PrintResult(settings_.json ? RecordingJson(recording) : RecordingText(recording));
    }
    std::string file;
    CONCLAVE_RETURN_IF_ERROR(client.GetRecording([&](const std::string& piece) {
      file += piece;
      return file.size() <= kRecordingBytesMax
                 ? absl::OkStatus()
                 : Error(absl::StatusCode::kResourceExhausted, "http",
                         "the router sends more than a recording can be");
    }));
    CONCLAVE_RETURN_IF_ERROR(WriteTraceFile(word(2), file));
    const size_t bytes = file.size();
    return Print(word(2) + ": " + std::to_string(bytes) + " bytes",
                 R"({"bytes":)" + std::to_string(bytes) + "}");
  }

  absl::StatusOr<int> RunOnExpert(AdminClient& client) const {
    CONCLAVE_ASSIGN_OR_RETURN(const placement::ExpertUnit unit, ParseExpert(word(1)));
    Epoch epoch;
    std::string said;
    if (action() == "pin") {
      CONCLAVE_ASSIGN_OR_RETURN(epoch, client.Pin(unit, word(2), settings_.undo));
      said = ToString(unit) + (settings_.undo ? " may leave " : " stays on ") + word(2);
    } else {
      constexpr int64_t kReplicasMax = 1024;
      const auto number = service::ParseInt(word(2));
      if (!number.ok() || *number < 0 || *number > kReplicasMax) {
        return InvalidArgument("usage",
                               "expected a number of replicas, 0 for the cluster's, found " +
                                   service::Quoted(word(2)));
      }
      CONCLAVE_ASSIGN_OR_RETURN(epoch, client.Replicate(unit, static_cast<int32_t>(*number)));
      said = ToString(unit) + " gets " +
             (*number == 0 ? "the cluster's number of" : std::to_string(*number)) + " replicas";
    }
    return Print(said + ", from epoch " + ToString(epoch) + " on",
                 R"({"epoch":)" + std::to_string(epoch.value()) + "}");
  }
  int Print(const std::string& text, const std::string& json) const {
    return PrintResult((settings_.json ? json : TerminalSafe(text)) + "\n");
  }
  const std::string& action() const { return settings_.words.front(); }
  const std::string& word(size_t i) const { return settings_.words[i]; }

  const ClusterSettings& settings_;
};

// What the router refused is the request's fault, unless its reason says otherwise.
ExitCode ExitCodeOf(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  if (reason == "file_write_error" || reason == "disk_full") {
    return ExitCode::kConfig;
  }
  return absl::IsUnavailable(status) || absl::IsUnimplemented(status) ? ExitCode::kNetwork
                                                                      : ExitCode::kUsage;
}

// An authority to try mutual TLS with, good for this machine's names.
int WriteCertificates(const ClusterSettings& settings) {
  transport::AuthorityOptions options;
  if (!settings.cluster_id.empty()) {
    options.cluster = settings.cluster_id;
  }
  char host[256] = {};
  if (::gethostname(host, sizeof(host) - 1) == 0 && host[0] != '\0') {
    options.hosts.emplace_back(host);
  }
  const auto paths = transport::WriteTestAuthority(settings.words[1], options);
  if (!paths.ok()) {
    return service::Fail(paths.status(), ExitCode::kConfig);
  }
  std::string text;
  for (const std::string& path : *paths) {
    text += path + "\n";
  }
  return PrintResult(text);
}

}  // namespace

int RunCluster(const Invocation& invocation) {
  ClusterSettings settings;
  service::OptionSet set("conclave cluster", Version(), "Asks a router, or tells it what to do.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (settings.words.empty()) {
    return PrintResult("ok\n");  // --check-config without an action
  }
  const Actions actions(settings);
  if (const absl::Status status = actions.Check(); !status.ok()) {
    return service::Fail(status, ExitCode::kUsage);
  }
  Apply(settings.log);
  if (settings.words.front() == "certs") {
    return parsed->action == service::OptionSet::Action::kCheckConfig ? PrintResult("ok\n")
                                                                      : WriteCertificates(settings);
  }
  absl::StatusOr<int> result = 0;
  for (const service::Address& address : settings.router) {
    const auto client = AdminClient::Create({.address = service::ToString(address),
                                             .tls_certificate = settings.tls.certificate,
                                             .tls_key = settings.tls.key,
                                             .tls_authority = settings.tls.authority,
                                             .timeout = settings.timeout});
    if (!client.ok()) {
      return service::Fail(client.status(), ExitCode::kConfig);
    }
    if (parsed->action == service::OptionSet::Action::kCheckConfig) {
      return PrintResult("ok\n");
    }
    result = actions.Run(**client);
    // Another router is asked only where this one has done nothing.
    const std::string reason = ReasonOf(result.status());
    if (reason != "connect" && reason != "standby") {
      break;
    }
  }
  return result.ok() ? *result : service::Fail(result.status(), ExitCodeOf(result.status()));
}

}  // namespace conclave::cli
