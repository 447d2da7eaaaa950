// The shortest list of faults that still violates an invariant.
#pragma once

#include <string>
#include <string_view>

#include "plan.h"
#include "world.h"

namespace conclave::simulation {

struct Shrunk {
  Plan plan;
  Violation violation;
  int num_runs = 0;
};

// Delta debugging (Zeller and Hildebrandt, ddmin) over plan.faults: drops parts of the list, halves
// first, as long as a run violates `invariant` all the same, at most `runs_max` runs. `plan` itself
// must violate it.
Shrunk Shrink(const Plan& plan, const RunOptions& options, const std::string& invariant,
              int runs_max);

// Runs the plans of seeds from `first` on until one violates: its seed, or 0 when none of `count`
// does.
struct Found {
  uint64_t seed = 0;
  Violation violation;
};
Found FindViolation(uint64_t first, uint64_t count, const RunOptions& options);

}  // namespace conclave::simulation
