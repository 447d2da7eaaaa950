// The router of the embedded mode: workers are threads of this process, none comes or goes, so one
// epoch is planned when the process starts and holds until it ends.
#pragma once

#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "conclave/base/ids.h"
#include "conclave/placement/placement.h"

namespace conclave::router_service {

// A layer with experts 0..num_experts-1 to place.
struct MoeLayer {
  LayerId layer;
  int32_t num_experts = 0;
};

// Router term and number within it, as every message carries them (data-plane.md section 8).
constexpr Epoch MakeEpoch(uint32_t term, uint32_t n) { return Epoch(uint64_t{term} << 32 | n); }

// The only epoch of the embedded mode: term 1, number 1.
inline constexpr Epoch kEmbeddedEpoch = MakeEpoch(1, 1);

// One replica of every expert of `layers`, spread evenly over workers 0..num_workers-1
// (placement::SpreadEvenly). No layers (a dense model) give a placement without units. A worker may
// end up with nothing when there are more workers than experts. Pure. kInvalidArgument with
// "workers_out_of_range" (1 to kMaxEmbeddedWorkers) or "moe_layers" (not ascending, or a number of
// experts outside 1 to 65,536: ids are 16 bits on the wire).
inline constexpr int32_t kMaxEmbeddedWorkers = 1024;
absl::StatusOr<placement::Placement> PlanEmbedded(std::span<const MoeLayer> layers,
                                                  int32_t num_workers);

}  // namespace conclave::router_service
