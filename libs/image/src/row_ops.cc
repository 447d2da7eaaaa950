#include "row_ops.h"

#include <atomic>

#include "conclave/base/check.h"

namespace conclave::image {
namespace {

// __builtin_cpu_supports asks the operating system too, through XGETBV, whether it saves the wider
// registers.
bool IsSupported(RowPath path) {
  switch (path) {
    case RowPath::kScalar:
      return true;
    case RowPath::kAvx2:
      return __builtin_cpu_supports("avx2") != 0;
    case RowPath::kAvx512:
      return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("avx512f") != 0 &&
             __builtin_cpu_supports("avx512bw") != 0 && __builtin_cpu_supports("avx512dq") != 0 &&
             __builtin_cpu_supports("avx512vl") != 0;
  }
  CONCLAVE_CHECK(false);
}

std::atomic<const RowOps*>& Chosen() {
  static std::atomic<const RowOps*> chosen{&RowOpsOf(SupportedRowPaths().back())};
  return chosen;
}

}  // namespace

std::vector<RowPath> SupportedRowPaths() {
  std::vector<RowPath> paths;
  for (const RowPath path : {RowPath::kScalar, RowPath::kAvx2, RowPath::kAvx512}) {
    if (IsSupported(path)) {
      paths.push_back(path);
    }
  }
  return paths;
}

const RowOps& RowOpsOf(RowPath path) {
  CONCLAVE_CHECK(IsSupported(path));
  switch (path) {
    case RowPath::kScalar:
      return ScalarRowOps();
    case RowPath::kAvx2:
      return Avx2RowOps();
    case RowPath::kAvx512:
      return Avx512RowOps();
  }
  CONCLAVE_CHECK(false);
}

const RowOps& CurrentRowOps() { return *Chosen().load(std::memory_order_relaxed); }
void UseRowPath(RowPath path) { Chosen().store(&RowOpsOf(path), std::memory_order_relaxed); }

}  // namespace conclave::image
