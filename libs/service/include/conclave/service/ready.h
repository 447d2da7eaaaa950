// How a server says that it can do its work: one line on stdout before any other, one byte on
// --ready-fd, and sd_notify when a service manager asks for it. Scripts, units and tests wait for
// these.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace conclave::service {

struct ReadyState {
  std::string role;  // "serve", "frontend", "worker", "router"
  // In this order: api, admin, grpc, control, data; only those that the role has. {"api",
  // "http://127.0.0.1:8000"}.
  std::vector<std::pair<std::string, std::string>> endpoints;
  int pid = 0;
};

// "ready role=serve api=http://127.0.0.1:8000 admin=http://127.0.0.1:9000 pid=4711", without the
// newline.
std::string ReadyLine(const ReadyState& state);

// Writes the line to stdout, then a newline byte to `ready_fd` unless it is below 0 (and closes
// it), then "READY=1" to the socket `notify_socket` ($NOTIFY_SOCKET) unless that is empty. Fails,
// kUnavailable, when stdout or the fd cannot be written; a service manager that does not answer
// only costs a log line.
absl::Status AnnounceReady(const ReadyState& state, int ready_fd, const std::string& notify_socket);

// "--ready-fd" before anything starts: kInvalidArgument ("usage") unless `fd` is -1 or an open
// descriptor above 2.
absl::Status CheckReadyFd(int fd);

// One datagram in sd_notify's protocol, such as "STOPPING=1". `notify_socket`: a path, or "@name"
// for an abstract one; empty: nothing happens.
absl::Status NotifyServiceManager(const std::string& notify_socket, std::string_view message);

}  // namespace conclave::service
