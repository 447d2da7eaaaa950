// `conclave ask`: one answer, or a small chat, from an embedded engine or a server.
#include <unistd.h>

#include <filesystem>
#include <iostream>
#include <string>
#include <system_error>
#include <utility>

#include "backend_source.h"
#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/progress.h"
#include "conversation.h"
#include "embedded_cluster.h"
#include "engine_options.h"
#include "output.h"

namespace conclave::cli {
namespace {

using service::ExitCode;

struct AskSettings {
  EngineSettings engine;
  LogSettings log{.level = "warning", .format = "text"};
  std::string url;
  std::vector<std::string> images;
  std::vector<std::string> words;  // [IMAGE] QUESTION
  double temperature = 0.0;
  int32_t max_tokens = 0;
  int64_t seed = -1;
};

void Declare(service::OptionSet& set, AskSettings& settings) {
  set.AddPositional({.name = "[IMAGE] QUESTION",
                     .help = "a picture and what to ask; without a question: a chat",
                     .num_min = 0,
                     .num_max = 2},
                    &settings.words);
  set.AddPaths({.name = "image", .help = "picture to ask about, PNG or JPEG", .group = "Question"},
               &settings.images, service::PathKind::kExistingFile);
  set.Add({.name = "temperature", .help = "0 takes the likeliest token", .group = "Question"},
          &settings.temperature, {0.0, 2.0});
  set.Add({.name = "max-tokens",
           .help = "longest answer",
           .group = "Question",
           .unset_means = "what the context leaves"},
          &settings.max_tokens, {1, int64_t{1} << 20});
  set.Add({.name = "seed",
           .help = "makes a sampled answer repeatable",
           .group = "Question",
           .unset_means = "0 embedded, the server's choice with --url"},
          &settings.seed, {0, INT64_MAX});
  set.Add({.name = "url",
           .help = "server to ask, http://HOST:PORT",
           .group = "Question",
           .unset_means = "start an embedded engine"},
          &settings.url);
  AddEngineOptions(set, settings.engine);
  AddLogOptions(set, settings.log);
}

bool IsPicture(const std::string& word) {
  std::error_code error;
  return std::filesystem::is_regular_file(word, error);
}

// Question and first pictures out of the arguments; no question: a chat.
struct Start {
  std::optional<std::string> question;
  std::vector<std::string> images;  // contents
};

absl::StatusOr<Start> ReadStart(const AskSettings& settings) {
  std::vector<std::string> files = settings.images;
  Start start;
  if (settings.words.size() == 2) {
    files.insert(files.begin(), settings.words[0]);
    start.question = settings.words[1];
  } else if (settings.words.size() == 1 && IsPicture(settings.words[0])) {
    files.insert(files.begin(), settings.words[0]);
  } else if (settings.words.size() == 1) {
    start.question = settings.words[0];
  }
  if (start.question.has_value() && start.question->empty()) {
    return InvalidArgument("usage", "QUESTION is empty");
  }
  for (const std::string& file : files) {
    CONCLAVE_ASSIGN_OR_RETURN(std::string bytes, ReadImageFile(file));
    start.images.push_back(std::move(bytes));
  }
  return start;
}

// Streams one answer to stdout and appends it to `turns`.
absl::Status Answer(AnswerSource& source, const AskParams& params, std::vector<Turn>& turns) {
  const bool is_terminal = ::isatty(STDOUT_FILENO) == 1;
  Turn answer;
  answer.is_user = false;
  const absl::Status status = source.Ask(turns, params, [&](std::string_view piece) {
    answer.text += piece;
    return WriteStdout(is_terminal ? TerminalSafe(piece) : std::string(piece));
  });
  if (!answer.text.empty() && !absl::IsCancelled(status)) {
    CONCLAVE_RETURN_IF_ERROR(WriteStdout("\n"));
  }
  CONCLAVE_RETURN_IF_ERROR(status);
  turns.push_back(std::move(answer));
  return absl::OkStatus();
}

// Lines of stdin are questions until its end.
absl::Status Chat(AnswerSource& source, const AskParams& params, std::vector<std::string> images) {
  const bool is_terminal = ::isatty(STDIN_FILENO) == 1;
  std::vector<Turn> turns;
  while (true) {
    if (is_terminal) {
      std::cerr << "> " << std::flush;
    }
    std::string line;
    if (!std::getline(std::cin, line)) {
      return absl::OkStatus();
    }
    if (line.find_first_not_of(" \t\r") == std::string::npos) {
      continue;
    }
    turns.push_back({true, line, std::exchange(images, {})});
    CONCLAVE_RETURN_IF_ERROR(Answer(source, params, turns));
  }
}

absl::Status Talk(AnswerSource& source, const AskSettings& settings, Start start) {
  AskParams params;
  params.temperature = settings.temperature;
  params.max_tokens = settings.max_tokens;
  if (settings.seed >= 0) {
    params.seed = settings.seed;
  }
  if (!start.question.has_value()) {
    return Chat(source, params, std::move(start.images));
  }
  std::vector<Turn> turns = {{true, *start.question, std::move(start.images)}};
  return Answer(source, params, turns);
}

// Errors of a request are the user's, others the server's or the engine's.
int Finish(const absl::Status& status, ExitCode otherwise) {
  if (status.ok() || absl::IsCancelled(status)) {
    return static_cast<int>(ExitCode::kDone);
  }
  return service::Fail(status, absl::IsInvalidArgument(status) ? ExitCode::kUsage : otherwise);
}

int AskServer(const AskSettings& settings, Start start) {
  auto source = ConnectTo(settings.url);
  if (!source.ok()) {
    return Finish(source.status(), ExitCode::kNetwork);
  }
  return Finish(Talk(**source, settings, std::move(start)), ExitCode::kNetwork);
}

int AskEmbedded(const AskSettings& settings, Start start, const Invocation& invocation) {
  absl::StatusOr<EmbeddedOptions> options = ToEmbedded(settings.engine, invocation);
  if (!options.ok()) {
    return service::Fail(options.status(), ExitCode::kModel);
  }
  absl::StatusOr<std::unique_ptr<EmbeddedCluster>> cluster;
  {
    service::Progress progress(
        {.label = "loading the model",
         .is_terminal = service::IsProgressTerminal(Variable(invocation, "TERM"))});
    cluster = EmbeddedCluster::Start(*options, [&](double fraction, const std::string& what) {
      progress.Update(fraction, what);
    });
  }
  if (!cluster.ok()) {
    return service::Fail(cluster.status(), ExitCode::kModel);
  }
  BackendSource source((*cluster)->backend());
  return Finish(Talk(source, settings, std::move(start)), ExitCode::kInternal);
}

// Flags of an engine that is not started. Variables and files are shared by commands and may stay
// set.
absl::Status CheckTogether(const service::OptionSet& set, const AskSettings& settings) {
  if (settings.url.empty()) {
    return absl::OkStatus();
  }
  for (const char* name : {"model", "vision-tower", "verify-weights", "packed-weights", "workers",
                           "threads", "pin", "dtype", "isa", "kv-memory", "max-num-seqs",
                           "max-model-len", "prefill-chunk", "micro-batches", "inproc-frames"}) {
    if (set.OriginOf(name) == service::Origin::kFlag) {
      return InvalidArgument("usage", "--url and --" + std::string(name) +
                                          " contradict: the server has its own engine");
    }
  }
  return absl::OkStatus();
}

}  // namespace

int RunAsk(const Invocation& invocation) {
  AskSettings settings;
  settings.engine.threads = service::DefaultThreads(service::ReadMachine());
  settings.engine.max_num_seqs = 1;
  service::OptionSet set("conclave ask", Version(),
                         "Answers a question, with or without pictures; without one, chats.");
  Declare(set, settings);
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    return service::Fail(parsed.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kPrint) {
    return PrintResult(parsed->output);
  }
  if (const absl::Status status = CheckTogether(set, settings); !status.ok()) {
    return service::Fail(status, ExitCode::kUsage);
  }
  Apply(settings.log);
  absl::StatusOr<Start> start = ReadStart(settings);
  if (!start.ok()) {
    return service::Fail(start.status(), ExitCode::kUsage);
  }
  if (parsed->action == service::OptionSet::Action::kCheckConfig) {
    return PrintResult("ok\n");
  }
  if (!settings.url.empty()) {
    return AskServer(settings, *std::move(start));
  }
  if (const absl::Status status = SettleDtype(settings.engine, settings.engine); !status.ok()) {
    return service::Fail(status, ExitCode::kModel);
  }
  return AskEmbedded(settings, *std::move(start), invocation);
}

}  // namespace conclave::cli
