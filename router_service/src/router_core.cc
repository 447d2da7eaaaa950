#include "conclave/router_service/router_core.h"

#include <algorithm>

#include "conclave/base/check.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "core_impl.h"

namespace conclave::router_service {

std::string_view NameOf(PlanReason reason) {
  constexpr std::string_view kNames[] = {"repair", "fill", "uneven", "operator"};
  return kNames[static_cast<size_t>(reason)];
}

std::string_view NameOf(PlanResult result) {
  constexpr std::string_view kNames[] = {"done", "replaced", "given_up"};
  return kNames[static_cast<size_t>(result)];
}

PlacementDelta Diff(const PlacementView& from, const PlacementView& to) {
  PlacementDelta delta;
  auto old_member = from.workers.begin();
  for (const MemberView& member : to.workers) {
    for (; old_member != from.workers.end() && old_member->id < member.id; ++old_member) {
      delta.removed_workers.push_back(old_member->id);
    }
    const bool is_known = old_member != from.workers.end() && old_member->id == member.id;
    if (!is_known || !(*old_member == member)) {
      delta.workers.push_back(&member);
    }
    old_member += is_known ? 1 : 0;
  }
  for (; old_member != from.workers.end(); ++old_member) {
    delta.removed_workers.push_back(old_member->id);
  }
  if (from.experts == to.experts) {
    return delta;
  }
  auto old_unit = from.experts->begin();
  for (const UnitReplicas& unit : *to.experts) {
    while (old_unit != from.experts->end() && old_unit->unit < unit.unit) {
      ++old_unit;
    }
    if (old_unit == from.experts->end() || !(*old_unit == unit)) {
      delta.experts.push_back(&unit);
    }
  }
  return delta;
}

RouterCore::RouterCore(CoreOptions options, std::optional<RouterState> state)
    : impl_(std::make_unique<Impl>(std::move(options), std::move(state))) {}
RouterCore::~RouterCore() = default;

void RouterCore::Step(MonotonicTime now, const Event& event, std::vector<Action>& actions) {
  impl_->Step(now, event, actions);
}
const RouterIdentity& RouterCore::identity() const { return impl_->identity(); }
const RouterCounters& RouterCore::counters() const { return impl_->counters(); }
RouterStatus RouterCore::Status(MonotonicTime now) const { return impl_->Status(now); }
RouterSigns RouterCore::Signs() const { return impl_->Signs(); }
absl::StatusOr<std::vector<ExpertUnit>> RouterCore::AtRiskWithout(const std::string& name) const {
  return impl_->AtRiskWithout(name);
}
absl::StatusOr<RebalancePlan> RouterCore::TryRebalance(bool is_full) const {
  return impl_->TryRebalance(is_full);
}

absl::StatusOr<Recording> RouterCore::CurrentRecording() const { return impl_->CurrentRecording(); }

RouterCore::Impl::Impl(CoreOptions options, std::optional<RouterState> state)
    : options_(std::move(options)),
      leases_(options_.tick_credit, options_.pause_after),
      recorder_(options_.recording_bytes_max) {
  identity_.router_id = options_.router_id;
  if (state.has_value()) {
    state_ = *std::move(state);
    has_state_ = true;
  } else {
    state_.model = options_.model;
    state_.layers = options_.layers;
  }
  state_.term = std::max(state_.term, options_.terms_used);
  published_experts_ = std::make_shared<const std::vector<UnitReplicas>>();
}

void RouterCore::Impl::Step(MonotonicTime now, const Event& event, std::vector<Action>& actions) {
  now_ = now;
  actions_ = &actions;
  if (!has_begun_) {
    Begin();
  }
  std::visit([this](const auto& what) { On(what); }, event);
  Advance();
  actions_ = nullptr;
}

void RouterCore::Impl::Begin() {
  has_begun_ = true;
  begun_at_ = folded_at_ = planned_at_ = window_at_ = now_;
  // The first rebalance needs loads that mean something anyway.
  rebalanced_at_ = now_;
  leases_.Start(now_);
  if (has_state_) {
    TakeOver();
  } else {
    Log(Severity::kInfo, "no state: learning from registrations",
        {{"seconds", std::to_string(std::chrono::duration<double>(options_.recover).count())}});
  }
}

// The placement stays as it was and its members have time to come back: nothing moves because a
// router was restarted.
void RouterCore::Impl::TakeOver() {
  if (!state_.model.manifest_hash.empty() && !options_.model.manifest_hash.empty() &&
      state_.model != options_.model) {
    StandBy("cluster_mismatch");
    return;
  }
  if (state_.layers.empty()) {
    state_.layers = options_.layers;
    state_.model = options_.model;
  }
  for (const auto& [id, registration] : state_.members) {
    Worker& worker = workers_[id];
    worker.id = id;
    worker.registration = registration;
    worker.key = state_.names[registration.name].key;
    worker.state = Worker::State::kExpected;
    worker.has_durable_id = true;
    worker.last_heard = leases_.At(now_);
    worker.heard_at = now_;
  }
  goal_ = state_.placement;
  mode_ = Mode::kServing;
  RaiseTerm(state_.term);
}

// A term above `at_least`, and everything published anew under it.
void RouterCore::Impl::RaiseTerm(uint32_t at_least) {
  if (at_least >= UINT32_MAX) {
    // Terms are used up: only another cluster state helps.
    StandBy("term_exhausted");
    return;
  }
  state_.term = CONCLAVE_PLANTED_BUG("term_not_raised") ? std::max(at_least, 1u) : at_least + 1;
  state_.epoch_n = 1;
  identity_.term = state_.term;
  is_publishing_ = true;
  // Admissions that wait stay: they are valid under the new term. Publications of the old are not.
  std::erase_if(deferred_, [](const Deferred& deferred) {
    return std::holds_alternative<Publication>(deferred.what);
  });
  MarkDirty();
  term_version_ = version_ + 1;
  Defer(Publication{state_.placement, CurrentEpoch()});
  Log(Severity::kInfo, "new term", {{"term", std::to_string(state_.term)}});
}

void RouterCore::Impl::FinishRecovery() {
  mode_ = Mode::kServing;
  ReplicaMap observed;
  for (const ExpertUnit unit : Units()) {
    std::vector<WorkerId>& workers = observed[unit];
    for (const auto& [id, worker] : workers_) {
      if (worker.CanServe(unit, false)) {
        workers.push_back(id);
      }
    }
  }
  goal_ = observed;
  state_.placement = std::move(observed);
  RaiseTerm(std::max(term_seen_, state_.term));
  for (const auto& [id, worker] : workers_) {
    if (worker.state == Worker::State::kJoining) {
      Defer(Admission{id, worker.session.value_or(0)});
    }
  }
  is_touched_ = true;
}

void RouterCore::Impl::StandBy(const std::string& why) {
  mode_ = Mode::kStandby;
  blocked_ = why;
  Log(Severity::kError, "the router stands by: it commands nothing any more", {{"why", why}});
  const absl::Status status =
      Error(absl::StatusCode::kFailedPrecondition,
            why == "cluster_mismatch" ? "cluster_mismatch" : "stale_term",
            "this router has term " + std::to_string(state_.term) +
                "; expected the one with term " + std::to_string(term_seen_));
  for (const auto& [session, id] : worker_sessions_) {
    Emit(EndSession{session, status});
  }
  for (const auto& [session, frontend] : frontends_) {
    Emit(EndSession{session, status});
  }
  worker_sessions_.clear();
  frontends_.clear();
  deferred_.clear();
  is_dirty_ = false;
}

void RouterCore::Impl::On(const TickEvent& /*event*/) {
  const bool is_after_pause = leases_.Tick(now_);
  if (is_after_pause) {
    Log(Severity::kWarning, "this process stood still: all leases start again");
  }
  if (mode_ == Mode::kStandby) {
    return;
  }
  if (mode_ == Mode::kRecovering && now_ - begun_at_ >= options_.recover) {
    FinishRecovery();
  }
  CheckLeases(is_after_pause);
  ForgetReports();
  if (now_ - folded_at_ >= std::chrono::seconds(1)) {
    loads_.Fold(std::chrono::duration<double>(now_ - folded_at_).count());
    folded_at_ = now_;
  }
  if (recorder_.IsWindowOver(now_)) {
    recorder_.EndWindow(now_, WorkersToRecord(), published_experts_);
  }
  ExpireLoads();
  CheckBalance();
  is_touched_ = is_touched_ || is_waiting_;
}

void RouterCore::Impl::Advance() {
  if (mode_ == Mode::kStandby) {
    return;
  }
  if (IsCommanding()) {
    PlanIfDue();
    if (is_touched_) {
      is_touched_ = false;
      Reconcile();
    }
    RefreshView();
  }
  Persist();
}

void RouterCore::Impl::Defer(std::variant<Admission, Publication, AdminReply> what) {
  const uint64_t version = is_dirty_ ? version_ + 1 : version_;
  deferred_.push_back({version, std::move(what)});
  if (version <= durable_version_ || CONCLAVE_PLANTED_BUG("published_before_durable")) {
    RunDeferred();
  }
}

void RouterCore::Impl::RunDeferred() {
  // Not all are in the order of their versions: a publication may be made while another waits.
  std::deque<Deferred> due;
  std::deque<Deferred> later;
  for (Deferred& deferred : deferred_) {
    const bool is_due =
        deferred.version <= durable_version_ || CONCLAVE_PLANTED_BUG("published_before_durable");
    (is_due ? due : later).push_back(std::move(deferred));
  }
  deferred_ = std::move(later);
  for (Deferred& deferred : due) {
    std::visit([this](auto& what) { Run(what); }, deferred.what);
  }
}

void RouterCore::Impl::Persist() {
  if (is_dirty_) {
    ++version_;
    is_dirty_ = false;
  }
  if (is_persisting_ || version_ == durable_version_ || now_ < persist_at_) {
    return;
  }
  is_persisting_ = true;
  state_.members.clear();
  for (const auto& [id, worker] : workers_) {
    state_.members.emplace(id, worker.registration);
  }
  Emit(PersistState{version_, state_.term, Serialize(state_)});
}

void RouterCore::Impl::On(const PersistedEvent& event) {
  is_persisting_ = false;
  if (mode_ == Mode::kStandby) {
    return;
  }
  if (!event.status.ok() && !CONCLAVE_PLANTED_BUG("failed_write_ignored")) {
    if (blocked_.empty()) {
      Log(Severity::kError, "the state cannot be written: nothing changes until it can",
          {{"why", MessageOf(event.status)}});
    }
    blocked_ = "state_write_failed";
    persist_at_ = now_ + options_.persist_retry;
    // Operators do not wait for a disk; what they asked for stands and may become durable later.
    for (Deferred& deferred : deferred_) {
      if (auto* reply = std::get_if<AdminReply>(&deferred.what); reply != nullptr) {
        reply->status = Error(absl::StatusCode::kUnavailable, "state_write_failed",
                              "the router's state cannot be written; try again later");
        Emit(*reply);
      }
    }
    std::erase_if(deferred_, [](const Deferred& deferred) {
      return std::holds_alternative<AdminReply>(deferred.what);
    });
    return;
  }
  if (!blocked_.empty()) {
    Log(Severity::kInfo, "the state is written again");
    blocked_.clear();
  }
  durable_version_ = std::max(durable_version_, event.version);
  RunDeferred();
  is_touched_ = true;
}

void RouterCore::Impl::Run(const Admission& admission) {
  const auto it = workers_.find(admission.worker);
  if (it == workers_.end() || it->second.session != admission.session ||
      it->second.state != Worker::State::kJoining) {
    return;  // It has gone, or come again, meanwhile.
  }
  Worker& worker = it->second;
  worker.state = Worker::State::kMember;
  worker.has_durable_id = true;
  worker.last_heard = leases_.At(now_);
  worker.heard_at = now_;
  Emit(SendRegistered{admission.session, worker.id, worker.key});
  if (IsDraining(worker)) {
    Emit(SendDrainState{admission.session, true, false});
  }
  Log(Severity::kInfo, "worker joined",
      {{"worker", worker.registration.name},
       {"id", std::to_string(worker.id.value())},
       {"holds", std::to_string(worker.held.size())}});
  const bool is_new = std::none_of(goal_.begin(), goal_.end(), [&](const auto& entry) {
    return IsPlacedAt(goal_, entry.first, worker.id);
  });
  constexpr int32_t kFillRounds = 16;
  fill_rounds_ = is_new ? kFillRounds : fill_rounds_;
  NoteUnused(worker);
  WantRepair(milliseconds(0));
  is_view_old_ = true;
  is_touched_ = true;
  // A view of before the epoch that has just become durable is older than what the worker may have
  // seen: it would ignore it, and every delta on top of it. The newer one follows in this step.
  if (view_ != nullptr && view_->epoch == published_epoch_) {
    SendView(admission.session, true);
  }
}

void RouterCore::Impl::Run(Publication& publication) {
  is_publishing_ = false;
  ++counters_.epochs;
  auto experts = std::make_shared<std::vector<UnitReplicas>>();
  for (const auto& [unit, workers] : publication.placement) {
    UnitReplicas& replicas = experts->emplace_back();
    replicas.unit = unit;
    replicas.workers = workers;
    if (const auto it = state_.weight_hashes.find(unit); it != state_.weight_hashes.end()) {
      replicas.weight_hash = it->second;
    }
  }
  published_ = std::move(publication.placement);
  published_experts_ = std::move(experts);
  published_epoch_ = publication.epoch;
  published_at_ = now_;
  for (auto& [id, worker] : workers_) {
    NoteUnused(worker);
  }
  EraseGone();
  is_view_old_ = true;
  is_touched_ = true;
}

void RouterCore::Impl::Run(AdminReply& reply) {
  reply.epoch = CurrentEpoch();
  Emit(std::move(reply));
}

void RouterCore::Impl::RefreshView() {
  if (published_epoch_ == Epoch() || (!is_view_old_ && view_ != nullptr)) {
    return;
  }
  is_view_old_ = false;
  auto view = std::make_shared<PlacementView>();
  // A term that is not durable yet publishes nothing, so the epoch's own term is the router's.
  view->router = identity_;
  view->epoch = published_epoch_;
  view->experts = published_experts_;
  for (const auto& [id, worker] : workers_) {
    if (worker.has_durable_id) {
      view->workers.push_back(ViewOf(worker));
    }
  }
  if (view_ != nullptr && view_->epoch == view->epoch && view_->workers == view->workers) {
    return;
  }
  view_ = std::move(view);
  for (const auto& [id, worker] : workers_) {
    if (worker.state == Worker::State::kMember && worker.session.has_value()) {
      SendView(*worker.session, false);
    }
  }
  for (auto& [session, frontend] : frontends_) {
    Greet(frontend);
  }
}

// The first placement with the frontend's id, or a further one.
void RouterCore::Impl::Greet(Frontend& frontend) {
  if (view_ == nullptr || !IsCommanding()) {
    return;
  }
  if (frontend.is_greeted) {
    SendView(frontend.session, false);
  } else {
    frontend.is_greeted = true;
    Emit(SendPlacement{frontend.session, view_, true, frontend.id});
  }
  if (frontend.acked < view_->epoch && !frontend.waits_since.has_value()) {
    frontend.waits_since = now_;
  }
}

void RouterCore::Impl::SendView(SessionId session, bool is_snapshot) {
  Emit(SendPlacement{session, view_, is_snapshot, std::nullopt});
}

void RouterCore::Impl::Log(Severity severity, std::string message,
                           std::vector<std::pair<std::string, std::string>> fields) {
  Emit(LogAction{severity, std::move(message), std::move(fields)});
}

std::string Describe(ExpertUnit unit) {
  return std::to_string(unit.layer.value()) + ":" + std::to_string(unit.expert.value());
}

}  // namespace conclave::router_service
