// Which weights an expert has, and which checksum their canary row gives: what keeps replicas equal
// to the bit. Part of the state that is kept.
#pragma once

#include <cstdint>

#include "conclave/router_service/router_state.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

enum class WeightVerdict : uint8_t {
  kKnown,         // as everybody's
  kFirst,         // the first of its kind, remembered: the state changed
  kOtherWeights,  // another hash than this expert's
  kOtherCanary    // the hash of this expert, and another answer to the canary row
};

WeightVerdict CheckWeights(RouterState& state, const NumericMode& numeric, const HeldExpert& held);

// What is known of the expert's weights on such a worker; hash and checksum zero: nothing.
HeldExpert ExpectedWeights(const RouterState& state, const NumericMode& numeric, ExpertUnit unit);

}  // namespace conclave::router_service
