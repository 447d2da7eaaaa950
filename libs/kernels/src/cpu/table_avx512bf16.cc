// The AVX-512 path with bf16 dot products.
#include "kernel_table.h"
#include "q8_panel.h"

// The order matters: each header uses the ones before it.
// clang-format off
#include "cpu/v16_avx512.inl.h"
#include "cpu/math.inl.h"
#include "cpu/rows.inl.h"
#include "cpu/quantize.inl.h"
#include "cpu/activation.inl.h"
#include "cpu/attention.inl.h"
#include "cpu/tiles.inl.h"
#include "cpu/matmul.inl.h"
#include "cpu/matmul_wide.inl.h"
#include "cpu/matmul_dpbf16.inl.h"
#include "cpu/table.inl.h"
// clang-format on

namespace conclave::kernels {

const KernelTable& Avx512Bf16TableFor(bool is_dot_fast) {
  static constexpr KernelTable kFast = MakeTable(MatMulDotBf16, MatMulQ8Avx512);
  static constexpr KernelTable kSlow = MakeTable(MatMulFewDotBf16, MatMulQ8Avx512);
  return is_dot_fast ? kFast : kSlow;
}

const KernelTable& Avx512Bf16Table() {
  static const KernelTable& table = Avx512Bf16TableFor(IsDotProductFast());
  return table;
}

bool IsDotProductFast() { return DotProductIsFast(); }

bool DotProductKeepsTheOrder() { return DotProductEqualsTwoFmas(); }

}  // namespace conclave::kernels
