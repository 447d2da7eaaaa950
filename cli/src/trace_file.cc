#include "trace_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <system_error>

#include "conclave/base/status.h"
#include "conclave/service/units.h"

namespace conclave::cli {
namespace {

// Twice what a router keeps.
constexpr off_t kTraceBytesMax = off_t{128} << 20;

absl::Status WriteFailed(const std::string& path, int error) {
  const bool is_full = error == ENOSPC || error == EDQUOT;
  return Error(absl::StatusCode::kResourceExhausted, is_full ? "disk_full" : "file_write_error",
               path + ": cannot be written: " + std::generic_category().message(error));
}

// 0, or why not.
int WriteAndSync(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written < 0) {
      return errno;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return ::fdatasync(fd) == 0 ? 0 : errno;
}

}  // namespace

absl::StatusOr<std::string> ReadTraceFile(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) {
    return NotFound("trace_file", path + ": " + std::generic_category().message(errno) +
                                      "; expected what `conclave cluster record save` wrote");
  }
  if (!S_ISREG(status.st_mode)) {
    return InvalidArgument("trace_file", path + ": expected a file");
  }
  if (status.st_size > kTraceBytesMax) {
    return InvalidArgument("trace_file", path + ": expected at most 128MiB, found " +
                                             std::to_string(status.st_size) + "B");
  }
  std::ifstream stream(path, std::ios::binary);
  std::string bytes(static_cast<size_t>(status.st_size), '\0');
  if (!stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()))) {
    return InvalidArgument("trace_file", path + ": cannot be read");
  }
  return bytes;
}

absl::Status WriteTraceFile(const std::string& path, std::string_view bytes) {
  const std::string partial = path + ".part";
  const int fd = ::open(partial.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    return WriteFailed(path, errno);
  }
  int error = WriteAndSync(fd, bytes);
  ::close(fd);
  if (error == 0 && std::rename(partial.c_str(), path.c_str()) != 0) {
    error = errno;
  }
  if (error != 0) {
    ::unlink(partial.c_str());
    return WriteFailed(path, error);
  }
  return absl::OkStatus();
}

}  // namespace conclave::cli
