// What operators ask and see.
#include <algorithm>

#include "conclave/base/status.h"
#include "core_impl.h"

namespace conclave::router_service {
namespace {

absl::Status UnknownWorker(const std::string& name) {
  return NotFound("worker_unknown", "expected the name of a worker, found " + name);
}

}  // namespace

const Worker* RouterCore::Impl::FindByName(const std::string& name) const {
  const auto known = state_.names.find(name);
  if (known == state_.names.end()) {
    return nullptr;
  }
  const auto it = workers_.find(known->second.id);
  return it != workers_.end() && it->second.IsAlive() ? &it->second : nullptr;
}

absl::Status RouterCore::Impl::CheckChangeable() const {
  if (mode_ == Mode::kStandby) {
    return Error(absl::StatusCode::kFailedPrecondition, "stale_term", "this router stands by");
  }
  if (!blocked_.empty()) {
    return Error(absl::StatusCode::kUnavailable, "state_write_failed",
                 "the router's state cannot be written; try again later");
  }
  if (!IsCommanding()) {
    return Error(absl::StatusCode::kUnavailable, "recovering",
                 "the router learns from its members; try again in a few seconds");
  }
  return absl::OkStatus();
}

void RouterCore::Impl::On(const AdminEvent& event) {
  AdminReply reply;
  reply.request = event.request;
  if (const auto* record = std::get_if<RecordCommand>(&event.command); record != nullptr) {
    // Nothing of it is kept, so it need not wait for anything to be durable.
    reply.status = Do(*record, reply);
    Emit(std::move(reply));
    return;
  }
  reply.status = CheckChangeable();
  if (reply.status.ok()) {
    reply.status =
        std::visit([&](const auto& command) { return Do(command, reply); }, event.command);
  }
  if (!reply.status.ok()) {
    Emit(std::move(reply));
    return;
  }
  Defer(std::move(reply));
}

// Whether everybody's experts have a place without the worker.
absl::Status RouterCore::Impl::CheckDrainable(WorkerId id) const {
  PlanInput input = MakePlanInput();
  for (placement::PlanWorker& worker : input.problem.workers) {
    worker.takes_experts = worker.takes_experts && worker.id != id;
  }
  const bool has_takers =
      std::any_of(input.problem.workers.begin(), input.problem.workers.end(),
                  [](const placement::PlanWorker& worker) { return worker.takes_experts; });
  const ReplicaMap goal = has_takers ? MakeGoal(input, PlanPurpose::kRepair).goal : input.current;
  for (const auto& [unit, workers] : goal) {
    // Where nobody has room MakeGoal leaves an expert where it is.
    if (std::find(workers.begin(), workers.end(), id) != workers.end()) {
      return Error(absl::StatusCode::kFailedPrecondition, "not_kill_safe",
                   "expert " + Describe(unit) +
                       " would lose its last replica and no other worker has room for it");
    }
  }
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::Do(const DrainCommand& command, AdminReply& reply) {
  const auto known = state_.names.find(command.name);
  const Worker* found = FindByName(command.name);
  if (known == state_.names.end() || (found == nullptr && !command.undo)) {
    return UnknownWorker(command.name);
  }
  if (known->second.is_draining == !command.undo) {
    reply.is_drained = found != nullptr && found->is_drained;
    return absl::OkStatus();
  }
  if (!command.undo) {
    CONCLAVE_RETURN_IF_ERROR(CheckDrainable(known->second.id));
  }
  known->second.is_draining = !command.undo;
  MarkDirty();
  if (found != nullptr) {
    Worker& worker = workers_.at(known->second.id);
    worker.is_drained = false;
    if (command.undo) {
      worker.wishes_to_leave = false;
    }
    if (worker.session.has_value() && worker.state == Worker::State::kMember) {
      Emit(SendDrainState{*worker.session, !command.undo, false});
    }
    constexpr int32_t kFillRounds = 16;
    fill_rounds_ = command.undo ? kFillRounds : fill_rounds_;
  }
  is_view_old_ = true;
  is_touched_ = true;
  WantRepair(milliseconds(0));
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::Do(const PinCommand& command, AdminReply& /*reply*/) {
  if (!IsKnownUnit(command.unit)) {
    return NotFound("expert_unknown",
                    "expected an expert of the model, found " + Describe(command.unit));
  }
  if (!state_.names.contains(command.worker)) {
    return UnknownWorker(command.worker);
  }
  const std::pair<ExpertUnit, std::string> pin(command.unit, command.worker);
  const auto it = std::find(state_.pins.begin(), state_.pins.end(), pin);
  if (command.undo) {
    if (it == state_.pins.end()) {
      return absl::OkStatus();
    }
    state_.pins.erase(it);
  } else if (it == state_.pins.end()) {
    state_.pins.push_back(pin);
  }
  MarkDirty();
  WantRepair(milliseconds(0));
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::Do(const ReplicateCommand& command, AdminReply& /*reply*/) {
  if (!IsKnownUnit(command.unit)) {
    return NotFound("expert_unknown",
                    "expected an expert of the model, found " + Describe(command.unit));
  }
  if (command.replicas < 0 || command.replicas > options_.workers_max) {
    return InvalidArgument("replication_unsatisfiable",
                           "replicas: expected 0 to " + std::to_string(options_.workers_max) +
                               ", found " + std::to_string(command.replicas));
  }
  if (command.replicas > 0) {
    state_.replicas[command.unit] = command.replicas;
  } else if (state_.replicas.erase(command.unit) > 0) {
    // Back to the common number at once: later plans only take away what is in their way.
    PlanInput input = MakePlanInput();
    input.replicas[command.unit] = input.replication;
    Aim(MakeGoal(input, PlanPurpose::kRepair).goal, imbalance_planned_, PlanReason::kOperator);
  }
  MarkDirty();
  WantRepair(milliseconds(0));
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::Do(const RebalanceCommand& command, AdminReply& reply) {
  CONCLAVE_ASSIGN_OR_RETURN(reply.rebalance, TryRebalance(command.is_full));
  if (reply.rebalance.moves.empty()) {
    return absl::OkStatus();
  }
  const PlanInput input = MakePlanInput();
  Aim(MakeGoal(input, command.is_full ? PlanPurpose::kFull : PlanPurpose::kBalance).goal,
      reply.rebalance.imbalance_after, PlanReason::kOperator);
  rebalanced_at_ = planned_at_ = now_;
  ++counters_.rebalances;
  ++counters_.operator_rebalances;
  reply.rebalance.plan_id = plan_id_;
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::Do(const RecordCommand& command, AdminReply& reply) {
  if (mode_ == Mode::kStandby) {
    return Error(absl::StatusCode::kFailedPrecondition, "stale_term", "this router stands by");
  }
  if (command.is_start) {
    if (state_.layers.empty()) {
      return Error(absl::StatusCode::kFailedPrecondition, "recording_model",
                   "no member has said yet what the model's layers are; expected a worker first");
    }
    recorder_.Start(now_, MakeTraceHead(command.unix_us), WorkersToRecord(), published_experts_);
  } else {
    recorder_.Stop(now_, WorkersToRecord(), published_experts_);
  }
  if (!recorder_.status().has_value()) {
    return NotFound("no_recording", "nothing was recorded; expected `cluster record start` first");
  }
  reply.recording = *recorder_.status();
  return absl::OkStatus();
}

absl::StatusOr<Recording> RouterCore::Impl::CurrentRecording() const {
  if (!recorder_.status().has_value()) {
    return NotFound("no_recording", "nothing was recorded; expected `cluster record start` first");
  }
  return recorder_.Take();
}

TraceHead RouterCore::Impl::MakeTraceHead(int64_t unix_us) const {
  TraceHead head;
  head.started_unix_us = unix_us;
  head.model = state_.model;
  head.replication = options_.replication;
  head.layers = state_.layers;
  head.replicas = state_.replicas;
  head.pins = state_.pins;
  return head;
}

// Those that a plan reckons with, and those that a published placement still names.
std::vector<TraceWorker> RouterCore::Impl::WorkersToRecord() const {
  std::vector<TraceWorker> workers;
  for (const auto& [id, worker] : workers_) {
    if (worker.IsAlive()) {
      const WorkerRegistration& r = worker.registration;
      workers.push_back({id, r.name, r.host_id, r.speed, r.memory_bytes, r.expert_bytes,
                         !IsDraining(worker) && !worker.is_distrusted});
    }
  }
  return workers;
}

absl::StatusOr<RebalancePlan> RouterCore::Impl::TryRebalance(bool is_full) const {
  CONCLAVE_RETURN_IF_ERROR(CheckChangeable());
  RebalancePlan plan;
  const PlanInput input = MakePlanInput();
  if (input.problem.workers.empty() || input.problem.units.empty()) {
    return plan;
  }
  const PlanOutcome outcome = MakeGoal(input, is_full ? PlanPurpose::kFull : PlanPurpose::kBalance);
  plan.moves = MovesBetween(input.current, outcome.goal);
  plan.bytes = BytesOf(plan.moves, input.problem);
  plan.imbalance_before = outcome.imbalance_before;
  plan.imbalance_after = outcome.imbalance_after;
  return plan;
}

absl::StatusOr<std::vector<ExpertUnit>> RouterCore::Impl::AtRiskWithout(
    const std::string& name) const {
  const Worker* worker = FindByName(name);
  if (worker == nullptr) {
    return UnknownWorker(name);
  }
  std::vector<ExpertUnit> at_risk;
  for (const auto& [unit, workers] : published_) {
    // A worker that is silent may be dead already.
    const bool has_other = std::any_of(workers.begin(), workers.end(), [&](WorkerId id) {
      const auto it = workers_.find(id);
      return id != worker->id && it != workers_.end() && it->second.IsAlive() &&
             !it->second.IsSuspect();
    });
    const bool is_held = std::find(workers.begin(), workers.end(), worker->id) != workers.end();
    if (is_held && !has_other) {
      at_risk.push_back(unit);
    }
  }
  return at_risk;
}

MemberView RouterCore::Impl::ViewOf(const Worker& worker) const {
  const WorkerRegistration& r = worker.registration;
  MemberView view;
  view.id = worker.id;
  view.name = r.name;
  view.incarnation = r.incarnation;
  view.data_address = r.data_address;
  view.host_id = r.host_id;
  view.channels = r.channels;
  view.numeric = r.numeric;
  view.key = worker.key;
  view.state = worker.IsSuspect()   ? MemberState::kSuspect
               : IsDraining(worker) ? MemberState::kDraining
                                    : MemberState::kLive;
  return view;
}

WorkerStatus RouterCore::Impl::StatusOf(const Worker& worker, MonotonicTime now) const {
  WorkerStatus status;
  status.member = ViewOf(worker);
  status.member.key = 0;
  status.num_experts = static_cast<int32_t>(
      std::count_if(published_.begin(), published_.end(), [&](const auto& entry) {
        return std::find(entry.second.begin(), entry.second.end(), worker.id) != entry.second.end();
      }));
  status.num_loading = static_cast<int32_t>(worker.loading.size());
  status.memory_bytes = worker.registration.memory_bytes;
  status.memory_used_bytes = static_cast<int64_t>(worker.held.size() + worker.refused.size()) *
                             worker.registration.expert_bytes;
  status.last_heartbeat_ms = static_cast<uint64_t>(
      std::chrono::duration_cast<milliseconds>(now - worker.heard_at).count());
  status.rows_per_second = loads_.RateOf(worker.id);
  status.busy_ratio = worker.busy_ratio;
  status.queued_rows = worker.queued_rows;
  status.is_drained = worker.is_drained;
  status.is_distrusted = worker.is_distrusted;
  return status;
}

RouterSigns RouterCore::Impl::Signs() const {
  RouterSigns signs;
  signs.epoch = published_epoch_;
  signs.plan_id = plan_id_;
  signs.num_frontends = frontends_.size();
  for (const auto& [id, worker] : workers_) {
    if (worker.IsAlive()) {
      const MemberState state = worker.IsSuspect()   ? MemberState::kSuspect
                                : IsDraining(worker) ? MemberState::kDraining
                                                     : MemberState::kLive;
      signs.workers.push_back(
          {id, state, worker.is_drained, worker.is_distrusted, !worker.loading.empty()});
    }
  }
  return signs;
}

RouterStatus RouterCore::Impl::Status(MonotonicTime now) const {
  RouterStatus status;
  status.router = identity_;
  status.epoch = published_epoch_;
  status.state = mode_ == Mode::kStandby       ? "standby"
                 : published_epoch_ == Epoch() ? "recovering"
                                               : "serving";
  status.blocked = blocked_;
  status.replication_wanted = options_.replication;
  int32_t lowest = published_.empty() ? 0 : INT32_MAX;
  for (const auto& [unit, workers] : published_) {
    lowest = std::min(lowest, static_cast<int32_t>(workers.size()));
    status.experts.push_back({unit, workers, loads_.RatesOf(unit)});
  }
  status.replication_lowest = lowest;
  for (const auto& [id, worker] : workers_) {
    if (worker.IsAlive()) {
      status.workers.push_back(StatusOf(worker, now));
    }
  }
  for (const auto& [session, frontend] : frontends_) {
    const FrontendRegistration& r = frontend.registration;
    status.frontends.push_back({frontend.id, r.name, frontend.acked, r.incarnation, r.api_address});
  }
  status.imbalance_planned = imbalance_planned_;
  const PlanInput input = MakePlanInput();
  status.imbalance_seen = input.problem.workers.empty() || input.problem.units.empty()
                              ? 0
                              : placement::ImbalanceOf(input.problem, ToReplicas(published_), {});
  status.placement_age_ms =
      published_epoch_ == Epoch()
          ? 0
          : static_cast<uint64_t>(
                std::chrono::duration_cast<milliseconds>(now - published_at_).count());
  status.plan_id = plan_id_;
  status.plan_age_ms =
      plan_id_ == 0 ? 0
                    : static_cast<uint64_t>(
                          std::chrono::duration_cast<milliseconds>(now - plan_begun_at_).count());
  status.recording = recorder_.status();
  return status;
}

}  // namespace conclave::router_service
