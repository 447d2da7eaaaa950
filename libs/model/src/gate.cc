#include "conclave/model/gate.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "conclave/kernels/elementwise.h"

namespace conclave::model {
namespace {

// The best expert that `taken` does not hold.
int32_t BestOf(const float* probabilities, int64_t num_experts, const int32_t* taken,
               int64_t num_taken) {
  int32_t best = -1;
  for (int32_t e = 0; e < num_experts; ++e) {
    if (std::find(taken, taken + num_taken, e) == taken + num_taken &&
        (best < 0 || probabilities[e] > probabilities[best])) {
      best = e;
    }
  }
  return best;
}

}  // namespace

void ChooseExperts(const kernels::Context& context, const checkpoint::MoeSpec& spec,
                   MatView<float> logits, MatView<int32_t> experts, MatView<float> weights) {
  CONCLAVE_CHECK(experts.cols == spec.top_k && weights.cols == spec.top_k &&
                 logits.cols >= spec.top_k);
  kernels::Softmax(context, logits);
  for (int64_t r = 0; r < logits.rows; ++r) {
    const float* probabilities = logits.Row(r);
    int32_t* chosen = experts.Row(r);
    float* weight = weights.Row(r);
    float sum = 0.0f;
    for (int32_t k = 0; k < spec.top_k; ++k) {
      chosen[k] = BestOf(probabilities, logits.cols, chosen, k);
      weight[k] = probabilities[chosen[k]];
      sum += weight[k];
    }
    if (spec.is_renormalized) {
      for (int32_t k = 0; k < spec.top_k; ++k) {
        weight[k] /= std::max(sum, kGateSumFloor);
      }
    }
  }
}

}  // namespace conclave::model
