// The identity of a checkpoint, cheap enough for a worker that holds one expert of a large model.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"

namespace conclave::checkpoint {

// SHA-256 (64 hex digits) over config.json and, for every tensor in name order, its name, dtype,
// shape and three 4 KiB samples: first, middle, last (data-plane.md section 3). Two checkpoints
// that answer differently have different hashes but for changes that all samples miss.
std::string ManifestHash(const Checkpoint& checkpoint);

// A file of this name in the checkpoint's folder has the SHA-256 of config.json and of every tensor
// that the model has: {"version": "conclave-manifest-1", "config": hash, "tensors": {name: hash}}.
// Checkpoint then compares each tensor that it gives out (OpenOptions::require_manifest). That of a
// packed folder has no tensors but "packed": the SHA-256 of the packed file's index, which has
// those of all entries.
inline constexpr char kManifestFile[] = "conclave-manifest.json";

// The content of that file for `checkpoint`. Reads every byte of it, but of a packed folder the
// index alone.
absl::StatusOr<std::string> ManifestText(const Checkpoint& checkpoint);

}  // namespace conclave::checkpoint
