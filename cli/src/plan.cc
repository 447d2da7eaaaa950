// `conclave plan`: what a router would have done with recorded traffic.
#include <string>
#include <utility>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/router_service/what_if.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/units.h"
#include "output.h"
#include "plan_report.h"
#include "trace_file.h"

namespace conclave::cli {
namespace {

using service::ExitCode;

struct PlanSettings {
  std::string trace;
  int32_t workers = 0;
  std::string without;
  int32_t add = 0;
  int32_t replicas = 0;
  service::ByteSize memory;
  std::chrono::milliseconds rebalance_interval{30'000};
  bool full = false;
  bool json = false;
};

void Declare(service::OptionSet& set, PlanSettings& settings) {
  constexpr int64_t kMany = 1024;
  set.AddPath({.name = "trace",
               .help = "recording that `conclave cluster record save` wrote",
               .unset_means = "must be given"},
              &settings.trace, service::PathKind::kAny);
  set.Add({.name = "workers",
           .help = "so many workers for the whole time, whatever came and went",
           .group = "What if",
           .unset_means = "as recorded"},
          &settings.workers, {0, kMany});
  set.Add({.name = "without",
           .help = "names of recorded workers that are gone from the start: NAME[,NAME...]",
           .group = "What if",
           .unset_means = "none"},
          &settings.without);
  set.Add({.name = "add", .help = "further, empty workers from the start", .group = "What if"},
          &settings.add, {0, kMany});
  set.Add({.name = "replicas",
           .help = "wanted replicas of every expert",
           .group = "What if",
           .unset_means = "as recorded"},
          &settings.replicas, {0, kMany});
  set.Add({.name = "memory",
           .help = "of every worker for experts",
           .group = "What if",
           .unset_means = "as recorded"},
          &settings.memory, {service::ByteSize{0}, service::ByteSize{int64_t{1} << 50}});
  set.Add({.name = "rebalance-interval",
           .help = "at least so long between two rebalances",
           .group = "What if"},
          &settings.rebalance_interval, {std::chrono::milliseconds(1), std::chrono::hours(24)});
  set.Add({.name = "full",
           .help = "plan from nothing once, as soon as there are loads of 10 s",
           .group = "What if"},
          &settings.full);
  set.Add({.name = "json", .help = "print one JSON object"}, &settings.json);
}

absl::StatusOr<router_service::WhatIfOptions> ToOptions(const PlanSettings& settings) {
  if (settings.trace.empty()) {
    return InvalidArgument("usage", "--trace: expected a recording; see conclave plan --help");
  }
  router_service::WhatIfOptions options;
  std::string rest = settings.without;
  while (!rest.empty()) {
    const size_t comma = rest.find(',');
    options.without.push_back(rest.substr(0, comma));
    rest = comma == std::string::npos ? "" : rest.substr(comma + 1);
    if (options.without.back().empty() || (comma != std::string::npos && rest.empty())) {
      return InvalidArgument("usage", "--without: expected NAME[,NAME...], found " +
                                          service::Quoted(settings.without));
    }
  }
  if (settings.workers > 0 && (!options.without.empty() || settings.add > 0)) {
    return InvalidArgument("usage",
                           "--workers: expected neither --without nor --add beside it, as it says "
                           "how many there are");
  }
  options.num_added = settings.add;
  if (settings.workers > 0) {
    options.num_workers = settings.workers;
  }
  if (settings.replicas > 0) {
    options.replication = settings.replicas;
  }
  if (settings.memory.bytes > 0) {
    options.memory_bytes = settings.memory.bytes;
  }
  options.rebalance_interval = settings.rebalance_interval;
  options.is_full = settings.full;
  return options;
}

}  // namespace

int RunPlan(const Invocation& invocation) {
  PlanSettings settings;
  service::OptionSet set("conclave plan", Version(),
                         "Replays recorded routing through the router's planner: what if?");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  const auto options = ToOptions(settings);
  if (!options.ok()) {
    return service::Fail(options.status(), ExitCode::kUsage);
  }
  const auto bytes = ReadTraceFile(settings.trace);
  if (!bytes.ok()) {
    return service::Fail(bytes.status(), ExitCode::kConfig);
  }
  const auto trace = router_service::ReadTrace(*bytes);
  if (!trace.ok()) {
    return service::Fail(Annotate(trace.status(), settings.trace), ExitCode::kConfig);
  }
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    return PrintResult("ok\n");
  }
  const auto report = router_service::ReplayWhatIf(*trace, *options);
  if (!report.ok()) {
    const bool is_of_file = ReasonOf(report.status()) == "trace_empty";
    return service::Fail(is_of_file ? Annotate(report.status(), settings.trace) : report.status(),
                         is_of_file ? ExitCode::kConfig : ExitCode::kUsage);
  }
  return PrintResult(settings.json ? PlanJson(*report) : PlanText(*report));
}

}  // namespace conclave::cli
