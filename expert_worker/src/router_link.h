// The worker's way to its router and to its frontends, as the runtime sees them: without gRPC, so
// that tests stand in for both.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/ids.h"
#include "conclave/expert_worker/worker_control.h"

namespace conclave::expert_worker {

struct HeartbeatReport {
  uint64_t seq = 0;
  std::chrono::microseconds oldest_call_age{0};
  uint32_t queued_rows = 0;
  double busy_ratio = 0;
  std::chrono::microseconds tick_lateness{0};
  bool is_canary_ok = true;
  Epoch epoch;
};

struct LoadsReport {
  uint64_t seq = 0;
  std::chrono::microseconds window{0};
  std::vector<UnitRows> experts;
  double us_per_row = 0;
};

using RouterReport =
    std::variant<HeartbeatReport, LoadsReport, action::SendPrepareResult, action::SendRetireResult,
                 action::SendExpertsLost, action::SendDrainWish>;

// What a stream tells. Any thread, but not from within Open.
struct StreamEvents {
  // False: too much waits already, the stream is to be given up.
  std::function<bool(const RouterCommand&)> on_command;
  // Once, last.
  std::function<void(const absl::Status&)> on_lost;
};

// The stream to the router, one at a time. Used by the control thread.
class RouterLink {
 public:
  virtual ~RouterLink() = default;
  // Opens a stream and registers; does not wait.
  virtual void Open(const RegistrationFacts& facts, StreamEvents events) = 0;
  // Gives the stream up, without waiting for the router; its events have all come when it returns.
  virtual void Close() = 0;
  // Dropped when there is no stream.
  virtual void Send(const RouterReport& report) = 0;
};

// Where frontends come in (transport::ExpertServer). Any thread.
class DataPlane {
 public:
  virtual ~DataPlane() = default;
  virtual void SetRegistration(WorkerId worker, uint64_t worker_key, Epoch epoch) = 0;
  virtual void SetEpoch(Epoch epoch) = 0;
  virtual void SetDraining(bool is_draining) = 0;
};

}  // namespace conclave::expert_worker
