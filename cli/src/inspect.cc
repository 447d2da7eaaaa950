// `conclave inspect`: what is in a checkpoint folder.
#include <string>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/manifest.h"
#include "conclave/checkpoint/model_summary.h"
#include "conclave/service/exit_codes.h"
#include "engine_options.h"
#include "output.h"

namespace conclave::cli {
namespace {

// Reads all weights, unlike the rest of this command.
int PrintManifest(const std::string& folder) {
  const auto opened = checkpoint::Checkpoint::Open(folder);
  if (!opened.ok()) {
    return service::Fail(opened.status(), service::ExitCode::kModel);
  }
  const auto text = checkpoint::ManifestText(**opened);
  return text.ok() ? PrintResult(*text) : service::Fail(text.status(), service::ExitCode::kModel);
}

}  // namespace

int RunInspect(const Invocation& invocation) {
  using service::ExitCode;
  std::vector<std::string> folders;
  bool is_json = false;
  bool is_manifest = false;
  int32_t num_workers = 1;
  LogSettings log{.level = "warning", .format = "text"};
  service::OptionSet set("conclave inspect", Version(),
                         "Says what is in a checkpoint folder; config.json alone is enough.");
  set.AddPositional({.name = "DIR", .help = "checkpoint folder", .num_min = 1, .num_max = 1},
                    &folders);
  set.Add({.name = "json", .help = "print one JSON object"}, &is_json);
  set.Add({.name = "manifest",
           .help = "print the hashes of config and tensors, to be kept as conclave-manifest.json"},
          &is_manifest);
  set.Add({.name = "workers", .help = "show how the experts spread over so many workers"},
          &num_workers, {1, 1'000'000});
  AddLogOptions(set, log);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (folders.empty()) {
    return PrintResult("ok\n");  // --check-config without a folder: there is no more to open.
  }
  Apply(log);
  if (is_manifest && parsed->action == service::OptionSet::Action::kRun) {
    return PrintManifest(folders.front());
  }
  const bool is_check = parsed->action == service::OptionSet::Action::kCheckConfig;
  const auto summary = checkpoint::Inspect(folders.front(), num_workers);
  if (!summary.ok()) {
    return service::Fail(summary.status(), is_check ? ExitCode::kConfig : ExitCode::kModel);
  }
  if (is_check) {
    return PrintResult("ok\n");
  }
  std::string text = is_json ? checkpoint::ToJson(*summary) : checkpoint::ToText(*summary);
  if (!text.ends_with('\n')) {
    text += '\n';
  }
  return PrintResult(text);
}

}  // namespace conclave::cli
