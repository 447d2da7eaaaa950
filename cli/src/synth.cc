// `conclave synth`: a checkpoint with random weights in the shape of a known model.
#include "conclave/checkpoint/synth.h"

#include <string>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/progress.h"
#include "engine_options.h"
#include "output.h"

namespace conclave::cli {
namespace {

std::vector<std::string> Names() {
  std::vector<std::string> names;
  for (const std::string_view name : checkpoint::SynthNames()) {
    names.emplace_back(name);
  }
  return names;
}

struct SynthSettings {
  std::string like;
  int64_t seed = 0;
  int32_t threads = 1;
  bool is_headers_only = false;
  std::vector<std::string> folders;
  LogSettings log;
};

void Declare(service::OptionSet& set, SynthSettings& settings) {
  set.AddPositional({.name = "OUT",
                     .help = "folder to make; must not exist or be empty",
                     .num_min = 1,
                     .num_max = 1},
                    &settings.folders);
  set.AddChoice({.name = "like", .help = "model whose shape it takes", .unset_means = "none"},
                &settings.like, Names());
  set.Add({.name = "seed", .help = "the same seed gives the same bytes"}, &settings.seed,
          {0, INT64_MAX});
  set.Add({.name = "threads", .help = "threads that make weights"}, &settings.threads, {1, 1024});
  set.Add({.name = "headers-only",
           .help = "files that describe weights of full size and hold none (zeros, no disk space)"},
          &settings.is_headers_only);
  AddLogOptions(set, settings.log);
}

int Write(const SynthSettings& settings, const Invocation& invocation) {
  ThreadPool pool(settings.threads);
  service::Progress progress(
      {.label = "writing",
       .is_terminal = service::IsProgressTerminal(Variable(invocation, "TERM"))});
  checkpoint::SynthOptions options;
  options.like = settings.like;
  options.folder = settings.folders.front();
  options.seed = static_cast<uint64_t>(settings.seed);
  options.is_headers_only = settings.is_headers_only;
  options.progress = [&progress](const checkpoint::SynthProgress& done) {
    const double total = static_cast<double>(done.bytes_total);
    progress.Update(total > 0 ? static_cast<double>(done.bytes_done) / total : 1.0, "weights",
                    done.bytes_done);
  };
  const absl::Status status = checkpoint::Synthesize(options, pool);
  progress.Finish();
  return status.ok() ? PrintResult(options.folder + "\n")
                     : service::Fail(status, service::ExitCode::kModel);
}

}  // namespace

int RunSynth(const Invocation& invocation) {
  using service::ExitCode;
  SynthSettings settings;
  settings.threads = service::DefaultThreads(service::ReadMachine());
  service::OptionSet set("conclave synth", Version(),
                         "Writes a checkpoint with random weights in a known model's shape.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    return PrintResult("ok\n");
  }
  if (settings.like.empty()) {
    std::string known;
    for (const std::string& name : Names()) {
      known += (known.empty() ? "" : ", ") + name;
    }
    return service::Fail(InvalidArgument("usage", "--like is missing; expected one of " + known),
                         ExitCode::kUsage);
  }
  Apply(settings.log);
  return Write(settings, invocation);
}

}  // namespace conclave::cli
