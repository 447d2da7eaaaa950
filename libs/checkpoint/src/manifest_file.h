// conclave-manifest.json: what a checkpoint's tensors and config are, by hash.
#pragma once

#include <map>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "file.h"

namespace conclave::checkpoint {

struct Manifest {
  std::string config_hash;                                  // of config.json's bytes
  std::map<std::string, std::string, std::less<>> hash_of;  // tensor -> hash
  std::string packed_hash;  // of a packed file's index; empty: not of a packed folder
};

// Null when the folder has none and `is_required` is false; "model_hash_mismatch" when it has none
// but needs one, or when it is no manifest.
absl::StatusOr<std::unique_ptr<Manifest>> ReadManifest(const ModelFolder& folder, bool is_required);

// SHA-256 over dtype, shape and values, so that equal bytes of another meaning differ.
std::string HashOf(const TensorView& tensor);
std::string HashOf(std::string_view config_text);

// "model_hash_mismatch" when the manifest says something else, or nothing. Reads all of `tensor`.
absl::Status CheckTensor(const Manifest& manifest, const TensorView& tensor);
absl::Status CheckPacked(const Manifest& manifest, std::string_view index_hash);
absl::Status CheckConfig(const Manifest& manifest, std::string_view config_text);

// The manifest of a packed folder.
std::string PackedManifestText(std::string_view config_text, std::string_view index_hash);

}  // namespace conclave::checkpoint
