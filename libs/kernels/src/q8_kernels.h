// The q8 GEMMs of a path: apart from the table, because whether a CPU has VPDPBUSD does not follow
// from its path.
#pragma once

#include <vector>

#include "conclave/kernels/isa.h"
#include "kernel_table.h"

namespace conclave::kernels {

// Those that this CPU can run on a supported path, slowest first; TableFor takes the last.
std::vector<Q8Kernel> Q8KernelsFor(Isa isa);

}  // namespace conclave::kernels
