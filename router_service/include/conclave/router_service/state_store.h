// Where a router keeps its state: a folder (state_file.h) or etcd (etcd_election.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::router_service {

struct StoredState {
  bool is_found = false;              // false: nothing that can be used
  std::string blob;                   // of the newest generation that can be read
  std::vector<absl::Status> refused;  // newer ones that cannot, each naming itself
  // Terms up to this one may have been used, whatever the blob says.
  uint32_t terms_used = 0;
};

// One thread at a time.
class StateStore {
 public:
  virtual ~StateStore() = default;
  virtual absl::StatusOr<StoredState> Load() = 0;
  // Durable when it returns OK. `term` is the blob's. kUnavailable ("state_write_failed"): it may
  // or may not have become durable; a later Save replaces it either way. kFailedPrecondition
  // ("leadership_lost"): another router writes now, and no Save will ever succeed again.
  virtual absl::Status Save(std::string_view blob, uint32_t term) = 0;
};

}  // namespace conclave::router_service
