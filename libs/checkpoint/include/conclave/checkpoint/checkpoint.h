// A checkpoint folder: config.json, weights and whatever lies beside them, opened read-only and memory-mapped.
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

// One stored tensor. `bytes` points into the mapped file and lives as long as the Checkpoint.
struct TensorView {
  std::string_view name;
  std::string_view file;  // file name, for messages
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;

  int64_t num_elements() const;
};

// Immutable after Open; any thread.
class Checkpoint {
 public:
  // Reads config.json and the headers of all weight files and checks them; touches no weights. Every error names the
  // file, the key or tensor, what was expected and what was found, with the reasons of docs/errors.md
  // ("config_key", "safetensors_truncated", "shard_index", ...).
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& folder);

  ~Checkpoint();

  const std::string& folder() const;
  const ModelDesc& desc() const;

  // Sorted by name.
  std::span<const TensorView> tensors() const;

  // Null when absent.
  const TensorView* Find(std::string_view name) const;

  // The tensor `name`, of exactly `shape` and a floating dtype (f32, bf16, f16); "tensor_missing",
  // "tensor_shape_mismatch" or "tensor_dtype" otherwise.
  absl::StatusOr<TensorView> Require(std::string_view name, std::span<const int64_t> shape) const;

  // Tells the kernel that the pages of `tensor` are not needed any more, so that a packed copy and the file do not
  // both count as resident. The tensor can still be read.
  void Release(const TensorView& tensor) const;

  // Checks that no file changed since Open (size, mtime): "model_changed_during_load". Call after loading.
  absl::Status VerifyUnchanged() const;

 private:
  struct State;
  explicit Checkpoint(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// Reads `folder`/config.json (and, for a tower's geometry, what spec 2.6 names) without looking at weights. Open()
// calls it; `inspect` uses it on folders that hold configs alone.
absl::StatusOr<ModelDesc> ReadModelDesc(const std::string& folder);

// `tensor` as f32 values, whatever its stored dtype. Fails with "tensor_nonfinite" on NaN or infinity.
absl::StatusOr<std::vector<float>> ToFloats(const TensorView& tensor);

}  // namespace conclave::checkpoint
