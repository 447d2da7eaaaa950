#include "conclave/service/ready.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <system_error>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::service {
namespace {

std::string LastError() { return std::error_code(errno, std::generic_category()).message(); }

absl::Status Unavailable(std::string_view message) {
  return Error(absl::StatusCode::kUnavailable, "internal", message);
}

absl::Status WriteAll(int fd, std::string_view text, std::string_view name) {
  while (!text.empty()) {
    const ssize_t written = ::write(fd, text.data(), text.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written < 0) {
      return Unavailable(std::string(name) + ": " + LastError());
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ReadyLine(const ReadyState& state) {
  std::string line = "ready role=" + state.role;
  for (const auto& [key, value] : state.endpoints) {
    line.append(" ").append(key).append("=").append(value);
  }
  return line + " pid=" + std::to_string(state.pid);
}

absl::Status AnnounceReady(const ReadyState& state, int ready_fd,
                           const std::string& notify_socket) {
  // Past stdio: nothing that is buffered there may come first, and the line must be out when this
  // returns.
  CONCLAVE_RETURN_IF_ERROR(WriteAll(STDOUT_FILENO, ReadyLine(state) + "\n", "stdout"));
  if (ready_fd >= 0) {
    CONCLAVE_RETURN_IF_ERROR(WriteAll(ready_fd, "\n", "--ready-fd"));
    ::close(ready_fd);
  }
  if (const absl::Status status = NotifyServiceManager(notify_socket, "READY=1"); !status.ok()) {
    observability::LogWarning("the service manager was not told", {{"why", MessageOf(status)}});
  }
  return absl::OkStatus();
}

absl::Status CheckReadyFd(int fd) {
  if (fd == -1) {
    return absl::OkStatus();
  }
  if (fd <= STDERR_FILENO || ::fcntl(fd, F_GETFD) < 0) {
    return InvalidArgument(
        "usage", "--ready-fd: expected an open descriptor above 2, found " + std::to_string(fd));
  }
  return absl::OkStatus();
}

absl::Status NotifyServiceManager(const std::string& notify_socket, std::string_view message) {
  if (notify_socket.empty()) {
    return absl::OkStatus();
  }
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (notify_socket.size() >= sizeof(address.sun_path) ||
      (notify_socket[0] != '/' && notify_socket[0] != '@')) {
    return Unavailable("NOTIFY_SOCKET: expected an absolute path or @name of a socket");
  }
  std::memcpy(address.sun_path, notify_socket.data(), notify_socket.size());
  if (notify_socket[0] == '@') {
    address.sun_path[0] = '\0';  // The abstract namespace.
  }
  const int fd = ::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) {
    return Unavailable("NOTIFY_SOCKET: " + LastError());
  }
  const auto length =
      static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + notify_socket.size());
  const ssize_t sent = ::sendto(fd, message.data(), message.size(), MSG_NOSIGNAL,
                                reinterpret_cast<const sockaddr*>(&address), length);
  const std::string error = sent < 0 ? LastError() : "";
  ::close(fd);
  return sent < 0 ? Unavailable("NOTIFY_SOCKET: " + error) : absl::OkStatus();
}

}  // namespace conclave::service
