// What the router's core takes in and gives out: plain values, the same for the gRPC shell, the
// tests and a simulator. Meanings and units as in proto/cluster.proto; nothing here allocates
// threads or touches the outside.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/ids.h"
#include "conclave/placement/placement.h"
#include "conclave/router_service/static_router.h"

namespace conclave::router_service {

using placement::ExpertUnit;

// One stream of a worker or a frontend. The shell chooses it and never uses one twice.
using SessionId = uint64_t;

inline constexpr uint32_t kProtocolMajor = 1;
inline constexpr uint32_t kProtocolMinor = 0;

struct RouterIdentity {
  uint32_t term = 0;
  std::string router_id;
  friend bool operator==(const RouterIdentity&, const RouterIdentity&) = default;
};

struct NumericMode {
  std::string dtype;
  std::string isa;
  uint32_t kernel_revision = 0;
  friend bool operator==(const NumericMode&, const NumericMode&) = default;
};

struct ModelIdentity {
  std::string manifest_hash;
  int32_t row_width = 0;
  int32_t top_k = 0;
  friend bool operator==(const ModelIdentity&, const ModelIdentity&) = default;
};

// SHA-256 of an expert's stored bytes.
using WeightHash = std::array<uint8_t, 32>;

struct HeldExpert {
  ExpertUnit unit;
  WeightHash weight_hash{};
  uint32_t canary_checksum = 0;
};

struct WorkerRegistration {
  uint32_t protocol_major = kProtocolMajor;
  std::string cluster_id;
  std::string name;
  uint64_t incarnation = 0;
  std::string data_address;
  std::string host_id;
  std::vector<std::string> channels;
  ModelIdentity model;
  NumericMode numeric;
  int64_t memory_bytes = 0;
  double speed = 1;
  int64_t expert_bytes = 0;
  std::vector<HeldExpert> held;
  RouterIdentity last_router;
  Epoch last_epoch;
  bool is_draining = false;
  std::vector<MoeLayer> moe_layers;
};

struct FrontendRegistration {
  uint32_t protocol_major = kProtocolMajor;
  std::string cluster_id;
  std::string name;
  uint64_t incarnation = 0;
  std::string api_address;  // of its HTTP API; empty: none
  ModelIdentity model;
  NumericMode numeric;
  RouterIdentity last_router;
  Epoch last_epoch;
};

// Decode and prefill, of text and of image tokens: the order of all arrays of four.
inline constexpr size_t kNumRowKinds = 4;
using RowKinds = std::array<double, kNumRowKinds>;

struct ExpertRows {
  ExpertUnit unit;
  std::array<uint64_t, kNumRowKinds> rows{};
};

// ---- Placements as they are published -----------------------------------------------------------

enum class MemberState : uint8_t { kLive, kSuspect, kDraining };

struct MemberView {
  WorkerId id;
  std::string name;
  uint64_t incarnation = 0;
  std::string data_address;
  std::string host_id;
  std::vector<std::string> channels;
  NumericMode numeric;
  MemberState state = MemberState::kLive;
  uint64_t key = 0;  // secret of the registration; peers get what derives from it
  friend bool operator==(const MemberView&, const MemberView&) = default;
};

struct UnitReplicas {
  ExpertUnit unit;
  std::vector<WorkerId> workers;  // empty: nobody serves it now
  WeightHash weight_hash{};
  friend bool operator==(const UnitReplicas&, const UnitReplicas&) = default;
};

// An epoch, or the same epoch with other states of members. Immutable, shared.
struct PlacementView {
  RouterIdentity router;
  Epoch epoch;
  std::vector<MemberView> workers;  // by id
  // By unit, never null; the same object as long as the epoch is the same.
  std::shared_ptr<const std::vector<UnitReplicas>> experts;
};

// What turns `from` into `to`: entries of `to` that are new or changed, and workers that are gone.
struct PlacementDelta {
  std::vector<const MemberView*> workers;  // point into `to`
  std::vector<WorkerId> removed_workers;
  std::vector<const UnitReplicas*> experts;
};
PlacementDelta Diff(const PlacementView& from, const PlacementView& to);

// ---- Events: everything that the core learns ----------------------------------------------------

// Time passes. Leases end and pauses of the process are noticed here and nowhere else; every 20 to
// 100 ms.
struct TickEvent {};

// The first message of a worker's stream. `fresh_key` is random, made by the shell for this event.
struct WorkerRegisterEvent {
  SessionId session = 0;
  WorkerRegistration registration;
  uint64_t fresh_key = 0;
};

struct HeartbeatEvent {
  SessionId session = 0;
  uint64_t seq = 0;
  uint64_t oldest_call_age_us = 0;
  uint32_t queued_rows = 0;
  double busy_ratio = 0;
  uint64_t tick_lateness_us = 0;
  bool is_canary_ok = true;
  Epoch epoch{};
};

struct LoadEvent {
  SessionId session = 0;
  uint64_t seq = 0;
  std::vector<ExpertRows> experts;
};

struct PrepareResultEvent {
  SessionId session = 0;
  uint64_t plan_id = 0;
  std::vector<HeldExpert> ready;
  std::vector<ExpertUnit> failed;
  std::string error;
};

struct RetireResultEvent {
  SessionId session = 0;
  uint64_t plan_id = 0;
};

struct DrainWishEvent {
  SessionId session = 0;
};

struct ExpertsLostEvent {
  SessionId session = 0;
  std::vector<ExpertUnit> experts;
  std::string why;
};

struct FrontendRegisterEvent {
  SessionId session = 0;
  FrontendRegistration registration;
};

struct EpochAckEvent {
  SessionId session = 0;
  Epoch epoch;
};

enum class PeerReportKind : uint8_t { kLinkLost, kTimeout, kSlow, kBadReply, kRecovered };

struct PeerReportEvent {
  SessionId session = 0;
  WorkerId worker;
  uint64_t worker_incarnation = 0;
  PeerReportKind kind = PeerReportKind::kLinkLost;
};

struct ResyncEvent {
  SessionId session = 0;
};

// A stream is over, whoever ended it.
struct SessionClosedEvent {
  SessionId session = 0;
};

// The answer to PersistState.
struct PersistedEvent {
  uint64_t version = 0;
  absl::Status status;
};

struct DrainCommand {
  std::string name;
  bool undo = false;
};
struct PinCommand {
  ExpertUnit unit;
  std::string worker;
  bool undo = false;
};
struct ReplicateCommand {
  ExpertUnit unit;
  int32_t replicas = 0;  // 0: as the cluster
};
struct RebalanceCommand {
  bool is_full = false;
};

// Begins or ends a recording of the routing (routing_trace.h).
struct RecordCommand {
  bool is_start = false;
  int64_t unix_us = 0;  // now, by the wall clock: what the recording says when it began
};

// What an operator asks; answered by an AdminReply with the same number once it is durable.
struct AdminEvent {
  uint64_t request = 0;
  std::variant<DrainCommand, PinCommand, ReplicateCommand, RebalanceCommand, RecordCommand> command;
};

using Event = std::variant<TickEvent, WorkerRegisterEvent, HeartbeatEvent, LoadEvent,
                           PrepareResultEvent, RetireResultEvent, DrainWishEvent, ExpertsLostEvent,
                           FrontendRegisterEvent, EpochAckEvent, PeerReportEvent, ResyncEvent,
                           SessionClosedEvent, PersistedEvent, AdminEvent>;

// ---- Actions: everything that the core wants done, in order -------------------------------------

struct SendRegistered {
  SessionId session = 0;
  WorkerId worker;
  uint64_t key = 0;
};
struct SendPrepare {
  SessionId session = 0;
  uint64_t plan_id = 0;
  std::vector<ExpertUnit> experts;
  std::vector<HeldExpert> expected;
};
struct SendRetire {
  SessionId session = 0;
  uint64_t plan_id = 0;
  std::vector<ExpertUnit> experts;
};
struct SendDrainState {
  SessionId session = 0;
  bool is_draining = false;
  bool is_drained = false;
};
struct SendHeartbeatAck {
  SessionId session = 0;
  uint64_t seq = 0;
};
// The shell sends what changed since the view that it sent to this session last, or everything
// where there is none or `is_snapshot`. Only the latest view counts: one that waits is replaced.
struct SendPlacement {
  SessionId session = 0;
  std::shared_ptr<const PlacementView> view;
  bool is_snapshot = false;
  std::optional<uint32_t> frontend_id;  // of the first one to a frontend
};
// Ends the stream with the status. A SessionClosedEvent may follow and changes nothing.
struct EndSession {
  SessionId session = 0;
  absl::Status status;
};
// Make this durable, then answer with PersistedEvent. One at a time.
struct PersistState {
  uint64_t version = 0;
  uint32_t term = 0;  // of the state
  std::string blob;
};

struct ReplicaMove {
  ExpertUnit unit;
  WorkerId to{-1};    // loads it; -1: none
  WorkerId from{-1};  // drops it; -1: none
};

struct RebalancePlan {
  std::vector<ReplicaMove> moves;
  int64_t bytes = 0;
  double imbalance_before = 0;
  double imbalance_after = 0;
  uint64_t plan_id = 0;
};

// What was recorded so far.
struct RecordingStatus {
  bool is_recording = false;
  bool is_full = false;  // stopped by the limit of its memory
  uint64_t bytes = 0;
  uint64_t windows = 0;
  uint64_t rows = 0;
};

// The file of a recording, in pieces that never change.
struct Recording {
  RecordingStatus status;
  std::vector<std::shared_ptr<const std::string>> pieces;  // empty: nothing was recorded
};

struct AdminReply {
  uint64_t request = 0;
  absl::Status status;
  bool is_drained = false;
  Epoch epoch;
  RebalancePlan rebalance;
  RecordingStatus recording;
};

enum class Severity : uint8_t { kInfo, kWarning, kError };
struct LogAction {
  Severity severity = Severity::kInfo;
  std::string message;
  std::vector<std::pair<std::string, std::string>> fields;
};

using Action =
    std::variant<SendRegistered, SendPrepare, SendRetire, SendDrainState, SendHeartbeatAck,
                 SendPlacement, EndSession, PersistState, AdminReply, LogAction>;

// ---- What an operator sees ----------------------------------------------------------------------

struct WorkerStatus {
  MemberView member;
  int32_t num_experts = 0;
  int32_t num_loading = 0;
  int64_t memory_bytes = 0;
  int64_t memory_used_bytes = 0;
  uint64_t last_heartbeat_ms = 0;
  double rows_per_second = 0;
  double busy_ratio = 0;
  uint32_t queued_rows = 0;
  bool is_drained = false;
  bool is_distrusted = false;  // gave other bits or failed to load: gets no experts any more
};

struct FrontendStatus {
  uint32_t frontend_id = 0;
  std::string name;
  Epoch acked_epoch;
  uint64_t incarnation = 0;
  std::string api_address;
};

struct ExpertStatus {
  ExpertUnit unit;
  std::vector<WorkerId> workers;
  RowKinds rows_per_second{};
};

// What of a worker's standing may change from one moment to the next.
struct MemberSign {
  WorkerId worker;
  MemberState state = MemberState::kLive;
  bool is_drained = false;
  bool is_distrusted = false;
  bool is_loading = false;
  friend bool operator==(const MemberSign&, const MemberSign&) = default;
};

// Cheap to ask for after every step: when it is another one, there is news in the status.
struct RouterSigns {
  Epoch epoch;
  uint64_t plan_id = 0;
  size_t num_frontends = 0;
  std::vector<MemberSign> workers;
  friend bool operator==(const RouterSigns&, const RouterSigns&) = default;
};

struct RouterStatus {
  RouterIdentity router;
  Epoch epoch;
  std::string state;  // "recovering", "serving", "standby"
  std::string blocked;
  int32_t replication_wanted = 0;
  int32_t replication_lowest = 0;
  std::vector<WorkerStatus> workers;
  std::vector<FrontendStatus> frontends;
  std::vector<ExpertStatus> experts;
  double imbalance_planned = 0;
  double imbalance_seen = 0;
  uint64_t placement_age_ms = 0;
  uint64_t plan_id = 0;      // under way; 0: none
  uint64_t plan_age_ms = 0;  // since it was made
  std::optional<RecordingStatus> recording;
};

// Why a plan was made: an expert or a worker was lost or joined; room for further replicas; loads
// that are less even than was planned; an operator's word.
enum class PlanReason : uint8_t { kRepair, kFill, kUneven, kOperator };
inline constexpr size_t kPlanReasons = 4;
// "repair", "fill", "uneven", "operator".
std::string_view NameOf(PlanReason reason);

// How a plan ended: its goal was published; another plan took its place; it could not be reached.
enum class PlanResult : uint8_t { kDone, kReplaced, kGivenUp };
inline constexpr size_t kPlanResults = 3;
// "done", "replaced", "given_up".
std::string_view NameOf(PlanResult result);

// Upper bounds in seconds of how long plans take, ascending.
inline constexpr std::array<double, 12> kPlanTimeBounds = {0.1, 0.25, 0.5, 1,   2.5, 5,
                                                           10,  30,   60,  120, 300, 900};

struct PlanTimes {
  std::array<uint64_t, kPlanTimeBounds.size() + 1> counts{};  // the last: beyond all bounds
  double sum = 0;                                             // seconds
};

// What has been counted since the start.
struct RouterCounters {
  uint64_t epochs = 0;
  uint64_t rebalances = 0;           // plans for balance, by the router or an operator
  uint64_t operator_rebalances = 0;  // of these, by an operator
  // Plans that ended.
  std::array<std::array<uint64_t, kPlanResults>, kPlanReasons> plans{};
  // Of those that are done: from being made to their goal being published.
  std::array<PlanTimes, kPlanReasons> plan_times{};
  uint64_t replicas_loaded = 0;
  uint64_t bytes_loaded = 0;  // of their weights
  uint64_t replicas_retired = 0;
  uint64_t workers_lost = 0;
  uint64_t reports_ignored = 0;
  uint64_t replicas_refused = 0;
  uint64_t plans_cancelled = 0;
};

}  // namespace conclave::router_service
