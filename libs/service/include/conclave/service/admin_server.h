// The admin listener of every role: GET /metrics, /health/live, /health/ready, and the routes that
// a role adds (the page and its API); in a build with failpoints also GET and PUT /debug/failpoints
// (base/failpoint.h).
// Own port, loopback unless the operator says otherwise; one thread, a few connections, short
// limits: it must answer while the process is busy and must never be what makes it so.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/service/address.h"

namespace conclave::service {

struct Health {
  bool is_ready = false;
  std::string state;      // "loading", "ready", "draining", "degraded", "standby": a word of ours
  double progress = 1.0;  // 0..1, shown while loading
};

struct AdminRequest {
  std::string path;
  std::string query;          // behind the '?', as it came
  std::string authorization;  // the header's value
  std::string body;
};

// The value of `name` in a query ("a=1&b=2"), percent signs decoded; empty when it is not there.
std::string QueryValue(std::string_view query, std::string_view name);

// The answer to one request: one Send, or a stream. Any thread, at any time; what comes when the
// client has gone is dropped.
class AdminReply {
 public:
  virtual ~AdminReply() = default;

  using Headers = std::vector<std::pair<std::string, std::string>>;
  virtual void Send(int status, std::string_view content_type, std::string body,
                    Headers headers = {}) = 0;

  // A body without an end, such as server-sent events; the connection serves nothing else.
  // `on_closed` is called once, when the client has gone or the server ends, on a thread of theirs.
  virtual void BeginStream(std::string_view content_type, std::function<void()> on_closed) = 0;
  // A piece of it. A client that leaves too much unread is cut off.
  virtual void Write(std::shared_ptr<const std::string> piece) = 0;
};

struct AdminRoute {
  std::string method;  // "GET" (HEAD too) or "POST"
  std::string path;    // exact, or everything below it where it ends in '/'
  size_t body_bytes_max = 1 << 10;
  // Called on the server's thread; must not block. One of the two is set.
  std::function<void(const AdminRequest& request, std::shared_ptr<AdminReply> reply)> handler;
  // Hands the request on to an HTTP server and its answer back, as it comes. An error is answered
  // 503 with its reason.
  std::function<absl::StatusOr<Address>()> upstream;
};

struct AdminServerOptions {
  std::string host = "127.0.0.1";  // numeric
  uint16_t port = 0;               // 0: any free one
  // Called on the server's thread; must not block for long. A page above 1 MiB is answered 500.
  std::function<std::string()> metrics_text;
  std::function<Health()> health;
  // POST is taken with a body of JSON, and from a browser only where the page is of this server.
  std::vector<AdminRoute> routes = {};
};

class AdminServer {
 public:
  // Binds and starts the thread. kUnavailable ("bind") with "bind HOST:PORT: why".
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(AdminServerOptions options);
  // Stops at once: open connections are cut.
  ~AdminServer();
  AdminServer(const AdminServer&) = delete;
  AdminServer& operator=(const AdminServer&) = delete;

  uint16_t port() const;

 private:
  struct State;
  explicit AdminServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// {"status":"loading","progress":0.42} or {"status":"ready"}: the body of /health/ready.
std::string HealthBody(const Health& health);

// {"error":{"code":…,"message":…}}, with the reason and message of `status`.
std::string AdminErrorBody(const absl::Status& status);
// The HTTP status of an error by its canonical code.
int AdminErrorStatus(const absl::Status& status);

}  // namespace conclave::service
