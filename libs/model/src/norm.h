// A norm with its weights.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/kernels/context.h"
#include "conclave/model/weight_source.h"
#include "conclave/tensor/view.h"

namespace conclave::model {

struct Norm {
  checkpoint::NormSpec spec;
  std::vector<float> weight;
  std::vector<float> bias;  // empty: none

  // Loads `name`.weight and, where the spec has one, `name`.bias of [dim].
  static absl::StatusOr<Norm> Load(const WeightSource& source, const std::string& name,
                                   const checkpoint::NormSpec& spec, int64_t dim);

  // y may alias x.
  void Apply(const kernels::Context& context, MatView<const float> x, MatView<float> y) const;
};

}  // namespace conclave::model
