// A whole cluster on one thread and one virtual clock: router cores with their folders, frontends
// with dispatcher, link health and link table, workers with their control core, and everything
// between them made up: links, streams, disks, weights, clients. The cores are the objects that
// production links; what wraps them here stands for threads, gRPC and files.
//
// A run has two phases. In the first the plan's faults happen; in the second everything is healed,
// one router rules, and the cluster has to come to rest. Invariants are checked as events happen
// (checks.h) and at the end. The same plan gives the same run, event by event.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "plan.h"

namespace conclave::simulation {

struct Violation {
  std::string invariant;  // "INV4"
  std::string what;
  Micros at = 0;
};

struct Outcome {
  uint64_t trace_hash = 0;
  uint64_t num_events = 0;
  uint64_t num_layers_ok = 0;  // layers that frontends ran
  uint64_t num_layers_failed = 0;
  uint64_t num_resends = 0;  // calls after the first attempt
  uint64_t num_epochs = 0;
  Micros ended_at = 0;
  std::vector<Violation> violations;  // the first of each invariant
};

struct RunOptions {
  bool prints_trace = false;   // every event to stdout
  bool stops_at_first = true;  // at the first violation
  std::string_view bug = {};   // planted (planted_bug.h and the table in bugs.h); outlives the run
};

Outcome Run(const Plan& plan, const RunOptions& options);

}  // namespace conclave::simulation
