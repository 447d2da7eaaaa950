// Writes the weight files of torch.save (a zip archive of stored entries, since PyTorch 1.6): the
// pickle at once, the tensors' bytes in any order and from any thread. torch.load(...,
// weights_only=True) reads them as a dictionary of tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/safetensors_writer.h"

namespace conclave::checkpoint {

class TorchZipWriter {
 public:
  // Creates `path`, which must not exist, with room for `tensors` in the order given, and writes
  // what describes them. Names are distinct; each tensor has less than 4 GiB. Fails with
  // "disk_full" or "file_write_error".
  static absl::StatusOr<TorchZipWriter> Create(const std::string& path,
                                               std::vector<TensorSpec> tensors);

  ~TorchZipWriter();
  TorchZipWriter(TorchZipWriter&& other) noexcept;
  TorchZipWriter& operator=(TorchZipWriter&& other) noexcept;

  // In file order.
  std::span<const TensorSpec> tensors() const;
  int64_t file_bytes() const;

  // Writes `bytes` at `offset_bytes` of tensor `index` (into tensors()); they must lie within it,
  // and no byte of a tensor may be written twice. Any thread.
  absl::Status Write(size_t index, int64_t offset_bytes, std::span<const std::byte> bytes) const;

  // Writes the checksums and closes the file; the last call. What was never written reads as zeros.
  absl::Status Finish();

 private:
  struct State;
  explicit TorchZipWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::checkpoint
