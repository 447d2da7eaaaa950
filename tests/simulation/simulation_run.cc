// Runs the simulation of seeds, one or many, and shows what happens.
//
//   simulation_run --seed N [--trace] [--bug NAME] [--shrink]
//   simulation_run --seeds COUNT [--seed FIRST] [--bug NAME]
//
// One seed: its plan, with --trace every event, and how it ended; with --shrink the shortest list
// of faults that still violates. Many: violations and totals. Exit code 1 when there were any.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "shrink.h"

namespace conclave::simulation {
namespace {

struct Arguments {
  uint64_t first = 1;
  uint64_t count = 1;
  bool shrinks = false;
  RunOptions options;
};

bool Parse(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag == "--trace") {
      arguments.options.prints_trace = true;
    } else if (flag == "--shrink") {
      arguments.shrinks = true;
    } else if (value != nullptr && flag == "--seed") {
      arguments.first = std::strtoull(value, nullptr, 10);
      ++i;
    } else if (value != nullptr && flag == "--seeds") {
      arguments.count = std::strtoull(value, nullptr, 10);
      ++i;
    } else if (value != nullptr && flag == "--bug") {
      arguments.options.bug = value;
      ++i;
    } else {
      return false;
    }
  }
  return true;
}

void ShowShrunk(const Plan& plan, const RunOptions& options, const Violation& violation) {
  constexpr int kRunsMax = 2'000;
  const Shrunk shrunk = Shrink(plan, options, violation.invariant, kRunsMax);
  std::printf("%zu of %zu faults are enough for %s, after %d runs:\n", shrunk.plan.faults.size(),
              plan.faults.size(), violation.invariant.c_str(), shrunk.num_runs);
  for (const Fault& fault : shrunk.plan.faults) {
    std::printf("  %s\n", Describe(fault).c_str());
  }
}

int Main(const Arguments& arguments) {
  uint64_t num_events = 0;
  uint64_t num_layers = 0;
  uint64_t num_violations = 0;
  for (uint64_t seed = arguments.first; seed < arguments.first + arguments.count; ++seed) {
    const Plan plan = PlanOf(seed);
    if (arguments.count == 1) {
      std::fputs(Describe(plan).c_str(), stdout);
      for (const Fault& fault : plan.faults) {
        std::printf("  %s\n", Describe(fault).c_str());
      }
    }
    const Outcome outcome = Run(plan, arguments.options);
    num_events += outcome.num_events;
    num_layers += outcome.num_layers_ok;
    num_violations += outcome.violations.size();
    for (const Violation& violation : outcome.violations) {
      std::printf("seed %llu: %s at %.6f s: %s\n", static_cast<unsigned long long>(seed),
                  violation.invariant.c_str(), static_cast<double>(violation.at) * 1e-6,
                  violation.what.c_str());
      std::fflush(stdout);
      if (arguments.shrinks) {
        ShowShrunk(plan, arguments.options, violation);
      }
    }
    if (arguments.count == 1) {
      std::printf("trace hash %016llx, ended at %.3f s\n",
                  static_cast<unsigned long long>(outcome.trace_hash),
                  static_cast<double>(outcome.ended_at) * 1e-6);
    }
  }
  std::printf(
      "seeds %llu, events %llu, layers %llu, violations %llu\n",
      static_cast<unsigned long long>(arguments.count), static_cast<unsigned long long>(num_events),
      static_cast<unsigned long long>(num_layers), static_cast<unsigned long long>(num_violations));
  return num_violations == 0 ? 0 : 1;
}

}  // namespace
}  // namespace conclave::simulation

int main(int argc, char** argv) {
  conclave::simulation::Arguments arguments;
  if (!conclave::simulation::Parse(argc, argv, arguments)) {
    std::fputs(
        "usage: simulation_run [--seed N] [--seeds COUNT] [--trace] [--bug NAME] [--shrink]\n",
        stderr);
    return 2;
  }
  return conclave::simulation::Main(arguments);
}
