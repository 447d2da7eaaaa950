// What a frontend knows of its cluster: members, placement, and from whom.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "conclave/base/ids.h"
#include "conclave/placement/placement.h"

namespace conclave::frontend {

// Fields as of Member in cluster.proto.
struct ClusterMember {
  WorkerId id;
  std::string name;
  uint64_t incarnation = 0;
  std::string data_address;  // HOST:PORT
  std::vector<std::string> channels;
  bool is_suspect = false;
  bool is_draining = false;
  uint64_t pair_key = 0;
};

struct ClusterView {
  uint32_t frontend_id = 0;  // in frames; given by the router
  std::shared_ptr<const placement::Placement> placement;
  std::vector<ClusterMember> members;  // ascending by id
};

// A member as this frontend reaches it.
struct MemberLink {
  WorkerId worker;
  std::string name;
  std::string data_address;
  const char* carrier = nullptr;  // ExpertChannel::carrier, a constant; null: no link is up
};

}  // namespace conclave::frontend
