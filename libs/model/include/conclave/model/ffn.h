// A feed-forward network: a dense layer's, or one expert's. One expert is one self-contained object, so that it can be
// loaded, copied and freed alone.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/kernels/context.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/kernels/matmul.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

kernels::Activation ToKernel(checkpoint::ActivationKind kind);

struct FfnWeights {
  checkpoint::FfnSpec spec;
  // Gated: rows gate | up, [2F, H]. Plain: fc1, [F, H].
  kernels::PackedMatrix up;
  kernels::PackedMatrix down;  // [H, F]
  std::vector<float> up_bias;    // empty: none
  std::vector<float> down_bias;  // empty: none

  size_t size_bytes() const { return up.size_bytes() + down.size_bytes(); }
};

// Packs the tensors `prefix` + names.ffn_gate/up/down + ".weight" to `dtype` and releases their pages.
absl::StatusOr<FfnWeights> LoadFfn(const checkpoint::Checkpoint& checkpoint, const std::string& prefix,
                                   DType dtype, ThreadPool& pool);

// Buffers of one thread of FFN calls, for up to `max_rows` rows.
class FfnScratch {
 public:
  FfnScratch(const checkpoint::FfnSpec& spec, int64_t max_rows, DType dtype);

  int64_t max_rows() const { return max_rows_; }

 private:
  friend void FfnForward(const kernels::Context&, const FfnWeights&, MatView<const float>, FfnScratch&, MatView<float>);
  friend void FfnForward(const kernels::Context&, const FfnWeights&, MatView<const Bf16>, FfnScratch&, MatView<float>);
  int64_t max_rows_;
  AlignedBuffer inner_;         // [max_rows, 2F or F] f32
  AlignedBuffer activated_;     // [max_rows, F] f32
  AlignedBuffer activated_bf16_;
};

// y [rows, H] f32 = FFN of x [rows, H] in the weights' dtype. rows <= scratch.max_rows(). No allocation.
void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const float> x,
                FfnScratch& scratch, MatView<float> y);
void FfnForward(const kernels::Context& context, const FfnWeights& weights, MatView<const Bf16> x,
                FfnScratch& scratch, MatView<float> y);

}  // namespace conclave::model
