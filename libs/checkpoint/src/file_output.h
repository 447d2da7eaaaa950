// Writing files, with errors that have a name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "file.h"

namespace conclave::checkpoint {

// "disk_full" or, for anything else that errno says, "file_write_error".
absl::Status WriteError(const std::string& path, int error);

// Creates `path`, which must not exist, with `size_bytes` bytes of zeros, none of them on disk yet.
absl::StatusOr<UniqueFd> CreateFile(const std::string& path, int64_t size_bytes);

// All of `bytes` at `offset`. Any thread.
absl::Status PwriteAll(int fd, const std::string& path, int64_t offset,
                       std::span<const std::byte> bytes);

// Waits until everything is on disk and closes `fd`: delayed allocation can report a full disk as
// late as here.
absl::Status SyncAndClose(UniqueFd& fd, const std::string& path);

}  // namespace conclave::checkpoint
