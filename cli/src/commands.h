// The subcommands. Each parses its own arguments and returns the exit code of docs/errors.md; none
// of them throws.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/service/options.h"

namespace conclave::cli {

// What a command gets: everything from outside that it may look at.
struct Invocation {
  std::vector<std::string> args;  // behind the command's name
  service::Variables variables;   // the environment
  std::string binary;             // path of this program, links resolved
};

struct Command {
  std::string_view name;
  std::string_view summary;
  int (*run)(const Invocation& invocation);
};

int RunServe(const Invocation& invocation);
int RunFrontend(const Invocation& invocation);
int RunWorker(const Invocation& invocation);
int RunRouter(const Invocation& invocation);
int RunCluster(const Invocation& invocation);
int RunTop(const Invocation& invocation);
int RunPlan(const Invocation& invocation);
int RunAsk(const Invocation& invocation);
int RunPack(const Invocation& invocation);
int RunInspect(const Invocation& invocation);
int RunSynth(const Invocation& invocation);
int RunBench(const Invocation& invocation);
int RunDoctor(const Invocation& invocation);
int RunVersion(const Invocation& invocation);

std::span<const Command> Commands();

// Finds and runs the command that `args` (without the program's name) start with; `conclave
// --help`, `--version` and `help` are answered here.
int Dispatch(std::vector<std::string> args, service::Variables variables, std::string binary);

// CONCLAVE_VERSION of the build.
std::string Version();

}  // namespace conclave::cli
