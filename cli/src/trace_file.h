// Recordings as files.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::cli {

// The bytes of a recording, at most 128 MiB. kNotFound or kInvalidArgument ("trace_file").
absl::StatusOr<std::string> ReadTraceFile(const std::string& path);

// Writes `path` whole or not at all: what stood there stays until everything is on the disk, and a
// half file is never seen. kResourceExhausted ("disk_full", "file_write_error").
absl::Status WriteTraceFile(const std::string& path, std::string_view bytes);

}  // namespace conclave::cli
