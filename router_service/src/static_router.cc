#include "conclave/router_service/static_router.h"

#include <string>
#include <utility>
#include <vector>

#include "conclave/base/status.h"

namespace conclave::router_service {
namespace {

constexpr int32_t kMaxExperts = 65'536;

absl::Status CheckLayers(std::span<const MoeLayer> layers) {
  int32_t last = -1;
  for (const MoeLayer& layer : layers) {
    if (layer.layer.value() <= last) {
      return InvalidArgument(
          "moe_layers", "placement: expected ascending layers of at least 0, found " +
                            std::to_string(layer.layer.value()) + " after " + std::to_string(last));
    }
    last = layer.layer.value();
    if (layer.num_experts < 1 || layer.num_experts > kMaxExperts) {
      return InvalidArgument("moe_layers", "placement: layer " + std::to_string(last) +
                                               ": expected 1 to " + std::to_string(kMaxExperts) +
                                               " experts, found " +
                                               std::to_string(layer.num_experts));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<placement::Placement> PlanEmbedded(std::span<const MoeLayer> layers,
                                                  int32_t num_workers) {
  if (num_workers < 1 || num_workers > kMaxEmbeddedWorkers) {
    return InvalidArgument("workers_out_of_range",
                           "placement: expected 1 to " + std::to_string(kMaxEmbeddedWorkers) +
                               " workers, found " + std::to_string(num_workers));
  }
  CONCLAVE_RETURN_IF_ERROR(CheckLayers(layers));
  std::vector<placement::ExpertUnit> units;
  for (const MoeLayer& layer : layers) {
    for (int32_t expert = 0; expert < layer.num_experts; ++expert) {
      units.push_back({layer.layer, ExpertId(expert)});
    }
  }
  return placement::SpreadEvenly(kEmbeddedEpoch, std::move(units), num_workers);
}

}  // namespace conclave::router_service
