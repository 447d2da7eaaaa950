// The q8 GEMM with AVX-512 VNNI.
#include <type_traits>

#include "kernel_table.h"
#include "q8_panel.h"

// The order matters: each header uses the ones before it.
// clang-format off
#include "cpu/v16_avx512.inl.h"
#include "cpu/tiles.inl.h"
#include "cpu/matmul_q8.inl.h"
#include "cpu/q8_ops_avx512.inl.h"
// clang-format on

namespace conclave::kernels {

void MatMulQ8Avx512Vnni(const Q8PanelJob& job) { MatMulQ8<Q8Dot512>(job); }

}  // namespace conclave::kernels
