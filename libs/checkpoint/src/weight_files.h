// The weight files of a folder: one model.safetensors, or shards with an index.
#pragma once

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "file.h"
#include "safetensors.h"

namespace conclave::checkpoint {

struct WeightFile {
  OpenedFile file;
  MappedFile mapped;
  std::vector<StoredTensor> tensors;
};

enum class WeightsKind { kNone, kSingle, kSharded };

// Whether the folder has one of the files that FindWeights starts from. Looks at names alone.
bool HasWeights(const ModelFolder& folder);

// "model_format_unsupported" for folders that are not a whole model, with how to make one: LoRA
// adapters, a projector alone, DeepSpeed's own training state (spec 2.4, 2.7).
absl::Status CheckFolderKind(const ModelFolder& folder);

// kNone when the folder holds no weight file at all; "pickle_refused" or "model_format_unsupported"
// when it holds only such as are not read.
absl::StatusOr<WeightsKind> FindWeights(const ModelFolder& folder);

// Opens, checks and maps them; no tensor stands in two files. "shard_index" for everything in which
// index and shards disagree. `folder` has weights.
absl::StatusOr<std::vector<WeightFile>> OpenWeights(const ModelFolder& folder, WeightsKind kind);

}  // namespace conclave::checkpoint
