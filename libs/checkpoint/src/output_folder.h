// A new model folder, whole or not there at all.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::checkpoint {

// Made under another name beside the one it will have, and removed again with all that is in it
// unless it is kept.
class OutputFolder {
 public:
  // `target` must not exist or be empty: "folder_not_empty"; "folder_invalid" for no path,
  // "file_write_error" where nothing can be made.
  static absl::StatusOr<OutputFolder> Create(const std::string& target);

  ~OutputFolder();
  OutputFolder(OutputFolder&& other) noexcept;
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  // Where to write.
  const std::filesystem::path& path() const { return path_; }

  // Gives it its name; the last call. What came up there meanwhile is not lost: only an empty
  // folder is replaced.
  absl::Status Keep();

 private:
  OutputFolder() = default;
  std::filesystem::path path_;  // empty: kept
  std::filesystem::path target_;
};

// "file_write_error"
absl::Status WriteText(const std::filesystem::path& path, std::string_view text);

// "disk_full" when the file system of the folder `path` has less free than `bytes` and some for
// text files and its own blocks.
absl::Status CheckFreeSpace(const std::string& path, int64_t bytes);

}  // namespace conclave::checkpoint
