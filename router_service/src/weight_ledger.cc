#include "weight_ledger.h"

namespace conclave::router_service {

WeightVerdict CheckWeights(RouterState& state, const NumericMode& numeric, const HeldExpert& held) {
  const auto hash = state.weight_hashes.find(held.unit);
  if (hash != state.weight_hashes.end() && hash->second != held.weight_hash) {
    return WeightVerdict::kOtherWeights;
  }
  const auto [canary, is_first] = state.canaries.try_emplace(
      CanaryKey{held.weight_hash, numeric.dtype, numeric.isa}, held.canary_checksum);
  if (canary->second != held.canary_checksum) {
    return WeightVerdict::kOtherCanary;
  }
  if (hash == state.weight_hashes.end()) {
    state.weight_hashes.emplace(held.unit, held.weight_hash);
    return WeightVerdict::kFirst;
  }
  return is_first ? WeightVerdict::kFirst : WeightVerdict::kKnown;
}

HeldExpert ExpectedWeights(const RouterState& state, const NumericMode& numeric, ExpertUnit unit) {
  HeldExpert expected;
  expected.unit = unit;
  if (const auto hash = state.weight_hashes.find(unit); hash != state.weight_hashes.end()) {
    const auto canary = state.canaries.find(CanaryKey{hash->second, numeric.dtype, numeric.isa});
    // A hash without a checksum could not be told from one whose checksum is 0.
    if (canary != state.canaries.end()) {
      expected.weight_hash = hash->second;
      expected.canary_checksum = canary->second;
    }
  }
  return expected;
}

}  // namespace conclave::router_service
