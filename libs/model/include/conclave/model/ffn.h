// A feed-forward network: a dense layer's, or one expert's. One expert is one self-contained
// object, so that it can be loaded, copied and freed alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/kernels/context.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/kernels/matmul.h"
#include "conclave/model/linear.h"
#include "conclave/model/weight_source.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

kernels::Activation ToKernel(checkpoint::ActivationKind kind);

struct FfnWeights {
  checkpoint::FfnSpec spec;
  // Gated: rows gate | up, [2F, H]. Plain: fc1, [F, H].
  kernels::PackedMatrix up;
  kernels::PackedMatrix down;    // [H, F]
  std::vector<float> up_bias;    // empty: none
  std::vector<float> down_bias;  // empty: none

  size_t size_bytes() const { return up.size_bytes() + down.size_bytes(); }
};

// size_bytes() of such weights, before they are loaded.
size_t FfnBytes(const checkpoint::FfnSpec& spec, int64_t io_dim, DType dtype);

// Packs the tensors `prefix` + names.ffn_gate/ffn_up/ffn_down + ".weight" (and ".bias" where the
// spec has biases), stored as f32, bf16 or f16, to `dtype` (kF32, kBf16 or kQ8) and releases
// their pages. `io_dim` is the width of the rows that the network reads and writes, H below.
// "tensor_missing", "tensor_shape_mismatch", "tensor_dtype", "tensor_nonfinite".
absl::StatusOr<FfnWeights> LoadFfn(const WeightSource& source, const std::string& prefix,
                                   int64_t io_dim, DType dtype, ThreadPool& pool);

// The same with the model's hidden_dim as width: a dense layer's network.
absl::StatusOr<FfnWeights> LoadFfn(const WeightSource& source, const std::string& prefix,
                                   DType dtype, ThreadPool& pool);

// Buffers of one FfnForward at a time, for up to `max_rows` rows of `io_dim` elements and networks
// of one spec and dtype.
class FfnScratch {
 public:
  FfnScratch(const checkpoint::FfnSpec& spec, int64_t io_dim, int64_t max_rows, DType dtype);

  int64_t max_rows() const { return max_rows_; }

 private:
  template <typename Element>
  friend void RunFfn(const kernels::Context&, const FfnWeights&, MatView<const Element>,
                     FfnScratch&, MatView<float>);
  // The inner rows after the activation, f32: in activated_ for a gated network, else in inner_.
  MatView<float> Activated(const kernels::Context& context, const FfnWeights& weights,
                           int64_t rows);

  int64_t max_rows_;
  AlignedBuffer inner_;      // [max_rows, 2F or F] f32
  AlignedBuffer activated_;  // [max_rows, F] f32; empty for a plain network
  GemmScratch gemm_;         // of the rows first, then of the activated ones
};

// y [rows, H] f32 = FFN of x [rows, H]; more rows than scratch.max_rows() are a broken invariant, as
// are bf16 rows with f32 weights. f32 rows are rounded or quantized as Multiply does. The activated
// inner rows are f32, and with bf16 weights rounded to bf16 once, with q8 weights quantized; sums,
// activation and biases are f32. y must not alias x. A row's bits depend on that row and the weights
// alone. No allocation.
void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const float> x,
                FfnScratch& scratch, MatView<float> y);
void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const Bf16> x,
                FfnScratch& scratch, MatView<float> y);

}  // namespace conclave::model
