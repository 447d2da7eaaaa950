// The q8 GEMM with AVX2.
#include <type_traits>

#include "kernel_table.h"
#include "q8_panel.h"

// The order matters: each header uses the ones before it.
// clang-format off
#include "cpu/v16_avx2.inl.h"
#include "cpu/tiles.inl.h"
#include "cpu/matmul_q8.inl.h"
#include "cpu/q8_expand.inl.h"
#include "cpu/q8_ops_avx2.inl.h"
// clang-format on

namespace conclave::kernels {

void MatMulQ8Avx2(const Q8PanelJob& job) { MatMulQ8<Q8Madd256>(job); }

}  // namespace conclave::kernels
