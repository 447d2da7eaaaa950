// A checkpoint folder: config.json, weights and whatever lies beside them, opened read-only and
// memory-mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/tensor/dtype.h"

namespace conclave::checkpoint {

class PackedFile;

// One stored tensor. `bytes` are row-major, point into the mapped file (or a copy of what that
// holds in another order) and live as long as the Checkpoint. In archives of torch.save they need
// not be aligned.
struct TensorView {
  std::string_view name;
  std::string_view file;  // file name, for messages
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;

  int64_t num_elements() const;
};

struct OpenOptions {
  // Folder of the original CLIP or SigLIP tower (config.json, preprocessor_config.json). It decides
  // the tower's geometry and, when it holds safetensors, replaces the tower's weights of the
  // checkpoint. Empty: the checkpoint's own.
  std::string vision_tower{};
  // A folder without conclave-manifest.json (manifest.h) is refused. With one, required or not,
  // config.json and every tensor that Require gives are compared with it, but for a tower's that
  // came from another folder: "model_hash_mismatch".
  // Of a packed folder config.json, the index and every entry that is taken are compared.
  bool require_manifest = false;
  // Packed folders alone (PackedOptions): compare each entry's checksum when it is taken.
  bool verify_weights = false;
  // Packed folders alone: read entries into memory of this process instead of mapping them.
  bool copy_weights = false;
};

// Immutable after Open; any thread.
class Checkpoint {
 public:
  // Reads config.json and the headers of all weight files and checks them against each other and
  // against the tensors that the config implies (tensor_list.h); touches no weights. Only regular
  // files inside the folder are opened. Weights are model.safetensors, or the shards that
  // model.safetensors.index.json names, or, when there is neither, pytorch_model.bin or the shards
  // of pytorch_model.bin.index.json, of which nothing is executed (torch_zip.h); before all of
  // these comes the packed file of `conclave pack`. Every error names
  // the file, the key or tensor, what was expected and what was found, with the reasons of
  // docs/errors.md ("config_key", "safetensors_truncated", "shard_index", ...).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder,
                                                          const OpenOptions& options = {});

  ~Checkpoint();

  const std::string& folder() const;
  // The bytes of config.json that desc() was read from.
  const std::string& config_text() const;
  // Its warnings name the stored tensors that are not used, too.
  const ModelDesc& desc() const;

  // The weights in the form they are computed with (packed_file.h); null for a checkpoint as
  // published. With it, tensors() have no bytes, and Require always fails ("packed_form").
  const PackedFile* packed() const;

  // Sorted by name.
  std::span<const TensorView> tensors() const;

  // Null when absent.
  const TensorView* Find(std::string_view name) const;

  // The tensor `name`, of exactly `shape` and a floating dtype (f32, bf16, f16, f64), to be read
  // now: its pages are brought in, so that a failing disk or a file that was cut since Open is an
  // error here ("model_read_error", "model_changed_during_load") and not a SIGBUS later. Otherwise
  // "tensor_missing", "tensor_shape_mismatch", "tensor_dtype" or "model_hash_mismatch".
  absl::StatusOr<TensorView> Require(std::string_view name, std::span<const int64_t> shape) const;

  // Tells the kernel that the pages of `tensor` are not needed any more, so that a packed copy and
  // the file do not both count as resident. The tensor can still be read.
  void Release(const TensorView& tensor) const;

  // Checks that no file changed since Open (size, mtime): "model_changed_during_load". Call after
  // loading.
  absl::Status VerifyUnchanged() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Reads `folder`/config.json (and, for a tower's geometry, what spec 2.6 names) without looking at
// weights, as Open() does first; `inspect` uses it on folders that hold configs alone.
absl::StatusOr<ModelDesc> ReadModelDesc(const std::string& folder, const OpenOptions& options = {});

// `tensor` as f32 values; stored as f32, bf16, f16 or f64 ("tensor_dtype" otherwise). Fails with
// "tensor_nonfinite" on NaN or infinity, also on an f64 beyond f32's range. Zeros and denormals are
// values like others.
absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor);

}  // namespace conclave::checkpoint
