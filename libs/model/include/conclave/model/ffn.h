// A feed-forward network: a dense layer's, or one expert's. One expert is one self-contained
// object, so that it can be loaded, copied and freed alone.
#pragma once

#include <cstdint>
#include <span>
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

// Rows for one network: y [rows, H] f32 = FFN of x [rows, H]. Does not own. Element is float or
// Bf16.
template <typename Element>
struct FfnCall {
  const FfnWeights* weights = nullptr;
  MatView<const Element> x;
  MatView<float> y;  // must not alias x
};

// Buffers of one FfnForward at a time, for up to `max_rows` rows of `io_dim` elements and networks
// of one spec and dtype.
class FfnScratch {
 public:
  FfnScratch(const checkpoint::FfnSpec& spec, int64_t io_dim, int64_t max_rows, DType dtype);

  int64_t max_rows() const { return max_rows_; }

 private:
  friend class FfnRun;

  int64_t max_rows_;
  AlignedBuffer inner_;          // [max_rows, 2F or F] f32
  AlignedBuffer activated_f32_;  // [max_rows, F]; empty where nothing needs them
  GemmScratch input_;            // x as its products read it
  GemmScratch activated_;        // likewise the activated rows
};

// Networks of one spec and dtype, each for its rows, all in two loops over the threads: the rows
// that were sent to the experts of a layer, sorted by expert. More rows together than
// scratch.max_rows() are a broken invariant, as are bf16 rows with f32 weights. f32 rows are
// rounded or quantized as Multiply does; so are the activated inner rows, which are f32 before.
// Sums, activation and biases are f32. A row's bits depend on that row and the weights alone. No
// allocation.
void FfnForwardAll(const kernels::Context& context, std::span<const FfnCall<float>> calls,
                   FfnScratch& scratch);
void FfnForwardAll(const kernels::Context& context, std::span<const FfnCall<Bf16>> calls,
                   FfnScratch& scratch);

// The same for one network.
void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const float> x,
                FfnScratch& scratch, MatView<float> y);
void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const Bf16> x,
                FfnScratch& scratch, MatView<float> y);

}  // namespace conclave::model
