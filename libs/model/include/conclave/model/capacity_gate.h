// The gate as DeepSpeed 0.9.5 evaluates it, with expert capacity (spec 4.4, REF without its noise).
// Not what is served: there a token's experts depend on its neighbours. It says what the original
// would have dropped, for comparisons with it.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/kernels/context.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

struct CapacityRule {
  int32_t top_k = 2;    // 1 or 2
  double factor = 1.0;  // eval_capacity_factor
  int32_t min_capacity = 0;
};

// Rows that one expert takes: max(⌈rows / experts · factor · top_k⌉, min_capacity).
int64_t ExpertCapacity(const CapacityRule& rule, int64_t rows, int64_t experts);

// One row's place with one expert.
struct ExpertSlot {
  int32_t expert = -1;  // -1: dropped, the expert had no slot left
  int32_t slot = 0;
  float weight = 0.0f;
};

// Chooses for every row; first choices take slots in row order, second choices after all first
// ones. The weights of what is left of a row are renormalised for top_k 2 (sum floored at 1.19e-7).
//   logits  [rows, E] f32, overwritten with softmax over all E
// Returns [rows · top_k] slots by falling probability. With top_k 1 and more rows for one expert
// than it takes, the original drops at random: kUnimplemented "gate_random".
absl::StatusOr<std::vector<ExpertSlot>> ChooseWithCapacity(const kernels::Context& context,
                                                           const CapacityRule& rule,
                                                           MatView<float> logits);

}  // namespace conclave::model
