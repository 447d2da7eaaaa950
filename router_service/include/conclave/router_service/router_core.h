// The router as a state machine: who is a member, who holds which expert, and how one placement
// becomes the next. It has no clock, thread, socket, file or random number: Step takes what
// happened and appends what is to be done. The same events give the same actions, on every machine.
//
// Rules that hold after every step (docs/decisions/0013-router-core.md):
//   - nothing goes out that depends on a state which is not durable: a new term, epoch or worker id
//     waits for its PersistedEvent;
//   - an expert's replica leaves a placement by the router's will only when those of the plan are
//     loaded; it is dropped from memory (Retire) only when no live frontend routes to it;
//   - a worker dies by its stream's end or by dead_after of the router's own time without a pause;
//     reports of frontends raise suspicion and nothing more;
//   - term << 32 | n never falls; a peer that has obeyed a higher term makes this router raise its
//     own at once where it has no followers or has just started, and stand by otherwise.
//
// One thread. The caller carries actions out in order; SendPlacement may skip to the latest.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/router_service/router_state.h"
#include "conclave/router_service/router_types.h"

namespace conclave::router_service {

using std::chrono::milliseconds;

struct CoreOptions {
  std::string cluster_id;  // empty: members of any cluster
  std::string router_id;   // random, of this start
  // Replicas of every expert, as far as workers and their memory allow.
  int32_t replication = 2;
  // Empty: what the first worker says.
  ModelIdentity model;
  std::vector<MoeLayer> layers;
  // This router's first term is above it and above that of the kept state.
  uint32_t terms_used = 0;

  milliseconds suspect_after{600};
  // Longer: a slower repair. Shorter: workers on loaded machines die falsely, and weights move.
  milliseconds dead_after{1500};
  // Unanswered ticks of at most this length count as time for leases: the rest was a pause of ours.
  milliseconds tick_credit{100};
  // A gap between ticks above this restarts all leases.
  milliseconds pause_after{2000};
  // How long a router without state listens, and how long one with state waits for its members.
  milliseconds recover{3000};
  // Between a death by silence and loads in its place.
  milliseconds repair_delay{2000};
  // Between runs of the planner for balance, and between plans that it published.
  milliseconds plan_interval{5000};
  milliseconds rebalance_interval{30'000};
  // A publication that nobody waits for is put together with those of this time.
  milliseconds publish_interval{100};
  // A frontend that has not acknowledged an epoch for so long does not hold up Retire.
  milliseconds ack_timeout{10'000};
  // A load without an answer for so long has failed.
  milliseconds load_timeout{300'000};
  milliseconds persist_retry{1000};
  int32_t loads_max = 2;         // Prepare commands under way per worker
  int32_t load_experts_max = 8;  // experts of one
  // Memory of a recording; when it is full, recording stops.
  size_t recording_bytes_max = size_t{64} << 20;
  int32_t workers_max = 1024;
  int32_t frontends_max = 1024;
};

class RouterCore {
 public:
  // `state` as it was kept, or nothing (none yet, or lost). Nothing happens before the first Step.
  RouterCore(CoreOptions options, std::optional<RouterState> state);
  ~RouterCore();
  RouterCore(const RouterCore&) = delete;
  RouterCore& operator=(const RouterCore&) = delete;

  // `now` never falls. The first call starts the router's clocks.
  void Step(MonotonicTime now, const Event& event, std::vector<Action>& actions);

  // Of everything that is sent now.
  const RouterIdentity& identity() const;

  RouterStatus Status(MonotonicTime now) const;
  RouterSigns Signs() const;
  const RouterCounters& counters() const;

  // Experts that nobody would serve without the worker. kNotFound ("worker_unknown").
  absl::StatusOr<std::vector<ExpertUnit>> AtRiskWithout(const std::string& name) const;

  // What RecordCommand has begun, up to now. kNotFound ("no_recording").
  absl::StatusOr<Recording> CurrentRecording() const;

  // What Rebalance would do now.
  absl::StatusOr<RebalancePlan> TryRebalance(bool is_full) const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::router_service
