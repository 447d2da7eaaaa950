// What a worker says of an expert that it holds, and what a router expects of it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "conclave/placement/placement.h"

namespace conclave::expert_worker {

// SHA-256 of all stored bytes (checkpoint/expert_hash.h).
using WeightHash = std::array<uint8_t, 32>;

// An expert in memory, ready for calls.
struct HeldExpert {
  placement::ExpertUnit unit;
  WeightHash weight_hash{};
  // CRC-32C of the answer to the canary row; equal for equal hash, dtype and isa.
  uint32_t canary_checksum = 0;
  friend bool operator==(const HeldExpert&, const HeldExpert&) = default;
};

// What is known of an expert from other replicas; a worker that finds another does not serve it.
struct ExpectedExpert {
  std::optional<WeightHash> weight_hash;
  std::optional<uint32_t> canary_checksum;
};

}  // namespace conclave::expert_worker
