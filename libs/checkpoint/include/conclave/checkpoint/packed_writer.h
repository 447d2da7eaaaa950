// Makes the folder of a packed model (packed_file.h), whole or not at all.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/checkpoint/packed_file.h"

namespace conclave::checkpoint {

struct PackedWriterOptions {
  std::string folder;  // must not exist or be empty
  DType dtype = DType::kBf16;
  int32_t panel_revision = 0;
  // Called after each entry with the bytes that are written and an estimate of all; what it returns
  // when it is no OK ends the work. May be null.
  std::function<absl::Status(int64_t bytes_done, int64_t bytes_total)> progress;
};

// One thread.
class PackedWriter {
 public:
  // Copies the small files of `source`, all regular files of its folder that hold no weights, and
  // begins the weights'. `source` outlives this. Errors: "packed_already" for a packed source,
  // "folder_not_empty", "disk_full", "file_write_error", and those of reading the files.
  static absl::StatusOr<PackedWriter> Create(const Checkpoint& source, PackedWriterOptions options);

  ~PackedWriter();
  PackedWriter(PackedWriter&& other) noexcept;
  PackedWriter& operator=(PackedWriter&& other) noexcept;

  // Writes an entry; no name twice for one kind. bytes.size() is what shape and dtype need.
  absl::Status Add(PackedKind kind, const std::string& name, DType dtype, int64_t n, int64_t k,
                   std::span<const std::byte> bytes);

  // Records the hash of an expert of the source, whose tensors it reads.
  absl::Status AddExpert(int32_t layer, int32_t expert);

  // Writes the index, waits until everything is on disk and gives the folder its name; the last
  // call. Where the source has a manifest, every tensor was compared with it when it was read, and
  // the folder gets a manifest of its own.
  absl::Status Finish();

 private:
  struct State;
  explicit PackedWriter(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::checkpoint
