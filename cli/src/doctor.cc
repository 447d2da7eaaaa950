// `conclave doctor`: what this machine can do and which defaults follow.
#include "commands.h"
#include "conclave/service/exit_codes.h"
#include "doctor_report.h"
#include "output.h"

namespace conclave::cli {

int RunDoctor(const Invocation& invocation) {
  bool is_json = false;
  int32_t threads = 0;
  service::OptionSet set("conclave doctor", Version(),
                         "Says what this machine can do and which defaults follow.");
  set.Add({.name = "json", .help = "print one JSON object"}, &is_json);
  set.Add({.name = "threads",
           .help = "threads of the bandwidth measurement",
           .unset_means = "as many as a server would take"},
          &threads, {1, 1024});
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), service::ExitCode::kUsage);
  }
  switch (parsed->action) {
    case service::OptionSet::Action::kPrint:
      return PrintResult(parsed->output);
    case service::OptionSet::Action::kCheckConfig:
      return PrintResult("ok\n");
    case service::OptionSet::Action::kRun:
      break;
  }
  const DoctorReport report = Examine(threads);
  return PrintResult(is_json ? ToJson(report) : ToText(report));
}

}  // namespace conclave::cli
