#include "file_output.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "conclave/base/status.h"

namespace conclave::checkpoint {

absl::Status WriteError(const std::string& path, int error) {
  const bool is_full = error == ENOSPC || error == EDQUOT;
  return Error(absl::StatusCode::kResourceExhausted, is_full ? "disk_full" : "file_write_error",
               path + ": cannot be written: " + std::generic_category().message(error));
}

absl::StatusOr<UniqueFd> CreateFile(const std::string& path, int64_t size_bytes) {
  UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644));
  if (fd.get() < 0 || ::ftruncate(fd.get(), size_bytes) != 0) {
    return WriteError(path, errno);
  }
  return fd;
}

absl::Status PwriteAll(int fd, const std::string& path, int64_t offset,
                       std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(fd, bytes.data(), bytes.size(), offset);
    if (put < 0 && errno == EINTR) {
      continue;
    }
    if (put <= 0) {
      return WriteError(path, put < 0 ? errno : EIO);
    }
    bytes = bytes.subspan(static_cast<size_t>(put));
    offset += put;
  }
  return absl::OkStatus();
}

absl::Status SyncAndClose(UniqueFd& fd, const std::string& path) {
  const int result = ::fdatasync(fd.get());
  const int error = errno;
  fd = UniqueFd();
  return result == 0 ? absl::OkStatus() : WriteError(path, error);
}

}  // namespace conclave::checkpoint
