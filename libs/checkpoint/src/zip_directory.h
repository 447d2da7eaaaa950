// The directory of a zip archive whose entries are stored as they are, which is how torch.save
// writes. Nothing is decompressed: a compressed entry is refused, so no archive can be larger than
// its file says.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "file.h"

namespace conclave::checkpoint {

// Of the header before an entry's name and bytes.
inline constexpr int64_t kZipLocalHeaderBytes = 30;

struct ZipEntry {
  std::string name;
  int64_t offset = 0;  // of the first byte, from the start of the file
  int64_t size_bytes = 0;
};

// Reads and checks the central directory (zip64 included) and every entry's local header: all
// entries stored, unencrypted, within the file, none overlapping another or the directory, no name
// twice. Sorted by name. "torch_zip" otherwise; "model_read_error" as ReadExactly.
absl::StatusOr<std::vector<ZipEntry>> ReadZipDirectory(const OpenedFile& file);

}  // namespace conclave::checkpoint
