// Where weights come from: a checkpoint as published, whose tensors are packed when they are
// loaded, a packed folder, whose matrices are taken as they lie in the file, or the first again,
// with every matrix written to a packed file and dropped. All loaders of this room read through it,
// so that what they load and what is in a packed file cannot differ.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/thread_pool.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/packed_writer.h"
#include "conclave/kernels/matmul.h"
#include "conclave/tensor/dtype.h"
#include "conclave/tensor/shared_bytes.h"

namespace conclave::model {

// One stored tensor of a matrix: [shape[0], k] after flattening all axes but the first (a patch
// convolution is such a matrix).
struct MatrixPart {
  std::string name;
  std::vector<int64_t> shape;
};

// Cheap to copy; what it refers to outlives it.
class WeightSource {
 public:
  // Implicit: whoever loads from a checkpoint says just that.
  WeightSource(const checkpoint::Checkpoint& checkpoint)  // NOLINT(google-explicit-constructor)
      : checkpoint_(&checkpoint) {}
  // Records: everything that is loaded is added to `writer` too, whose source is `checkpoint`, and
  // matrices and rows come back empty.
  WeightSource(const checkpoint::Checkpoint& checkpoint, checkpoint::PackedWriter& writer)
      : checkpoint_(&checkpoint), writer_(&writer) {}

  const checkpoint::ModelDesc& desc() const { return checkpoint_->desc(); }

  // The tensors `parts` stacked along the outputs, k = the elements of one row of each, in panels
  // of `dtype`. From a checkpoint they are converted, one after another, and the kernel is told
  // that their file pages are not needed any more; "tensor_nonfinite" on NaN or infinity. From a
  // packed file: "packed_entry", "packed_dtype", "packed_version".
  absl::StatusOr<kernels::PackedMatrix> Matrix(std::span<const MatrixPart> parts, int64_t k,
                                               DType dtype, ThreadPool& pool) const;

  // The tensor `name` of [rows, cols] as rows of `dtype`, kF32 or kBf16.
  absl::StatusOr<SharedBytes> Rows(const std::string& name, int64_t rows, int64_t cols, DType dtype,
                                   ThreadPool& pool) const;

  // The tensor `name` of exactly `shape` as f32 values.
  absl::StatusOr<std::vector<float>> Floats(const std::string& name,
                                            std::span<const int64_t> shape) const;

 private:
  const checkpoint::Checkpoint* checkpoint_;
  checkpoint::PackedWriter* writer_ = nullptr;
};

}  // namespace conclave::model
