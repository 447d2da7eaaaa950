// The weight files of a folder: one file, or shards with an index; safetensors or torch.save's
// archives.
#pragma once

#include <cstddef>
#include <map>
#include <span>
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
  // Row-major copies of tensors that the file holds otherwise, by number in `tensors`.
  std::map<size_t, std::vector<std::byte>> copies;

  // The values of tensors[index], row-major: in the mapped file, or in `copies`. May be unaligned.
  std::span<const std::byte> BytesOf(size_t index) const;
};

// A packed file, model.safetensors, its shards, pytorch_model.bin, its shards.
enum class WeightsKind { kNone, kPacked, kSingle, kSharded, kTorchSingle, kTorchSharded };

// Whether the folder has one of the files that FindWeights starts from. Looks at names alone.
bool HasWeights(const ModelFolder& folder);

// "model_format_unsupported" for folders that are not a whole model, with how to make one: LoRA
// adapters, a projector alone, DeepSpeed's own training state (spec 2.4, 2.7).
absl::Status CheckFolderKind(const ModelFolder& folder);

// A packed file before safetensors and these before torch.save's archives when both are there.
// kNone when the folder holds no weight file at all; "pickle_refused" or "model_format_unsupported"
// when it holds only such as are not read, "model_file_missing" for shards without their index.
absl::StatusOr<WeightsKind> FindWeights(const ModelFolder& folder);

// Opens, checks and maps them; no tensor stands in two files. "shard_index" for everything in which
// index and shards disagree. `folder` has weights that are not packed.
absl::StatusOr<std::vector<WeightFile>> OpenWeights(const ModelFolder& folder, WeightsKind kind);

}  // namespace conclave::checkpoint
