// The gate of an MoE layer: which experts a row goes to, and with which weights (spec 4.3, DET: no
// noise, no capacity).
#pragma once

#include <cstdint>

#include "conclave/checkpoint/model_desc.h"
#include "conclave/kernels/context.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

// The floor of the sum that chosen weights are divided by (FLT_EPSILON in DeepSpeed's top2gating).
inline constexpr float kGateSumFloor = 1.1920929e-7f;

// Chooses for every row from its gate logits.
//
//   logits   [rows, E]      f32, W_g · n over the f32 norm output; overwritten with softmax over
//   all E
//   experts  [rows, top_k]  by falling probability, the lower id first on ties
//   weights  [rows, top_k]  p / Σ p over the chosen (sum floored at 1.19e-7) when
//   spec.is_renormalized, else p
void ChooseExperts(const kernels::Context& context, const checkpoint::MoeSpec& spec,
                   MatView<float> logits, MatView<int32_t> experts, MatView<float> weights);

}  // namespace conclave::model
