#include "shrink.h"

#include <algorithm>
#include <utility>

namespace conclave::simulation {
namespace {

const Violation* Find(const Outcome& outcome, const std::string& invariant) {
  for (const Violation& violation : outcome.violations) {
    if (violation.invariant == invariant) {
      return &violation;
    }
  }
  return nullptr;
}

}  // namespace

Shrunk Shrink(const Plan& plan, const RunOptions& options, const std::string& invariant,
              int runs_max) {
  Shrunk best;
  best.plan = plan;
  RunOptions quiet = options;
  quiet.prints_trace = false;
  const auto violates = [&](const Plan& candidate) {
    ++best.num_runs;
    const Outcome outcome = Run(candidate, quiet);
    const Violation* violation = Find(outcome, invariant);
    if (violation != nullptr) {
      best.violation = *violation;
    }
    return violation != nullptr;
  };
  size_t parts = 1;
  while (!best.plan.faults.empty() && parts <= best.plan.faults.size() &&
         best.num_runs < runs_max) {
    const size_t count = best.plan.faults.size();
    bool is_shorter = false;
    for (size_t part = 0; part < parts && best.num_runs < runs_max; ++part) {
      Plan candidate = best.plan;
      const auto begin = candidate.faults.begin();
      candidate.faults.erase(begin + static_cast<std::ptrdiff_t>(count * part / parts),
                             begin + static_cast<std::ptrdiff_t>(count * (part + 1) / parts));
      if (violates(candidate)) {
        best.plan = std::move(candidate);
        is_shorter = true;
        break;
      }
    }
    parts = is_shorter ? std::max<size_t>(1, parts - 1) : parts * 2;
    if (!is_shorter && parts > count && parts < 2 * count) {
      parts = count;
    }
  }
  return best;
}

Found FindViolation(uint64_t first, uint64_t count, const RunOptions& options) {
  for (uint64_t seed = first; seed < first + count; ++seed) {
    const Outcome outcome = Run(PlanOf(seed), options);
    if (!outcome.violations.empty()) {
      return {seed, outcome.violations.front()};
    }
  }
  return {};
}

}  // namespace conclave::simulation
