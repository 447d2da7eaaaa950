// What a worker does about its router: membership, loading and retiring experts, draining, and whom
// to obey. A state machine without I/O: events with the time go in, actions come out. No clock, no
// thread, no randomness but a seed, and no order that depends on a hash; so a simulation can run it
// as it is. The data plane is not here: calls are served whatever this says, because
// weights are named by hash and do not change.
//
// Whom to obey (fencing): the highest term that it has seen and, within it, the first router id.
// Lease: a command that changes what is held is begun only while the last heartbeat that the router
// has acknowledged was sent less than 0.8 of dead_after ago (1.2 s). A worker that was stopped, or
// cut off, so does nothing on commands of the past. After dead_after it gives the stream up and
// registers again with what it holds.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/base/ids.h"
#include "conclave/expert_worker/held_expert.h"
#include "conclave/placement/placement.h"

namespace conclave::expert_worker {

struct RouterIdentity {
  uint32_t term = 0;  // 0: none seen yet
  std::string router_id;
  friend bool operator==(const RouterIdentity&, const RouterIdentity&) = default;
};

// Commands of a router (cluster.proto, WorkerCommand).
struct RegisteredCommand {
  WorkerId worker;
  uint64_t worker_key = 0;
  std::chrono::milliseconds heartbeat_interval{200};
  std::chrono::milliseconds dead_after{1500};
  std::chrono::milliseconds load_interval{1000};
};
struct PrepareCommand {
  uint64_t plan_id = 0;
  std::vector<placement::ExpertUnit> units;
  // What is known of them, by unit; may lack entries.
  std::map<placement::ExpertUnit, ExpectedExpert> expected;
};
struct RetireCommand {
  uint64_t plan_id = 0;
  std::vector<placement::ExpertUnit> units;
};
struct PlacementCommand {
  Epoch epoch;
  Epoch base_epoch;  // 0: a snapshot
  // Units with their workers; in a delta those that changed. No workers: the unit is served no
  // more.
  std::vector<std::pair<placement::ExpertUnit, std::vector<WorkerId>>> units;
};
struct DrainCommand {
  bool is_draining = false;
  bool is_drained = false;
};
struct HeartbeatAckCommand {
  uint64_t seq = 0;
};
struct RouterCommand {
  RouterIdentity router;
  std::variant<RegisteredCommand, PrepareCommand, RetireCommand, PlacementCommand, DrainCommand,
               HeartbeatAckCommand>
      command;
};

// Who holds what, by the last placement. Immutable.
using Holders = std::map<placement::ExpertUnit, std::vector<WorkerId>>;

// What is to be done. Answers of earlier actions come back as events; nothing is awaited.
namespace action {
// Open a stream and send the registration (registration()).
struct Connect {};
// Give the stream up; OnStreamLost is not called for it.
struct Disconnect {
  absl::Status why;
};
struct SendHeartbeat {
  uint64_t seq = 0;
  Epoch epoch;
  bool is_canary_ok = true;
};
// Send what was computed since the report before (LoadDeltas).
struct SendLoads {
  uint64_t seq = 0;
  std::chrono::microseconds window{0};
};
// Answered by OnLoaded.
struct LoadExpert {
  placement::ExpertUnit unit;
  ExpectedExpert expected;
};
// Answered by OnRetired. plan_id 0: on the worker's own account, nobody is told.
struct RetireExperts {
  uint64_t plan_id = 0;
  std::vector<placement::ExpertUnit> units;
};
struct SendPrepareResult {
  uint64_t plan_id = 0;
  std::vector<HeldExpert> ready;
  std::vector<placement::ExpertUnit> failed;
  std::string error;
};
struct SendRetireResult {
  uint64_t plan_id = 0;
  int64_t freed_bytes = 0;
};
struct SendExpertsLost {
  std::vector<placement::ExpertUnit> units;
  std::string why;
};
struct SendDrainWish {};
// Frontends may shake hands with this identity from now on.
struct SetRegistration {
  WorkerId worker;
  uint64_t worker_key = 0;
  Epoch epoch;
};
// For NACKs.
struct SetPlacement {
  Epoch epoch;
  std::shared_ptr<const Holders> holders;
};
// Once: registered, and what the router gave it is loaded.
struct AnnounceReady {};
// The process ends: OK after a drain, else why it cannot work.
struct Stop {
  absl::Status status;
};
}  // namespace action
using WorkerAction =
    std::variant<action::Connect, action::Disconnect, action::SendHeartbeat, action::SendLoads,
                 action::LoadExpert, action::RetireExperts, action::SendPrepareResult,
                 action::SendRetireResult, action::SendExpertsLost, action::SendDrainWish,
                 action::SetRegistration, action::SetPlacement, action::AnnounceReady,
                 action::Stop>;
using WorkerActions = std::vector<WorkerAction>;

struct WorkerControlOptions {
  // Of the jitter of reconnects; differs between workers.
  uint64_t seed = 1;
  int max_loads = 2;  // at once
  std::chrono::milliseconds backoff_min{100};
  std::chrono::milliseconds backoff_max{2000};
  // No answer to a connection for so long: another attempt. A router that recovers answers after
  // its 3 s and a write to disk, and takes an attempt that is given up before for a worker's end.
  std::chrono::milliseconds connect_timeout{6000};
  // A router that gives a new worker nothing to load for so long has nothing for it: it is ready.
  std::chrono::milliseconds settle_after{1000};
  std::chrono::milliseconds drain_timeout{30'000};
  // A name may be taken by the worker's own predecessor, whose lease has to end first.
  std::chrono::milliseconds name_taken_after{5000};
};

// What goes into `register`, beside what never changes.
struct RegistrationFacts {
  std::vector<HeldExpert> held;
  RouterIdentity last_router;
  Epoch last_epoch;
  bool is_draining = false;
};

// Cumulative rows of an expert: decode text, decode image, prefill text, prefill image.
struct UnitRows {
  placement::ExpertUnit unit;
  uint64_t rows[4] = {};
};

enum class WorkerState : uint8_t { kConnecting, kRegistered, kFenced, kDraining, kStopped };
// "connecting", "registered", "fenced", "draining", "stopped".
std::string_view NameOf(WorkerState state);

// One thread. Every event appends the actions that follow, in the order in which they are to be
// done. `now` never falls.
class WorkerControlCore {
 public:
  explicit WorkerControlCore(const WorkerControlOptions& options) : options_(options) {}

  void Start(MonotonicTime now, WorkerActions* out);

  // A message of the stream that the last Connect opened.
  void OnCommand(MonotonicTime now, const RouterCommand& command, WorkerActions* out);
  // The stream ended, or could not be opened. Never OK.
  void OnStreamLost(MonotonicTime now, const absl::Status& why, WorkerActions* out);

  void OnLoaded(MonotonicTime now, placement::ExpertUnit unit,
                const absl::StatusOr<HeldExpert>& loaded, WorkerActions* out);
  void OnRetired(MonotonicTime now, uint64_t plan_id, int64_t freed_bytes, WorkerActions* out);
  // The expert's canary failed: it is dropped and reported.
  void OnCanaryFailed(MonotonicTime now, placement::ExpertUnit unit, WorkerActions* out);

  // SIGTERM: leaves when the router says that nothing is routed here, or after drain_timeout.
  // A worker that never was a member stops at once. Repeating it changes nothing.
  void OnDrainWish(MonotonicTime now, WorkerActions* out);

  // Does what is due. To be called at NextTimer(), or at any time.
  void OnTimer(MonotonicTime now, WorkerActions* out);
  // When something is due; MonotonicTime::max(): nothing is.
  MonotonicTime NextTimer() const;

  RegistrationFacts registration() const;

  // Rows since the call before, of the experts that had any. `cumulative` ascends by unit.
  std::vector<UnitRows> LoadDeltas(std::span<const UnitRows> cumulative);

  WorkerState state(MonotonicTime now) const;
  bool is_ready() const { return is_announced_; }
  Epoch epoch() const { return epoch_; }
  const RouterIdentity& router() const { return router_; }
  std::optional<WorkerId> worker() const { return worker_; }
  size_t num_loading() const { return loading_.size() + load_queue_.size(); }

 private:
  enum class Link : uint8_t { kDown, kConnecting, kUp };
  struct Plan {
    std::set<placement::ExpertUnit> open;
    std::vector<placement::ExpertUnit> units;
    std::vector<placement::ExpertUnit> failed;
    std::string error;
  };

  void Handle(MonotonicTime now, const RegisteredCommand& command, WorkerActions* out);
  void Handle(MonotonicTime now, const PrepareCommand& command, WorkerActions* out);
  void Handle(MonotonicTime now, const RetireCommand& command, WorkerActions* out);
  void Handle(MonotonicTime now, const PlacementCommand& command, WorkerActions* out);
  void Handle(MonotonicTime now, const DrainCommand& command, WorkerActions* out);
  void Handle(MonotonicTime now, const HeartbeatAckCommand& command, WorkerActions* out);

  // Whether the command is of the router to obey; raises the fence.
  bool Obeys(const RouterIdentity& router);
  bool HasLease(MonotonicTime now) const;
  void Connect(MonotonicTime now, WorkerActions* out);
  void Reconnect(MonotonicTime now, WorkerActions* out);
  void Disconnect(MonotonicTime now, absl::Status why, WorkerActions* out);
  void Begin(MonotonicTime now, WorkerActions* out);
  void BeginRetires(WorkerActions* out);
  void Finish(uint64_t plan_id, WorkerActions* out);
  void Resolve(placement::ExpertUnit unit, const absl::Status& status, WorkerActions* out);
  bool MayBecomeReady() const;
  void CheckReady(MonotonicTime now, WorkerActions* out);
  void Stop(absl::Status status, WorkerActions* out);
  std::chrono::nanoseconds FenceAfter() const;
  MonotonicTime SilentAt() const;

  const WorkerControlOptions options_;

  // The link and the lease.
  Link link_ = Link::kDown;
  MonotonicTime started_at_;
  MonotonicTime connect_at_ = MonotonicTime::max();  // kDown: the next attempt
  MonotonicTime connected_at_;                       // of the last Connect
  int num_failures_ = 0;                             // attempts since the last acknowledgement
  uint64_t jitter_state_ = 0;
  RouterIdentity router_;
  RegisteredCommand terms_;  // of the last registration
  std::optional<WorkerId> worker_;
  MonotonicTime registered_at_;  // of the last registration
  MonotonicTime lease_from_;     // when what the router acknowledged was sent
  std::deque<std::pair<uint64_t, MonotonicTime>> unacknowledged_;  // seq, sent at
  uint64_t heartbeat_seq_ = 0;
  uint64_t load_seq_ = 0;
  MonotonicTime next_heartbeat_ = MonotonicTime::max();
  MonotonicTime next_load_ = MonotonicTime::max();
  MonotonicTime last_load_;

  // Experts.
  std::map<placement::ExpertUnit, HeldExpert> held_;
  std::map<placement::ExpertUnit, ExpectedExpert> loading_;  // actions under way
  // Of them, those that no command of the present stream wants.
  std::set<placement::ExpertUnit> orphans_;
  std::deque<std::pair<placement::ExpertUnit, ExpectedExpert>> load_queue_;
  std::map<uint64_t, Plan> plans_;
  std::deque<RetireCommand> retire_queue_;
  std::set<uint64_t> retiring_;
  std::set<placement::ExpertUnit> canary_failed_;  // and not loaded again since

  // Placement.
  Epoch epoch_;
  Holders holders_;
  bool has_placement_ = false;

  // Ready and drain.
  MonotonicTime quiet_since_;  // the last registration or end of a plan
  MonotonicTime looked_at_;    // the last CheckReady
  bool has_failed_plan_ = false;
  bool is_announced_ = false;
  std::optional<MonotonicTime> drain_since_;
  bool is_stopped_ = false;

  std::map<placement::ExpertUnit, UnitRows> reported_;
};

}  // namespace conclave::expert_worker
