// The identity of one expert's weights: replicas of an expert are equal to the bit when their
// hashes, numeric modes and instruction-set paths are.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// SHA-256, as bytes.
using WeightHash = std::array<uint8_t, 32>;

// Over all stored bytes of the expert's tensors in name order, each behind its name within the
// expert, dtype and shape (data-plane.md section 3). The layer's and the expert's own numbers are
// not in it. Reads every byte: about a second per GB or two. Any thread. Beside the errors of
// Checkpoint::Require: kNotFound ("placement_unknown_unit") for an expert that the model does not
// have.
absl::StatusOr<WeightHash> HashExpert(const Checkpoint& checkpoint, int32_t layer, int32_t expert);

}  // namespace conclave::checkpoint
