#include "norm.h"

#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"

namespace conclave::model {

absl::StatusOr<Norm> Norm::Load(const WeightSource& source, const std::string& name,
                                const checkpoint::NormSpec& spec, int64_t dim) {
  const int64_t shape[] = {dim};
  Norm norm;
  norm.spec = spec;
  CONCLAVE_ASSIGN_OR_RETURN(norm.weight, source.Floats(name + ".weight", shape));
  if (spec.has_bias) {
    CONCLAVE_ASSIGN_OR_RETURN(norm.bias, source.Floats(name + ".bias", shape));
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
