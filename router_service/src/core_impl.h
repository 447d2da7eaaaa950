// The parts of the core that share its tables. router_core.cc: life and durability.
// core_members.cc: who comes and goes. core_reports.cc: what members say. core_placement.cc: plans,
// and the way from one placement to the next. core_admin.cc: operators.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "conclave/router_service/router_core.h"
#include "lease_clock.h"
#include "load_table.h"
#include "members.h"
#include "planning.h"
#include "routing_recorder.h"
#include "weight_ledger.h"

namespace conclave::router_service {

// NOLINTNEXTLINE(clang-analyzer-optin.performance.Padding): one per process, grouped by meaning
class RouterCore::Impl {
 public:
  Impl(CoreOptions options, std::optional<RouterState> state);

  void Step(MonotonicTime now, const Event& event, std::vector<Action>& actions);
  const RouterIdentity& identity() const { return identity_; }
  const RouterCounters& counters() const { return counters_; }
  RouterStatus Status(MonotonicTime now) const;
  RouterSigns Signs() const;
  absl::StatusOr<std::vector<ExpertUnit>> AtRiskWithout(const std::string& name) const;
  absl::StatusOr<RebalancePlan> TryRebalance(bool is_full) const;
  absl::StatusOr<Recording> CurrentRecording() const;

 private:
  enum class Mode : uint8_t { kRecovering, kServing, kStandby };

  // What waits until the state that it depends on is durable.
  struct Admission {
    WorkerId worker;
    SessionId session;
  };
  struct Publication {
    ReplicaMap placement;
    Epoch epoch;
  };
  struct Deferred {
    uint64_t version = 0;
    std::variant<Admission, Publication, AdminReply> what;
  };

  // ---- Life and durability (router_core.cc) ----
  void Begin();
  void TakeOver();  // the first moments of a router with state
  void FinishRecovery();
  void On(const TickEvent& event);
  void On(const PersistedEvent& event);
  void Advance();
  void MarkDirty() { is_dirty_ = true; }
  // Runs once everything up to now is durable.
  void Defer(std::variant<Admission, Publication, AdminReply> what);
  void RunDeferred();
  void Run(const Admission& admission);
  void Run(Publication& publication);
  void Run(AdminReply& reply);
  void Persist();
  void RaiseTerm(uint32_t at_least);
  void StandBy(const std::string& why);
  bool IsCommanding() const { return mode_ == Mode::kServing && durable_version_ >= term_version_; }
  // New states of members, or a new epoch, to everybody.
  void RefreshView();
  void Greet(Frontend& frontend);
  void SendView(SessionId session, bool is_snapshot);
  Epoch CurrentEpoch() const { return MakeEpoch(state_.term, state_.epoch_n); }
  template <typename T>
  void Emit(T action) {
    actions_->push_back(std::move(action));
  }
  void Log(Severity severity, std::string message,
           std::vector<std::pair<std::string, std::string>> fields = {});

  // ---- Members (core_members.cc, core_reports.cc) ----
  void On(const WorkerRegisterEvent& event);
  void On(const HeartbeatEvent& event);
  void On(const LoadEvent& event);
  void On(const PrepareResultEvent& event);
  void On(const RetireResultEvent& event);
  void On(const DrainWishEvent& event);
  void On(const ExpertsLostEvent& event);
  void On(const FrontendRegisterEvent& event);
  void On(const EpochAckEvent& event);
  void On(const PeerReportEvent& event);
  void On(const ResyncEvent& event);
  void On(const SessionClosedEvent& event);
  absl::Status CheckWorker(const WorkerRegistration& registration) const;
  absl::Status CheckMember(uint32_t major, const std::string& cluster_id,
                           const ModelIdentity& model) const;
  // A frontend's model, version and numeric mode; its instruction set is its own affair.
  absl::Status CheckFrontend(const FrontendRegistration& registration) const;
  absl::Status CheckName(const WorkerRegistration& registration) const;
  // Whether this router may go on after a peer that has obeyed `last`.
  absl::Status Fence(const RouterIdentity& last, Epoch epoch);
  void AdoptModel(const WorkerRegistration& registration);
  Worker& Enter(const WorkerRegisterEvent& event);
  // One expert that a worker says to hold: true when it may serve it.
  bool AcceptHeld(Worker& worker, const HeldExpert& held);
  void Lose(Worker& worker, bool is_hard, const std::string& why);
  void Distrust(Worker& worker, const std::string& why);
  void DropReplica(Worker& worker, ExpertUnit unit);
  void CheckLeases(bool is_after_pause);
  void ForgetReports();
  Worker* WorkerOf(SessionId session);
  // Ends the stream of a worker that is no member any more.
  Worker* MemberOf(SessionId session);
  bool IsDraining(const Worker& worker) const;
  bool IsKnownUnit(ExpertUnit unit) const;
  bool HasFollowers() const;
  std::vector<ExpertUnit> Units() const;

  // ---- Plans and placements (core_placement.cc) ----
  void WantRepair(milliseconds delay);
  void PlanIfDue();
  void Plan(PlanPurpose purpose);
  void Aim(ReplicaMap goal, double imbalance, PlanReason reason);
  // The plan under way, if there is one, has ended.
  void EndPlan(PlanResult result);
  void CheckBalance();
  PlanInput MakePlanInput() const;
  static int64_t NumPlaces(const Worker& worker);
  ReplicaMap AliveGoal() const;
  ReplicaMap NextPlacement() const;
  void Reconcile();
  void PublishIfDue(ReplicaMap next);
  void StartLoads();
  void StartLoadsOf(Worker& worker, std::vector<std::pair<size_t, ExpertUnit>> wanted);
  void ExpireLoads();
  void StartRetires();
  bool IsReady(ExpertUnit unit) const;
  void FinishDrains();
  // Only while what is published is all that can be.
  void CancelIfStuck();
  bool IsGoalReached() const;
  // Every live frontend routes by this epoch or a later one.
  bool IsAcked(Epoch epoch) const;
  bool IsPlacedAt(const ReplicaMap& map, ExpertUnit unit, WorkerId worker) const;
  uint64_t NextPlanId() { return uint64_t{identity_.term} << 32 | ++plan_count_; }
  void EraseGone();
  // Which of a worker's experts the published placement does not name.
  void NoteUnused(Worker& worker);

  // ---- Operators (core_admin.cc) ----
  void On(const AdminEvent& event);
  absl::Status Do(const DrainCommand& command, AdminReply& reply);
  absl::Status Do(const PinCommand& command, AdminReply& reply);
  absl::Status Do(const ReplicateCommand& command, AdminReply& reply);
  absl::Status Do(const RebalanceCommand& command, AdminReply& reply);
  absl::Status Do(const RecordCommand& command, AdminReply& reply);
  std::vector<TraceWorker> WorkersToRecord() const;
  TraceHead MakeTraceHead(int64_t unix_us) const;
  absl::Status CheckChangeable() const;
  absl::Status CheckDrainable(WorkerId id) const;
  WorkerStatus StatusOf(const Worker& worker, MonotonicTime now) const;
  MemberView ViewOf(const Worker& worker) const;
  const Worker* FindByName(const std::string& name) const;

  const CoreOptions options_;
  RouterIdentity identity_;
  RouterCounters counters_;

  MonotonicTime now_;
  std::vector<Action>* actions_ = nullptr;  // of the step under way
  bool has_begun_ = false;
  MonotonicTime begun_at_;
  LeaseClock leases_;
  Mode mode_ = Mode::kRecovering;
  std::string blocked_;

  // What is kept. state_.placement is the placement decided last, published or about to be.
  RouterState state_;
  bool has_state_ = false;
  uint64_t term_version_ = 0;  // of state_ that has the term of now
  uint32_t term_seen_ = 0;     // highest that any peer has obeyed

  bool is_dirty_ = false;
  uint64_t version_ = 0;          // of state_
  uint64_t durable_version_ = 0;  // that is kept
  bool is_persisting_ = false;
  MonotonicTime persist_at_;  // not before
  std::deque<Deferred> deferred_;

  std::map<WorkerId, Worker> workers_;
  std::map<SessionId, WorkerId> worker_sessions_;
  std::map<std::string, Starts> starts_;
  std::map<SessionId, Frontend> frontends_;
  LoadTable loads_;
  RoutingRecorder recorder_;
  MonotonicTime folded_at_;

  // Published and durable.
  ReplicaMap published_;
  std::shared_ptr<const std::vector<UnitReplicas>> published_experts_;
  Epoch published_epoch_;
  MonotonicTime published_at_;
  std::shared_ptr<const PlacementView> view_;
  bool is_view_old_ = false;
  bool is_publishing_ = false;  // a Publication waits

  ReplicaMap goal_;
  bool is_touched_ = false;  // something that Reconcile looks at has changed
  bool is_waiting_ = false;  // Reconcile has more to do when time has passed
  uint64_t plan_id_ = 0;     // under way
  PlanReason plan_reason_ = PlanReason::kRepair;
  MonotonicTime plan_begun_at_;
  uint32_t plan_count_ = 0;
  double imbalance_planned_ = 1;
  std::optional<MonotonicTime> repair_at_;
  int32_t fill_rounds_ = 0;
  MonotonicTime planned_at_;
  MonotonicTime rebalanced_at_;
  MonotonicTime window_at_;
  int32_t num_uneven_windows_ = 0;
};

std::string Describe(ExpertUnit unit);
// 1 s, and twice as long for every further failure, up to about a minute.
std::chrono::seconds Backoff(int32_t num_failures);

}  // namespace conclave::router_service
