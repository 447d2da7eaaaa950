#include "conclave/kernels/isa.h"

#include <cpuid.h>

#include <array>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/kernels/context.h"
#include "kernel_table.h"
#include "q8_kernels.h"

namespace conclave::kernels {
namespace {

constexpr std::array kAllIsas = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

// __builtin_cpu_supports reads CPUID and, through XGETBV, whether the operating system saves the
// wider registers.
bool HasAvx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool HasAvx512Bf16() {
  static const bool has = [] {
    const DenormalsOff denormals_off;
    return HasAvx512() && __builtin_cpu_supports("avx512bf16") && DotProductKeepsTheOrder();
  }();
  return has;
}
KernelTable WithFastestQ8(KernelTable table, Isa isa) {
  table.matmul_q8 = Q8KernelsFor(isa).back();
  return table;
}

}  // namespace

bool HasAvxVnni() {
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && eax >= 1 &&
         __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax >> 4 & 1u) != 0;
}

std::string_view NameOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512-bf16";
  }
  CONCLAVE_CHECK(false);
}

bool IsSupported(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return true;
    case Isa::kAvx2:
      return HasAvx2();
    case Isa::kAvx512:
      return HasAvx512();
    case Isa::kAvx512Bf16:
      return HasAvx512Bf16();
  }
  CONCLAVE_CHECK(false);
}

std::vector<Isa> SupportedIsas() {
  std::vector<Isa> isas;
  for (const Isa isa : kAllIsas) {
    if (IsSupported(isa)) {
      isas.push_back(isa);
    }
  }
  return isas;
}

absl::StatusOr<Isa> ResolveIsa(std::string_view word) {
  if (word == "auto") {
    return SupportedIsas().back();
  }
  for (const Isa isa : kAllIsas) {
    if (word != NameOf(isa)) {
      continue;
    }
    if (!IsSupported(isa)) {
      return Error(absl::StatusCode::kFailedPrecondition, "isa_unsupported",
                   "--isa: this CPU cannot run " + std::string(word) + "; expected at most " +
                       std::string(NameOf(SupportedIsas().back())) + ", found " +
                       std::string(word));
    }
    return isa;
  }
  return InvalidArgument("isa_unknown",
                         "--isa: unknown instruction set; expected auto, scalar, avx2, avx512 or "
                         "avx512-bf16, found \"" +
                             std::string(word) + "\"");
}

std::vector<Q8Kernel> Q8KernelsFor(Isa isa) {
  CONCLAVE_CHECK(IsSupported(isa));
  std::vector<Q8Kernel> kernels;
  switch (isa) {
    case Isa::kScalar:
      return {MatMulQ8Scalar};
    case Isa::kAvx2:
      kernels = {MatMulQ8Avx2};
      if (HasAvxVnni()) {
        kernels.push_back(MatMulQ8AvxVnni);
      }
      return kernels;
    case Isa::kAvx512:
    case Isa::kAvx512Bf16:
      kernels = {MatMulQ8Avx512};
      if (__builtin_cpu_supports("avx512vnni")) {
        kernels.push_back(MatMulQ8Avx512Vnni);
      }
      return kernels;
  }
  CONCLAVE_CHECK(false);
}

const KernelTable& TableFor(Isa isa) {
  CONCLAVE_CHECK(IsSupported(isa));
  switch (isa) {
    case Isa::kScalar:
      return ScalarTable();
    case Isa::kAvx2: {
      static const KernelTable table = WithFastestQ8(Avx2Table(), isa);
      return table;
    }
    case Isa::kAvx512: {
      static const KernelTable table = WithFastestQ8(Avx512Table(), isa);
      return table;
    }
    case Isa::kAvx512Bf16: {
      static const KernelTable table = WithFastestQ8(Avx512Bf16Table(), isa);
      return table;
    }
  }
  CONCLAVE_CHECK(false);
}

}  // namespace conclave::kernels
