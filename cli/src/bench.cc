// `conclave bench`: how fast a model is on this machine, beside what the machine could do.
#include <algorithm>
#include <charconv>
#include <span>
#include <string>
#include <utility>

#include "bench_run.h"
#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/progress.h"
#include "conclave/service/units.h"
#include "conversation.h"
#include "engine_options.h"
#include "output.h"

namespace conclave::cli {
namespace {

using service::ExitCode;

struct Kind {
  std::string_view name;
  BenchKind kind;
  std::string_view summary;
};

constexpr Kind kKinds[] = {
    {"decode", BenchKind::kDecode, "one stream: tokens per second, share of the read bandwidth"},
    {"prefill", BenchKind::kPrefill, "a prompt: tokens per second, share of the arithmetic peak"},
    {"step", BenchKind::kStep, "a token of many streams at once, share of the longer bound"},
    {"image", BenchKind::kImage, "a picture: preparing it, and the vision tower"},
    {"load", BenchKind::kLoad, "from nothing to the first token"},
};

struct BenchSettings : ModelSettings, ComputeSettings {
  int32_t repeat = 5;
  int32_t context = 512;
  int32_t tokens = 32;
  std::string rows = "1,4,8,16,64";
  int32_t prompt = 512;
  int32_t prefill_chunk = 512;
  std::string image;
  bool bounds = true;
  bool json = false;
  LogSettings log{.level = "warning", .format = "text"};
};

constexpr int64_t kMany = int64_t{1} << 20;

void DeclareStream(service::OptionSet& set, BenchSettings& settings) {
  set.Add({.name = "context",
           .help = "positions of a stream before the first measured step; the default is lowered "
                   "to what the model has room for",
           .group = "Measurement"},
          &settings.context, {0, kMany});
  set.Add({.name = "tokens", .help = "steps of a round", .group = "Measurement"}, &settings.tokens,
          {1, kMany});
}

void Declare(service::OptionSet& set, BenchKind kind, BenchSettings& settings) {
  AddModelOptions(set, settings);
  AddComputeOptions(set, settings);
  set.Add({.name = "repeat", .help = "rounds", .group = "Measurement"}, &settings.repeat,
          {1, 10'000});
  switch (kind) {
    case BenchKind::kDecode:
      DeclareStream(set, settings);
      break;
    case BenchKind::kStep:
      // 64 streams of a long context have more keys and values than the model has weights.
      settings.context = 64;
      settings.tokens = 8;
      DeclareStream(set, settings);
      set.Add({.name = "rows",
               .help = "streams of each case: N[,N...], each 1 to 4096",
               .group = "Measurement"},
              &settings.rows);
      break;
    case BenchKind::kPrefill:
      set.Add({.name = "prompt", .help = "tokens of the prompt", .group = "Measurement"},
              &settings.prompt, {1, kMany});
      set.Add(
          {.name = "prefill-chunk", .help = "prompt tokens in one step", .group = "Measurement"},
          &settings.prefill_chunk, {1, 8192});
      break;
    case BenchKind::kImage:
      set.AddPath({.name = "image",
                   .help = "picture to prepare, which is decoded too",
                   .group = "Measurement",
                   .unset_means = "a made-up one of 1280 by 960 pixels, not decoded"},
                  &settings.image, service::PathKind::kExistingFile);
      break;
    case BenchKind::kLoad:
      settings.repeat = 3;
      break;
  }
  set.Add({.name = "bounds",
           .help = "measure the machine's bounds before and after every round; off, rounds follow "
                   "each other at once and have no shares",
           .group = "Measurement"},
          &settings.bounds);
  set.Add({.name = "json", .help = "print one JSON object"}, &settings.json);
  AddLogOptions(set, settings.log);
}

// "1,4,8" as numbers.
absl::StatusOr<std::vector<int32_t>> RowsOf(const std::string& text) {
  constexpr int32_t kRowsMax = 4096;
  std::vector<int32_t> rows;
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  while (true) {
    int32_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    const bool is_last = next == end;
    if (error != std::errc() || value < 1 || value > kRowsMax || (!is_last && *next != ',') ||
        rows.size() == 64) {
      return InvalidArgument("usage", "--rows: expected N[,N...], at most 64 numbers of 1 to " +
                                          std::to_string(kRowsMax) + ", found " +
                                          service::Quoted(text));
    }
    rows.push_back(value);
    if (is_last) {
      return rows;
    }
    at = next + 1;
  }
}

absl::StatusOr<BenchOptions> ToOptions(BenchKind kind, const service::OptionSet& set,
                                       const BenchSettings& settings,
                                       const Invocation& invocation) {
  BenchOptions options;
  options.kind = kind;
  CONCLAVE_ASSIGN_OR_RETURN(options.isa, ResolveIsaFlag(settings));
  CONCLAVE_ASSIGN_OR_RETURN(options.rows, RowsOf(settings.rows));
  CONCLAVE_ASSIGN_OR_RETURN(options.model_dir, ModelFolder(settings, invocation));
  options.vision_tower = settings.vision_tower;
  options.require_manifest = settings.require_manifest;
  options.dtype = DtypeOf(settings);
  options.threads = settings.threads;
  options.repeat = settings.repeat;
  options.has_bounds = settings.bounds;
  options.context = settings.context;
  if (kind == BenchKind::kDecode || kind == BenchKind::kStep) {
    options.is_context_default = set.OriginOf("context") == service::Origin::kDefault;
  }
  options.tokens = settings.tokens;
  options.prompt = settings.prompt;
  options.chunk = settings.prefill_chunk;
  if (!settings.image.empty()) {
    CONCLAVE_ASSIGN_OR_RETURN(options.image, ReadImageFile(settings.image));
  }
  return options;
}

int RunKind(const Kind& kind, const Invocation& invocation) {
  BenchSettings settings;
  settings.threads = service::DefaultThreads(service::ReadMachine());
  service::OptionSet set("conclave bench " + std::string(kind.name), Version(),
                         "Measures " + std::string(kind.summary) + ".");
  Declare(set, kind.kind, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  Apply(settings.log);
  const auto options = ToOptions(kind.kind, set, settings, invocation);
  if (!options.ok()) {
    return service::Fail(options.status(), ExitCode::kModel);
  }
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    const auto opened =
        Assembly::Open(options->model_dir, options->vision_tower, options->require_manifest);
    return opened.ok() ? PrintResult("ok\n") : service::Fail(opened.status(), ExitCode::kConfig);
  }
  service::Progress progress(
      {.label = "loading",
       .is_terminal = service::IsProgressTerminal(Variable(invocation, "TERM"))});
  auto report = Measure(*options, [&progress](double fraction, const std::string& what) {
    progress.Update(fraction, what);
    if (fraction >= 1.0) {
      progress.Finish();
    }
  });
  progress.Finish();
  if (!report.ok()) {
    return service::Fail(report.status(), ExitCode::kModel);
  }
  report->bench = std::string(kind.name);
  report->version = Version();
  report->compiler = CONCLAVE_COMPILER;
  report->build_flags = CONCLAVE_BUILD_FLAGS;
  return PrintResult(settings.json ? ToJson(*report) : ToText(*report));
}

std::string Help() {
  std::string out =
      "Usage: conclave bench KIND [options]\n\n"
      "Measures how fast a model is on this machine, beside the machine's own bounds of the same "
      "run.\n\nKinds:\n";
  for (const Kind& kind : kKinds) {
    std::string name(kind.name);
    name.resize(10, ' ');
    out += "  " + name + std::string(kind.summary) + "\n";
  }
  return out + "\n`conclave bench KIND --help` shows the options of a kind.\n";
}

}  // namespace

int RunBench(const Invocation& invocation) {
  const std::string name = invocation.args.empty() ? "" : invocation.args.front();
  if (name == "--help" || name == "-h") {
    return PrintResult(Help());
  }
  if (name == "--version") {
    return PrintResult("conclave " + Version() + "\n");
  }
  for (const Kind& kind : kKinds) {
    if (name == kind.name) {
      return RunKind(kind, {{invocation.args.begin() + 1, invocation.args.end()},
                            invocation.variables,
                            invocation.binary});
    }
  }
  return service::Fail(
      InvalidArgument("usage", "conclave bench: expected decode, prefill, step, image or load, " +
                                   (name.empty() ? std::string("found nothing")
                                                 : "found " + service::Quoted(name))),
      ExitCode::kUsage);
}

}  // namespace conclave::cli
