// Files of a model folder, opened so that nothing outside the folder and nothing but regular files
// is ever read, and read so that every error has a name.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::checkpoint {

// How often a failing read is tried before it is an error.
inline constexpr int kReadTries = 3;

// Owns a file descriptor.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd();
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

// What tells two states of a file apart.
struct FileStamp {
  uint64_t device = 0;
  uint64_t inode = 0;
  int64_t size_bytes = 0;
  int64_t mtime_ns = 0;
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};

struct OpenedFile {
  UniqueFd fd;
  std::string name;  // as in messages: relative to the model folder
  std::string path;  // absolute, links resolved
  FileStamp stamp;
};

// "" or why `file`, or what now lies at its path, is not what was opened.
std::string WhatChanged(const OpenedFile& file);

// A file mapped read-only and private.
class MappedFile {
 public:
  MappedFile() = default;
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  static absl::StatusOr<MappedFile> Map(const OpenedFile& file);
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

// What became of pages of a mapped file that were to be brought in.
enum class Populated : uint8_t {
  kDone,
  kFailed,   // a page cannot be read: touching it would be a SIGBUS
  kUnknown,  // this kernel cannot tell
};

// Brings the pages of `bytes`, which begin on one, in and into the page tables, three times in all
// where that fails.
Populated Populate(std::span<const std::byte> bytes);

using PreadFn = ssize_t (*)(int fd, void* buffer, size_t size, off_t offset);

// Fills `out` from `offset`. A read error is tried three times in all, then "model_read_error" with
// the offset. A file that ends early is "model_changed_during_load": its size was known. `pread` is
// replaced in tests.
absl::Status ReadExactly(const OpenedFile& file, int64_t offset, std::span<char> out,
                         PreadFn pread);
absl::Status ReadExactly(const OpenedFile& file, int64_t offset, std::span<char> out);

class ModelFolder {
 public:
  // "model_file_missing", "not_a_regular_file", "pickle_refused" or "model_format_unsupported" when
  // `path` is no folder.
  static absl::StatusOr<ModelFolder> Open(const std::string& path);

  const std::string& path() const { return path_; }  // absolute, links resolved
  std::string base_name() const;

  // Whether something (be it a dangling link) of that name is in the folder.
  bool Has(std::string_view name) const;

  // Names in the folder, sorted.
  absl::StatusOr<std::vector<std::string>> List() const;

  // "model_file_missing", "model_path_escape" or "not_a_regular_file".
  absl::StatusOr<OpenedFile> OpenFile(const std::string& name) const;

  // The whole file; one larger than `bytes_max` fails with `too_large_reason`.
  absl::StatusOr<std::string> ReadText(const std::string& name, int64_t bytes_max,
                                       std::string_view too_large_reason) const;

 private:
  explicit ModelFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

// "model_format_unsupported" or "pickle_refused" for the name of a weight file in a format that is
// not read; OK for any other name.
absl::Status CheckFormat(const std::string& name);

}  // namespace conclave::checkpoint
