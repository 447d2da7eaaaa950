#include <utility>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"
#include "output.h"
#include "spawned_cluster.h"

namespace conclave::cli {
namespace {

constexpr Command kCommands[] = {
    {"serve", "serve a model over an OpenAI-compatible HTTP API, all in one process", &RunServe},
    {"frontend", "serve a model whose experts are on the workers of a cluster", &RunFrontend},
    {"worker", "hold experts of a model and compute for the frontends of a cluster", &RunWorker},
    {"router", "tell workers and frontends who is there and who holds which expert", &RunRouter},
    {"cluster", "ask a router, or tell it what to do: status, drain, pin, ...", &RunCluster},
    {"top", "show what a cluster does, live: workers, experts, rates, events", &RunTop},
    {"plan", "replay recorded routing through the router's planner: what if?", &RunPlan},
    {"ask", "ask one question, with or without images, or chat", &RunAsk},
    {"inspect", "say what is in a checkpoint folder", &RunInspect},
    {"pack", "write a model folder whose weights need no work at start", &RunPack},
    {"synth", "write a checkpoint with random weights in a known model's shape", &RunSynth},
    {"bench", "measure how fast a model is here, beside the machine's bounds", &RunBench},
    {"doctor", "say what this machine can do and which defaults follow", &RunDoctor},
    {"version", "print the version", &RunVersion},
};

std::string GlobalHelp() {
  constexpr size_t kColumn = 12;
  std::string out =
      "Usage: conclave COMMAND [options]\n\n"
      "Serves mixture-of-experts vision-language models.\n\nCommands:\n";
  for (const Command& command : kCommands) {
    std::string name(command.name);
    name.resize(kColumn, ' ');
    out += "  " + name + std::string(command.summary) + "\n";
  }
  return out + "\n`conclave COMMAND --help` shows the options of a command.\n";
}

}  // namespace

std::span<const Command> Commands() { return kCommands; }

std::string Version() { return CONCLAVE_VERSION; }

int Dispatch(std::vector<std::string> args, service::Variables variables, std::string binary) {
  using service::ExitCode;
  if (args.empty()) {
    return service::Fail(InvalidArgument("usage", "a command is missing; see conclave --help"),
                         ExitCode::kUsage);
  }
  const std::string name = args.front();
  if (name == "--help" || name == "-h" || name == "help") {
    return PrintResult(GlobalHelp());
  }
  if (name == "--version") {
    return PrintResult("conclave " + Version() + "\n");
  }
  if (name == "spawned") {
    args.erase(args.begin());
    return RunSpawned({std::move(args), std::move(variables), std::move(binary)});
  }
  std::vector<std::string> names;
  for (const Command& command : kCommands) {
    if (name == command.name) {
      args.erase(args.begin());
      return command.run({std::move(args), std::move(variables), std::move(binary)});
    }
    names.emplace_back(command.name);
  }
  const std::string near = service::NearestWord(name, names);
  return service::Fail(
      InvalidArgument(
          "usage", "unknown command " + service::Quoted(name) +
                       (near.empty() ? "; see conclave --help" : "; did you mean " + near + "?")),
      ExitCode::kUsage);
}

}  // namespace conclave::cli
