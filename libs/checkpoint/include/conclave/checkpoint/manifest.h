// The identity of a checkpoint, cheap enough for a worker that holds one expert of a large model.
#pragma once

#include <string>

#include "conclave/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// SHA-256 (64 hex digits) over config.json and, for every tensor in name order, its name, dtype,
// shape and three 4 KiB samples: first, middle, last (data-plane.md section 3). Two checkpoints
// that answer differently have different hashes but for changes that all samples miss.
std::string ManifestHash(const Checkpoint& checkpoint);

}  // namespace conclave::checkpoint
