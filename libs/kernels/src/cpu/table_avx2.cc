// The AVX2 and FMA path.
#include "kernel_table.h"
#include "q8_panel.h"

// The order matters: each header uses the ones before it.
// clang-format off
#include "cpu/v16_avx2.inl.h"
#include "cpu/math.inl.h"
#include "cpu/rows.inl.h"
#include "cpu/quantize.inl.h"
#include "cpu/activation.inl.h"
#include "cpu/attention.inl.h"
#include "cpu/tiles.inl.h"
#include "cpu/matmul.inl.h"
#include "cpu/matmul_wide.inl.h"
#include "cpu/table.inl.h"
// clang-format on

namespace conclave::kernels {

const KernelTable& Avx2Table() {
  static constexpr KernelTable kTable = MakeTable(MatMulWidenedBf16, MatMulQ8Avx2);
  return kTable;
}

}  // namespace conclave::kernels
