// What a router must not forget: term and epoch, who is called what, which expert is where, and
// what operators asked for. One binary value, because it is written whole at every epoch.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

// A name that was a worker once. Ids are never given to another name.
struct KnownName {
  WorkerId id;
  uint64_t incarnation = 0;
  uint64_t key = 0;          // of that incarnation
  bool is_draining = false;  // an operator's wish: outlives the process of that name
};

struct CanaryKey {
  WeightHash weight_hash{};
  std::string dtype;
  std::string isa;
  friend auto operator<=>(const CanaryKey&, const CanaryKey&) = default;
};

struct RouterState {
  uint32_t term = 0;
  uint32_t epoch_n = 0;  // the epoch is term << 32 | epoch_n
  int32_t next_worker_id = 0;
  ModelIdentity model;
  NumericMode numeric;
  std::vector<MoeLayer> layers;
  std::map<std::string, KnownName> names;
  // Members when it was written, by id; `held`, `moe_layers` and the last router are not kept.
  std::map<WorkerId, WorkerRegistration> members;
  std::map<ExpertUnit, std::vector<WorkerId>> placement;
  std::map<ExpertUnit, WeightHash> weight_hashes;
  std::map<CanaryKey, uint32_t> canaries;
  std::vector<std::pair<ExpertUnit, std::string>> pins;
  std::map<ExpertUnit, int32_t> replicas;  // overrides
};

// Version of the format; a newer one is refused (state_file.h).
inline constexpr uint32_t kStateVersion = 1;

std::string Serialize(const RouterState& state);

// kInvalidArgument ("state_corrupt") for anything that Serialize does not give: a short or long
// value, a count beyond its limit, numbers out of range, a placement on a worker that no name has.
absl::StatusOr<RouterState> ParseRouterState(std::string_view blob);

}  // namespace conclave::router_service
