// Writes safetensors files: the header at once, the tensors' bytes in any order and from any
// thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/tensor/dtype.h"

namespace conclave::checkpoint {

// A tensor to be written.
struct TensorSpec {
  std::string name;
  DType dtype = DType::kBf16;
  std::vector<int64_t> shape;

  int64_t num_elements() const;
  int64_t size_bytes() const;
};

class SafetensorsWriter {
 public:
  // Creates `path`, which must not exist, with room for `tensors` and writes the header. Names are
  // distinct. Tensors lie in the order of the format's own library: wide dtypes first, then by
  // name, so that each is aligned. Fails with "disk_full" or "file_write_error".
  static absl::StatusOr<SafetensorsWriter> Create(const std::string& path,
                                                  std::vector<TensorSpec> tensors);

  ~SafetensorsWriter();
  SafetensorsWriter(SafetensorsWriter&& other) noexcept;
  SafetensorsWriter& operator=(SafetensorsWriter&& other) noexcept;

  // In file order.
  std::span<const TensorSpec> tensors() const;
  int64_t file_bytes() const;

  // Writes `bytes` at `offset_bytes` of tensor `index` (into tensors()); they must lie within it.
  // Any thread.
  absl::Status Write(size_t index, int64_t offset_bytes, std::span<const std::byte> bytes) const;

  // Closes the file; the last call. What was never written reads as zeros.
  absl::Status Finish();

 private:
  struct State;
  explicit SafetensorsWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// A tensor with its values, for small files. `values` are rounded to spec.dtype (f32, bf16 or f16).
struct TensorValues {
  TensorSpec spec;
  std::vector<float> values;
};

// Writes `tensors` to the new file `path`.
absl::Status SaveSafetensors(const std::string& path, std::span<const TensorValues> tensors);

}  // namespace conclave::checkpoint
