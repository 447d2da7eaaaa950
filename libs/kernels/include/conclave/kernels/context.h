// What every kernel call needs: the table of the chosen ISA path and the threads to spread over.
#pragma once

#include "conclave/base/thread_pool.h"
#include "conclave/kernels/isa.h"

namespace conclave::kernels {

// The function pointers of one ISA path; defined in src/kernel_table.h, opaque outside the room.
struct KernelTable;

// The table of a supported path. The table lives for the whole process.
const KernelTable& TableFor(Isa isa);

// Cheap to copy. `pool` outlives it. Results never depend on the number of threads.
struct Context {
  const KernelTable* table = nullptr;
  ThreadPool* pool = nullptr;

  Context() = default;
  Context(Isa isa, ThreadPool& threads) : table(&TableFor(isa)), pool(&threads) {}
};

}  // namespace conclave::kernels
