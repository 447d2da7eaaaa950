// y = x · Wᵀ + b over packed weights, with a fixed order of every sum.
//
// The bit contract (docs/decisions/0003-same-bits.md). y[m, n] is one chain over k in ascending
// order, started at 0:
//   f32   acc = fma(x[m, k], w[n, k], acc)                                              for k = 0,
//   1, 2, ...
//   bf16  acc = fma(x[m, 2j+1], w[n, 2j+1], acc); acc = fma(x[m, 2j], w[n, 2j], acc)    for j = 0,
//   1, 2, ...
// (the order of VDPBF16PS on Zen 4), all in f32, round to nearest even, denormals flushed; K is
// padded with zeros to a multiple of 2. Then y = acc + b[n]. A row's bits therefore depend on that
// row and the weights alone: never on M, the neighbours, the tile, the thread count or the ISA
// path. There is no split-K.
#pragma once

#include <cstdint>
#include <span>

#include "conclave/kernels/context.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/kernels/quantize.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/shared_bytes.h"
#include "conclave/tensor/view.h"

namespace conclave::kernels {

// Output columns of one panel: four 512-bit vectors of f32.
inline constexpr int64_t kPanelColumns = 64;

// Raised with every change of what the bytes of a panel mean, of any dtype: files keep panels, and
// those of another revision are refused.
inline constexpr int32_t kPanelRevision = 1;

// Weights of a linear layer, packed once at load into panels of kPanelColumns outputs:
//   f32   panel[k][64]
//   bf16  panel[k / 2][64][2]      pairs along k, as VDPBF16PS wants them
// Rows beyond n and elements beyond k are zero. Immutable after packing; then shared freely between
// threads.
class PackedMatrix {
 public:
  PackedMatrix() = default;
  // A matrix of `n` outputs and `k` inputs; `dtype` is kF32 or kBf16. All zero until packed.
  PackedMatrix(int64_t n, int64_t k, DType dtype);

  // A matrix whose panels lie in `panels`, BytesOf(n, k, dtype) bytes as PackRows left them in
  // another of these sizes, 64-byte aligned. Shares their memory and is never packed into.
  static PackedMatrix Borrow(int64_t n, int64_t k, DType dtype, SharedBytes panels);

  // Packs rows [first_row, first_row + source.rows) from a row-major source [rows, k], converting
  // to this matrix's dtype (bf16: round to nearest even). Disjoint row ranges may be packed one
  // after another, not at once: two ranges can share a panel.
  void PackRows(int64_t first_row, MatView<const float> source, ThreadPool& pool);
  void PackRows(int64_t first_row, MatView<const Bf16> source, ThreadPool& pool);
  // IEEE half sources, as bit patterns.
  void PackRowsF16(int64_t first_row, MatView<const uint16_t> source, ThreadPool& pool);

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  DType dtype() const { return dtype_; }
  int64_t num_panels() const { return (n_ + kPanelColumns - 1) / kPanelColumns; }
  // Bytes of one panel; panels lie one after another, 64-byte aligned.
  int64_t panel_bytes() const;
  const std::byte* Panel(int64_t panel) const { return bytes().data() + panel * panel_bytes(); }
  // All panels.
  std::span<const std::byte> bytes() const {
    return borrowed_.size_bytes() > 0
               ? borrowed_.bytes()
               : std::span<const std::byte>(buffer_.As<std::byte>(), buffer_.size_bytes());
  }
  size_t size_bytes() const { return bytes().size(); }
  // size_bytes() of such a matrix.
  static size_t BytesOf(int64_t n, int64_t k, DType dtype);

 private:
  int64_t n_ = 0;
  int64_t k_ = 0;
  DType dtype_ = DType::kF32;
  AlignedBuffer buffer_;  // empty where the panels are borrowed
  SharedBytes borrowed_;
};

// x [M, K] with the dtype of w; y [M, N] f32, overwritten; must not alias x. `bias` is empty or
// [N].
void MatMul(const Context& context, MatView<const float> x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y);
void MatMul(const Context& context, MatView<const Bf16> x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y);
// w is kQ8; x [M, K] as Q8Scratch left it.
void MatMul(const Context& context, const Q8Rows& x, const PackedMatrix& w,
            std::span<const float> bias, MatView<float> y);

// One product of several. X is MatView<const float>, MatView<const Bf16> or Q8Rows. Does not own.
template <typename X>
struct Product {
  X x;  // [M, K]; M may be 0
  const PackedMatrix* w = nullptr;
  std::span<const float> bias;  // empty or [N]
  MatView<float> y;             // [M, N], overwritten
};

// Products that do not read each other's results, as one loop over the threads: the experts of a
// layer with the rows that were sent to each, say. Each has the bits that MatMul gives it alone.
void MatMulAll(const Context& context, std::span<const Product<MatView<const float>>> products);
void MatMulAll(const Context& context, std::span<const Product<MatView<const Bf16>>> products);
void MatMulAll(const Context& context, std::span<const Product<Q8Rows>> products);

// Where activated rows go, in the form that the next product reads. The first of bf16, q8 and f32
// that has memory is written.
struct ActivatedRows {
  MatView<Bf16> bf16{};
  Q8Rows q8{};
  MatView<float> f32{};
};

// Whether MatMulActivated can take gate|up rows stacked in `gate_up`: gate and up both whole
// panels.
bool CanActivateGated(const PackedMatrix& gate_up);

// The first half of feed-forward networks: products as MatMulAll, each followed within its tasks by
// the activation, while the sums are in the cache: outs[i] [M, F] = act(y) with F = N, or gated
// act(y[:, :F]) · y[:, F:] with N = 2F and CanActivateGated(w). y is scratch and left with
// anything. The bits are those of MatMul, Activate or GatedActivate, and RoundToBf16 or
// Q8Scratch::Quantize.
void MatMulActivated(const Context& context, Activation activation, bool is_gated,
                     std::span<const Product<MatView<const float>>> products,
                     std::span<const ActivatedRows> outs);
void MatMulActivated(const Context& context, Activation activation, bool is_gated,
                     std::span<const Product<MatView<const Bf16>>> products,
                     std::span<const ActivatedRows> outs);
void MatMulActivated(const Context& context, Activation activation, bool is_gated,
                     std::span<const Product<Q8Rows>> products,
                     std::span<const ActivatedRows> outs);

}  // namespace conclave::kernels
