// The instruction-set paths of the kernels. One is chosen per process at start; the bits of a
// result are promised within one path (architecture, section 8) and, for everything built so far,
// are the same on all of them (docs/decisions/0003-same-bits.md,
// tests/unit/kernels/isa_equality_test.cc).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::kernels {

// Raised with every change of a kernel's result bits: processes with different ones do not share a
// cluster.
inline constexpr uint32_t kKernelRevision = 1;

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16 };

// "scalar", "avx2", "avx512", "avx512-bf16": the words of --isa and CONCLAVE_ISA.
std::string_view NameOf(Isa isa);

// Whether this CPU (and the kernel's saved register state) can run `isa`. kAvx512Bf16 also has to
// pass a short check that VDPBF16PS adds in the order of matmul.h; a CPU that fails it runs
// kAvx512, with the same bits.
bool IsSupported(Isa isa);

// All paths this machine can run, slowest first; kScalar is always there.
std::vector<Isa> SupportedIsas();

// "auto" (the fastest supported) or a name. kInvalidArgument (isa_unknown) for another word;
// kFailedPrecondition (isa_unsupported) when the CPU lacks it.
absl::StatusOr<Isa> ResolveIsa(std::string_view word);

}  // namespace conclave::kernels
