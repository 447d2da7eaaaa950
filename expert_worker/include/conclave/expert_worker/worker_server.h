// A whole expert worker: a member of a router's cluster that serves frontends over gRPC and UCX.
// What
// `conclave worker` runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/call_queue.h"
#include "conclave/expert_worker/worker_control.h"
#include "conclave/expert_worker/worker_core.h"
#include "conclave/kernels/context.h"
#include "conclave/service/watchdog.h"

namespace conclave::expert_worker {

struct WorkerServerOptions {
  // HOST:PORT of the control addresses of its routers, of which one leads; tried in turn.
  std::vector<std::string> routers;
  std::string listen_host = "127.0.0.1";  // numeric
  uint16_t listen_port = 0;               // 0: any free one
  // HOST:PORT that frontends are told; empty: the address that is listened on.
  std::string advertise;

  // How frontends may send calls, as --channel has it: "auto", "ucx" or "grpc". UCX only where
  // listen_host is an address of the loopback, or the network is trusted.
  std::string channel = "auto";
  bool is_trusted_network = false;

  std::string name;        // [a-zA-Z0-9._-]{1,64}; unique in the cluster
  std::string cluster_id;  // empty: any
  // Files of --tls-cert, --tls-key, --tls-ca; all empty: no TLS.
  std::string tls_certificate;
  std::string tls_key;
  std::string tls_authority;

  DType dtype = DType::kBf16;
  kernels::Isa isa = kernels::Isa::kScalar;
  // Of the compute threads; its pool outlives the server.
  kernels::Context compute;
  int64_t memory_bytes = 0;  // of experts; > 0
  uint16_t max_rows = 256;   // of a call

  CallQueueOptions queue;
  std::chrono::milliseconds drain_timeout{30'000};
  std::chrono::milliseconds canary_interval{60'000};
};

// For metrics and health.
struct WorkerFigures {
  WorkerState state = WorkerState::kConnecting;
  bool is_ready = false;
  uint64_t epoch = 0;
  size_t num_experts = 0;
  size_t num_loading = 0;
  int64_t memory_bytes = 0;
  int64_t memory_used_bytes = 0;
  uint64_t canary_failures = 0;
  uint64_t calls = 0;          // answered with rows
  uint64_t calls_refused = 0;  // answered with an error
  uint64_t rows = 0;
  double busy_seconds = 0;
  double us_per_row = 0;
  CallQueue::Figures queue;
  uint64_t link_bytes_sent = 0;
  uint64_t link_bytes_received = 0;
  uint64_t link_malformed = 0;
  uint64_t link_duplicates = 0;
  uint32_t link_sessions = 0;
};

// Any thread.
class WorkerServer {
 public:
  // Listens and begins to look for its router; holds no expert yet. `checkpoint` outlives the
  // server. kUnavailable ("bind"); kInvalidArgument ("tls_config"); for channel "ucx" what keeps it
  // away: kFailedPrecondition ("untrusted_network"), kUnavailable ("ucx_unavailable").
  static absl::StatusOr<std::unique_ptr<WorkerServer>> Start(
      const checkpoint::Checkpoint& checkpoint, const WorkerServerOptions& options);

  // Stops at once: links are cut.
  ~WorkerServer();
  WorkerServer(const WorkerServer&) = delete;
  WorkerServer& operator=(const WorkerServer&) = delete;

  // Of the data address.
  uint16_t port() const;

  // Waits until it is registered, what the router gave it is loaded, and it answers calls. False
  // when it stopped before.
  bool WaitReady();

  // Leaves the cluster: serves until the router says that nothing is routed here, at most
  // drain_timeout. Does not block.
  void Drain();

  // Waits until it has left, or cannot be a member: OK, or why the router refused it
  // ("cluster_mismatch", "name_taken", ...). What it has taken is answered by then.
  absl::Status WaitStopped();

  // For who looks whether its threads go on. Runs `task`, which must not block, on the control
  // thread, soon; and what the compute thread has done and has to do.
  void PostToControl(std::function<void()> task);
  service::Pulse compute_pulse() const;

  WorkerFigures figures() const;
  // As WorkerCore::Loads.
  std::vector<ExpertLoad> Loads() const;
  // The worker's id in placements; -1 before it is registered.
  int32_t worker_id() const;

 private:
  struct State;
  explicit WorkerServer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::expert_worker
