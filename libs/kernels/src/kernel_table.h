// The single-thread range kernels of one ISA path, as plain function pointers.
//
// Every path is one translation unit (cpu/table_*.cc) compiled with its own -m flags from the same
// *.inl.h files. Only raw pointers and these structs cross the border, and everything inside has
// internal linkage: an inline function shared with other files could be emitted with AVX-512 in it
// and picked by the linker for the scalar path as well.
//
// Callers run all of these with FTZ and DAZ set (ThreadPool::ParallelFor does). bf16 is passed as
// its 16 bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace conclave::kernels {

// Rows of x times consecutive weight panels: y[r, c] for c < cols.
struct PanelJob {
  const void* x = nullptr;  // f32 or bf16 [rows, k]
  int64_t x_stride = 0;
  int64_t rows = 0;
  int64_t k = 0;
  const void* panel = nullptr;  // the first one, as PackedMatrix says
  int64_t panel_bytes = 0;      // from one to the next
  const void* next = nullptr;   // the panel that this thread likely reads after these, or null
  int64_t cols = 0;             // columns that exist, of all panels together; at least 1
  const float* bias = nullptr;  // [cols] or null
  float* y = nullptr;           // [rows, cols], stride y_stride
  int64_t y_stride = 0;
};

// Quantized rows times one q8 weight panel (q8_panel.h): y[r, c] for c < cols.
struct Q8PanelJob {
  const int8_t* x = nullptr;      // [rows, num_blocks · 32]
  const float* scales = nullptr;  // [rows, num_blocks]
  const int32_t* sums = nullptr;  // [rows, num_blocks]
  int64_t rows = 0;
  int64_t num_blocks = 0;
  const void* panel = nullptr;
  int64_t cols = 0;             // of this panel that exist, 1..64
  const float* bias = nullptr;  // [cols] or null
  float* y = nullptr;           // [rows, cols], stride y_stride
  int64_t y_stride = 0;
};

inline constexpr int kAttendItemsMax = 8;

// Up to kAttendItemsMax queries (a row and a head each) that read the same KV head through the same
// block table.
struct AttendTile {
  int num_items = 0;
  const float* q[kAttendItemsMax] = {};
  float* out[kAttendItemsMax] = {};
  int64_t first[kAttendItemsMax] = {};
  int64_t last[kAttendItemsMax] = {};
  const std::byte* base = nullptr;  // of the KV head inside block 0
  size_t block_stride = 0;          // bytes
  const int32_t* block_table = nullptr;
  int64_t head_dim = 0;
  int64_t value_stride = 0;
  float scale = 1.0f;
  bool is_bf16 = false;
};

inline constexpr int kNumActivations = 4;  // In the order of enum Activation.

struct KernelTable {
  void (*matmul_f32)(const PanelJob& job);
  void (*matmul_bf16)(const PanelJob& job);
  void (*matmul_q8)(const Q8PanelJob& job);
  // One row of n elements into whole blocks, as quantize.h says.
  void (*quantize_f32)(const float* x, int64_t n, int8_t* values, float* scales, int32_t* sums);
  void (*quantize_bf16)(const uint16_t* x, int64_t n, int8_t* values, float* scales, int32_t* sums);

  // One row of n elements each. `bias` may be null.
  void (*layer_norm)(const float* x, int64_t n, const float* weight, const float* bias, float eps,
                     float* y);
  void (*rms_norm)(const float* x, int64_t n, const float* weight, float eps, float* y);
  void (*softmax)(float* x, int64_t n);
  void (*round_to_bf16)(const float* x, int64_t n, uint16_t* y);
  void (*widen_bf16)(const uint16_t* x, int64_t n, float* y);
  void (*add_scaled)(const float* x, int64_t n, float scale, float* y);
  void (*add_term)(const float* y, int64_t n, float weight, bool is_first, bool is_rounded,
                   float* sum);
  void (*activate[kNumActivations])(float* x, int64_t n);
  void (*gated_activate[kNumActivations])(const float* gate, const float* up, int64_t n,
                                          float* out);
  // All heads of one row; cos, sin [half].
  void (*rotate_half_split)(const float* cos, const float* sin, int64_t half, int64_t num_heads,
                            int64_t head_dim, float* x);
  // out[e] = dot(x, weight[e, :]) for e < num_outputs.
  void (*dot_rows)(const float* x, int64_t n, const float* weight, int64_t weight_stride,
                   int64_t num_outputs, float* out);

  void (*attend)(const AttendTile& tile);
  // Items per tile that suit the registers of this path.
  int attend_items;
};

// Expects a CPU with AVX2, whose test answers for the registers. Read from CPUID itself: compilers
// of this age do not know the word.
bool HasAvxVnni();

// The q8 GEMMs, each a file with its own instruction set. All give the same bits.
using Q8Kernel = void (*)(const Q8PanelJob& job);
void MatMulQ8Scalar(const Q8PanelJob& job);
void MatMulQ8Avx2(const Q8PanelJob& job);
void MatMulQ8AvxVnni(const Q8PanelJob& job);
void MatMulQ8Avx512(const Q8PanelJob& job);
void MatMulQ8Avx512Vnni(const Q8PanelJob& job);

// The tables hold the q8 GEMM that needs nothing beyond the path.
const KernelTable& ScalarTable();
const KernelTable& Avx2Table();
const KernelTable& Avx512Table();
const KernelTable& Avx512Bf16Table();
// The same for a CPU whose VDPBF16PS does as much per cycle as two FMAs, and for one where it does
// not: there only the few rows that wait for memory use it. The bits are the same.
const KernelTable& Avx512Bf16TableFor(bool is_dot_fast);

// Whether VDPBF16PS of this CPU adds the odd product first, then the even one, each as a fused
// multiply-add that flushes denormals. The ISA manuals leave the order of the two additions open to
// the maker, and the bits of the bf16 GEMM hang on it. Call only on a CPU with AVX-512-BF16.
bool DotProductKeepsTheOrder();

// Whether VDPBF16PS is worth more than the widening it saves; measured, some 50 us. AMD's Zen 4 and
// 5 issue it like an FMA, Intel's CPUs up to Emerald Rapids at half that rate.
bool IsDotProductFast();

}  // namespace conclave::kernels
