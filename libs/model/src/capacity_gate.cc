#include "conclave/model/capacity_gate.h"

#include <algorithm>
#include <cmath>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/model/gate.h"

namespace conclave::model {
int64_t ExpertCapacity(const CapacityRule& rule, int64_t rows, int64_t experts) {
  const double wanted =
      static_cast<double>(rows) / static_cast<double>(experts) * rule.factor * rule.top_k;
  return std::max(static_cast<int64_t>(std::ceil(wanted)), int64_t{rule.min_capacity});
}

absl::StatusOr<std::vector<ExpertSlot>> ChooseWithCapacity(const kernels::Context& context,
                                                           const CapacityRule& rule,
                                                           MatView<float> logits) {
  CONCLAVE_CHECK(rule.top_k == 1 || rule.top_k == 2);
  const int64_t top_k = rule.top_k;
  const int64_t capacity = ExpertCapacity(rule, logits.rows, logits.cols);
  std::vector<int32_t> experts(static_cast<size_t>(logits.rows * top_k));
  std::vector<float> weights(experts.size());
  const checkpoint::MoeSpec raw{.layers = {}, .top_k = rule.top_k};
  ChooseExperts(context, raw, logits, {experts.data(), logits.rows, top_k},
                {weights.data(), logits.rows, top_k});

  std::vector<ExpertSlot> slots(experts.size());
  // Slots that were asked for so far, dropped rows included: that is how DeepSpeed numbers them.
  std::vector<int32_t> asked(static_cast<size_t>(logits.cols), 0);
  for (int64_t k = 0; k < top_k; ++k) {
    for (int64_t r = 0; r < logits.rows; ++r) {
      const auto at = static_cast<size_t>(r * top_k + k);
      const int32_t slot = asked[static_cast<size_t>(experts[at])]++;
      if (slot < capacity) {
        slots[at] = {experts[at], slot, weights[at]};
      } else if (top_k == 1) {
        return Error(absl::StatusCode::kUnimplemented, "gate_random",
                     "expert " + std::to_string(experts[at]) + " takes " +
                         std::to_string(capacity) + " rows of " + std::to_string(logits.rows) +
                         "; with one expert per token the original drops the rest at random");
      }
    }
  }
  for (int64_t r = 0; r < logits.rows && top_k == 2; ++r) {
    ExpertSlot* row = slots.data() + r * top_k;
    const float sum = std::max(row[0].weight + row[1].weight, kGateSumFloor);
    row[0].weight /= sum;
    row[1].weight /= sum;
  }
  return slots;
}

}  // namespace conclave::model
