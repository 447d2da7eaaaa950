// The admin listener of every role: GET /metrics, /health/live, /health/ready, and nothing else; in
// a build with failpoints also GET and PUT /debug/failpoints (base/failpoint.h).
// Own port, loopback unless the operator says otherwise; one thread, a few connections, short
// limits: it must answer while the process is busy and must never be what makes it so.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace conclave::service {

struct Health {
  bool is_ready = false;
  std::string state;      // "loading", "ready", "draining", "degraded", "standby": a word of ours
  double progress = 1.0;  // 0..1, shown while loading
};

struct AdminServerOptions {
  std::string host = "127.0.0.1";  // numeric
  uint16_t port = 0;               // 0: any free one
  // Called on the server's thread; must not block for long. A page above 1 MiB is answered 500.
  std::function<std::string()> metrics_text;
  std::function<Health()> health;
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

}  // namespace conclave::service
