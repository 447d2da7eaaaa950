#include "norm.h"

#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/model/linear.h"

namespace conclave::model {

absl::StatusOr<Norm> Norm::Load(const checkpoint::Checkpoint& checkpoint, const std::string& name,
                                const checkpoint::NormSpec& spec, int64_t dim) {
  const int64_t shape[] = {dim};
  Norm norm;
  norm.spec = spec;
  CONCLAVE_ASSIGN_OR_RETURN(norm.weight, LoadFloats(checkpoint, name + ".weight", shape));
  if (spec.has_bias) {
    CONCLAVE_ASSIGN_OR_RETURN(norm.bias, LoadFloats(checkpoint, name + ".bias", shape));
  }
  return norm;
}

void Norm::Apply(const kernels::Context& context, MatView<const float> x, MatView<float> y) const {
  if (spec.kind == checkpoint::NormKind::kLayerNorm) {
    kernels::LayerNorm(context, x, weight, bias, spec.eps, y);
  } else {
    kernels::RmsNorm(context, x, weight, spec.eps, y);
  }
}

}  // namespace conclave::model
