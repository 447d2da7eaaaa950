// Mistakes on purpose, to prove that a test finds them: the simulation (docs/simulation.md) selects
// one by name and must come to a violation.
//
//   if (term > term_ || CONCLAVE_PLANTED_BUG("lower_term_obeyed")) {
//
// As with failpoints, the names exist only where the build defines CONCLAVE_FAILPOINTS (every
// preset but `release`); elsewhere the macro is the constant false. Nothing selects a bug but a
// test's own call: neither a flag nor a variable does.
#pragma once

#include <string_view>

#include "conclave/base/failpoint.h"

namespace conclave {

// The bug that is planted from now on, for the whole process; empty: none. Not while other threads
// run code that has bugs to plant. The view must outlive its selection.
void PlantBug(std::string_view name);

// Called by the macro.
bool IsPlantedBug(std::string_view name);

}  // namespace conclave

#define CONCLAVE_PLANTED_BUG_PICK_2(value)                                            \
  CONCLAVE_FAILPOINT_PICK_3(CONCLAVE_FAILPOINT_SHIFT_##value CONCLAVE_PLANTED_BUG_ON, \
                            CONCLAVE_PLANTED_BUG_OFF, unused)
#define CONCLAVE_PLANTED_BUG_PICK(value) CONCLAVE_PLANTED_BUG_PICK_2(value)
#define CONCLAVE_PLANTED_BUG_ON(name) ::conclave::IsPlantedBug(name)
#define CONCLAVE_PLANTED_BUG_OFF(...) false
#define CONCLAVE_PLANTED_BUG(...) CONCLAVE_PLANTED_BUG_PICK(CONCLAVE_FAILPOINTS)(__VA_ARGS__)
