#include "conclave/expert_worker/worker_control.h"

#include <algorithm>

#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"

namespace conclave::expert_worker {

using placement::ExpertUnit;
using std::chrono::nanoseconds;

namespace {

// Heartbeats whose answers are awaited; more than a lease's worth need not be remembered.
constexpr size_t kUnacknowledgedMax = 64;

uint64_t NextBits(uint64_t& state) {  // splitmix64
  state += 0x9e3779b97f4a7c15;
  uint64_t z = state;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// Errors of a registration that no other attempt can mend.
bool IsFinal(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  return reason == "cluster_mismatch" || status.code() == absl::StatusCode::kInvalidArgument ||
         status.code() == absl::StatusCode::kPermissionDenied;
}

}  // namespace

std::string_view NameOf(WorkerState state) {
  switch (state) {
    case WorkerState::kConnecting:
      return "connecting";
    case WorkerState::kRegistered:
      return "registered";
    case WorkerState::kFenced:
      return "fenced";
    case WorkerState::kDraining:
      return "draining";
    case WorkerState::kStopped:
      return "stopped";
  }
  return "";
}

void WorkerControlCore::Start(MonotonicTime now, WorkerActions* out) {
  started_at_ = now;
  jitter_state_ = options_.seed;
  Reconnect(now, out);
}

bool WorkerControlCore::Obeys(const RouterIdentity& router) {
  if (router.term > router_.term) {
    router_ = router;
    return true;
  }
  return router == router_;
}

nanoseconds WorkerControlCore::FenceAfter() const { return nanoseconds(terms_.dead_after) * 4 / 5; }

bool WorkerControlCore::HasLease(MonotonicTime now) const {
  return link_ == Link::kUp &&
         (now - lease_from_ < FenceAfter() || CONCLAVE_PLANTED_BUG("worker_not_fenced"));
}

void WorkerControlCore::OnCommand(MonotonicTime now, const RouterCommand& command,
                                  WorkerActions* out) {
  if (is_stopped_ || link_ == Link::kDown) {
    return;  // of a stream that was given up
  }
  if (!Obeys(command.router)) {
    Disconnect(now,
               Error(absl::StatusCode::kFailedPrecondition, "stale_term",
                     "router: expected term " + std::to_string(router_.term) +
                         " of its first router, or a higher one, found term " +
                         std::to_string(command.router.term)),
               out);
    return;
  }
  const bool is_registration = std::holds_alternative<RegisteredCommand>(command.command);
  if (is_registration != (link_ == Link::kConnecting)) {
    Disconnect(now,
               Error(absl::StatusCode::kInternal, "protocol_violation",
                     "router: expected the registration first and once, found otherwise"),
               out);
    return;
  }
  std::visit([&](const auto& body) { Handle(now, body, out); }, command.command);
  Begin(now, out);
  CheckReady(now, out);
}

void WorkerControlCore::Handle(MonotonicTime now, const RegisteredCommand& command,
                               WorkerActions* out) {
  link_ = Link::kUp;
  terms_ = command;
  worker_ = command.worker;
  // What the router is known to have heard; it may have let the registration wait for long.
  lease_from_ = CONCLAVE_PLANTED_BUG("lease_by_registration") ? now : connected_at_;
  registered_at_ = now;
  unacknowledged_.clear();
  next_heartbeat_ = now;
  next_load_ = now + command.load_interval;
  last_load_ = now;
  quiet_since_ = now;
  out->push_back(action::SetRegistration{command.worker, command.worker_key, epoch_});
  if (drain_since_.has_value()) {
    out->push_back(action::SendDrainWish{});
  }
}

void WorkerControlCore::Handle(MonotonicTime /*now*/, const PrepareCommand& command,
                               WorkerActions* out) {
  const auto [it, is_new] = plans_.try_emplace(command.plan_id);
  if (!is_new) {
    return;  // sent again while it is under way
  }
  Plan& plan = it->second;
  plan.units = command.units;
  for (const ExpertUnit unit : command.units) {
    const auto found = command.expected.find(unit);
    const ExpectedExpert expected =
        found == command.expected.end() ? ExpectedExpert{} : found->second;
    const auto held = held_.find(unit);
    if (held != held_.end()) {
      const bool is_other =
          (expected.weight_hash && *expected.weight_hash != held->second.weight_hash) ||
          (expected.canary_checksum && *expected.canary_checksum != held->second.canary_checksum);
      if (is_other) {
        plan.failed.push_back(unit);
        plan.error = "wrong_weights: held with other weights than those of the other replicas";
      }
      continue;
    }
    if (!plan.open.insert(unit).second) {
      continue;
    }
    orphans_.erase(unit);
    const bool is_queued =
        loading_.contains(unit) ||
        std::any_of(load_queue_.begin(), load_queue_.end(),
                    [unit](const auto& waiting) { return waiting.first == unit; });
    if (!is_queued) {
      load_queue_.emplace_back(unit, expected);
    }
  }
  if (plan.open.empty()) {
    Finish(command.plan_id, out);
  }
}

void WorkerControlCore::Handle(MonotonicTime /*now*/, const RetireCommand& command,
                               WorkerActions* /*out*/) {
  const bool is_known =
      retiring_.contains(command.plan_id) ||
      std::any_of(retire_queue_.begin(), retire_queue_.end(),
                  [&](const RetireCommand& other) { return other.plan_id == command.plan_id; });
  if (!is_known) {
    retire_queue_.push_back(command);
  }
}

void WorkerControlCore::Handle(MonotonicTime /*now*/, const PlacementCommand& command,
                               WorkerActions* out) {
  // Epochs never fall; and without its base a delta says nothing. The holders are hints, so the
  // next snapshot is early enough.
  const bool is_delta = command.base_epoch != Epoch(0);
  if (command.epoch < epoch_ || (is_delta && (!has_placement_ || command.base_epoch != epoch_))) {
    return;
  }
  epoch_ = command.epoch;
  has_placement_ = true;
  if (!is_delta) {
    holders_.clear();
  }
  for (const auto& [unit, workers] : command.units) {
    if (workers.empty()) {
      holders_.erase(unit);
    } else {
      holders_[unit] = workers;
    }
  }
  out->push_back(action::SetPlacement{epoch_, std::make_shared<const Holders>(holders_)});
}

void WorkerControlCore::Handle(MonotonicTime /*now*/, const DrainCommand& command,
                               WorkerActions* out) {
  if (drain_since_.has_value() && command.is_drained) {
    Stop(absl::OkStatus(), out);
  }
}

void WorkerControlCore::Handle(MonotonicTime /*now*/, const HeartbeatAckCommand& command,
                               WorkerActions* /*out*/) {
  while (!unacknowledged_.empty() && unacknowledged_.front().first <= command.seq) {
    if (unacknowledged_.front().first == command.seq) {
      lease_from_ = std::max(lease_from_, unacknowledged_.front().second);
      num_failures_ = 0;
    }
    unacknowledged_.pop_front();
  }
}

// Starts what waits, as far as the lease allows.
void WorkerControlCore::Begin(MonotonicTime now, WorkerActions* out) {
  if (is_stopped_ || !HasLease(now)) {
    return;
  }
  BeginRetires(out);
  // Room is free again only behind the loads of a former stream.
  while (orphans_.empty() && !load_queue_.empty() &&
         static_cast<int>(loading_.size()) < options_.max_loads) {
    auto [unit, expected] = load_queue_.front();
    load_queue_.pop_front();
    loading_.emplace(unit, expected);
    out->push_back(action::LoadExpert{unit, expected});
  }
}

void WorkerControlCore::BeginRetires(WorkerActions* out) {
  while (!retire_queue_.empty()) {
    const RetireCommand command = retire_queue_.front();
    const bool is_loading =
        std::any_of(command.units.begin(), command.units.end(),
                    [this](ExpertUnit unit) { return loading_.contains(unit); });
    if (is_loading) {
      return;  // after its load, in the order of the commands
    }
    retire_queue_.pop_front();
    for (const ExpertUnit unit : command.units) {
      held_.erase(unit);
      const auto waiting = std::find_if(load_queue_.begin(), load_queue_.end(),
                                        [unit](const auto& load) { return load.first == unit; });
      if (waiting != load_queue_.end()) {
        load_queue_.erase(waiting);
        Resolve(unit, absl::CancelledError("retired before it was loaded"), out);
      }
    }
    retiring_.insert(command.plan_id);
    out->push_back(action::RetireExperts{command.plan_id, command.units});
  }
}

// Tells the plans that wait for `unit` how its load ended.
void WorkerControlCore::Resolve(ExpertUnit unit, const absl::Status& status, WorkerActions* out) {
  std::vector<uint64_t> finished;
  for (auto& [plan_id, plan] : plans_) {
    if (plan.open.erase(unit) == 0) {
      continue;
    }
    if (!status.ok()) {
      plan.failed.push_back(unit);
      const std::string reason = ReasonOf(status);
      plan.error = (reason.empty() ? "internal" : reason) + ": " + MessageOf(status);
    }
    if (plan.open.empty()) {
      finished.push_back(plan_id);
    }
  }
  for (const uint64_t plan_id : finished) {
    Finish(plan_id, out);
  }
}

void WorkerControlCore::Finish(uint64_t plan_id, WorkerActions* out) {
  const auto it = plans_.find(plan_id);
  const Plan& plan = it->second;
  action::SendPrepareResult result;
  result.plan_id = plan_id;
  result.failed = plan.failed;
  result.error = plan.error;
  for (const ExpertUnit unit : plan.units) {
    const auto held = held_.find(unit);
    const bool has_failed =
        std::find(plan.failed.begin(), plan.failed.end(), unit) != plan.failed.end();
    if (held != held_.end() && !has_failed) {
      result.ready.push_back(held->second);
    }
  }
  has_failed_plan_ = !plan.failed.empty();
  plans_.erase(it);
  if (link_ == Link::kUp) {
    out->push_back(std::move(result));
  }
}

void WorkerControlCore::OnLoaded(MonotonicTime now, ExpertUnit unit,
                                 const absl::StatusOr<HeldExpert>& loaded, WorkerActions* out) {
  loading_.erase(unit);
  if (loaded.ok()) {
    held_[unit] = *loaded;
    canary_failed_.erase(unit);
  }
  quiet_since_ = now;
  if (orphans_.erase(unit) > 0 && loaded.ok() && !CONCLAVE_PLANTED_BUG("orphan_load_kept")) {
    // The router counts on that room, and nobody would ever tell it.
    held_.erase(unit);
    out->push_back(action::RetireExperts{0, {unit}});
  }
  Resolve(unit, loaded.status(), out);
  Begin(now, out);
  CheckReady(now, out);
}

void WorkerControlCore::OnRetired(MonotonicTime now, uint64_t plan_id, int64_t freed_bytes,
                                  WorkerActions* out) {
  if (retiring_.erase(plan_id) > 0 && link_ == Link::kUp) {
    out->push_back(action::SendRetireResult{plan_id, freed_bytes});
  }
  Begin(now, out);
}

void WorkerControlCore::OnCanaryFailed(MonotonicTime /*now*/, ExpertUnit unit, WorkerActions* out) {
  if (held_.erase(unit) == 0) {
    return;
  }
  canary_failed_.insert(unit);
  // Not the router's to decide, and whatever the lease: wrong rows are worse than none.
  out->push_back(action::RetireExperts{0, {unit}});
  if (link_ == Link::kUp) {
    out->push_back(action::SendExpertsLost{{unit}, "canary_mismatch"});
  }
}

void WorkerControlCore::OnStreamLost(MonotonicTime now, const absl::Status& why,
                                     WorkerActions* out) {
  if (is_stopped_ || link_ == Link::kDown) {
    return;
  }
  const bool was_never_member = !worker_.has_value();
  const bool is_name_taken =
      ReasonOf(why) == "name_taken" && now - started_at_ >= options_.name_taken_after;
  if (was_never_member && (IsFinal(why) || is_name_taken)) {
    Stop(why, out);
    return;
  }
  link_ = Link::kDown;
  Reconnect(now, out);
}

void WorkerControlCore::Disconnect(MonotonicTime now, absl::Status why, WorkerActions* out) {
  out->push_back(action::Disconnect{std::move(why)});
  link_ = Link::kDown;
  Reconnect(now, out);
}

// What the stream's registration says is held; a load that ends later is not of it.
void WorkerControlCore::Connect(MonotonicTime now, WorkerActions* out) {
  connect_at_ = MonotonicTime::max();
  connected_at_ = now;
  link_ = Link::kConnecting;
  orphans_.clear();
  for (const auto& [unit, expected] : loading_) {
    orphans_.insert(unit);
  }
  out->push_back(action::Connect{});
}

// Plans whose commands came over the lost stream are forgotten: the router plans anew from what is
// registered. Loads under way count as held when they end before the next registration, or when the
// router wants them again; otherwise they are dropped.
void WorkerControlCore::Reconnect(MonotonicTime now, WorkerActions* out) {
  plans_.clear();
  load_queue_.clear();
  retire_queue_.clear();
  retiring_.clear();
  unacknowledged_.clear();
  next_heartbeat_ = MonotonicTime::max();
  next_load_ = MonotonicTime::max();
  if (num_failures_ == 0) {
    // The first attempt after a good time does not wait.
    ++num_failures_;
    Connect(now, out);
    return;
  }
  const int doublings = std::min(num_failures_++ - 1, 16);
  const nanoseconds wait = std::min<nanoseconds>(
      nanoseconds(options_.backoff_min) * (int64_t{1} << doublings), options_.backoff_max);
  // Four fifths to six fifths of it: workers that lost their router together do not come back
  // together.
  const double share = 0.8 + 0.4 * static_cast<double>(NextBits(jitter_state_) >> 11) * 0x1p-53;
  connect_at_ = now + nanoseconds(static_cast<int64_t>(static_cast<double>(wait.count()) * share));
}

void WorkerControlCore::OnDrainWish(MonotonicTime now, WorkerActions* out) {
  if (is_stopped_ || drain_since_.has_value()) {
    return;
  }
  drain_since_ = now;
  if (!worker_.has_value() || options_.drain_timeout.count() == 0) {
    Stop(absl::OkStatus(), out);
  } else if (link_ == Link::kUp) {
    out->push_back(action::SendDrainWish{});
  }
}

void WorkerControlCore::OnTimer(MonotonicTime now, WorkerActions* out) {
  if (is_stopped_) {
    return;
  }
  if (drain_since_.has_value() && now - *drain_since_ >= options_.drain_timeout) {
    Stop(absl::OkStatus(), out);
    return;
  }
  if (link_ == Link::kDown && now >= connect_at_) {
    Connect(now, out);
  } else if (link_ == Link::kConnecting && now - connected_at_ >= options_.connect_timeout) {
    Disconnect(now,
               Error(absl::StatusCode::kUnavailable, "router_silent",
                     "router: no answer to the registration"),
               out);
  } else if (link_ == Link::kUp && now >= SilentAt()) {
    Disconnect(
        now,
        Error(absl::StatusCode::kUnavailable, "router_silent", "router: no answer to heartbeats"),
        out);
  }
  if (now >= next_heartbeat_) {
    out->push_back(action::SendHeartbeat{++heartbeat_seq_, epoch_, canary_failed_.empty()});
    unacknowledged_.emplace_back(heartbeat_seq_, now);
    if (unacknowledged_.size() > kUnacknowledgedMax) {
      unacknowledged_.pop_front();
    }
    // From now and not from when it was due: after a pause there is no burst.
    next_heartbeat_ = now + terms_.heartbeat_interval;
  }
  if (now >= next_load_) {
    out->push_back(action::SendLoads{
        ++load_seq_, std::chrono::duration_cast<std::chrono::microseconds>(now - last_load_)});
    last_load_ = now;
    next_load_ = now + terms_.load_interval;
  }
  Begin(now, out);
  CheckReady(now, out);
}

MonotonicTime WorkerControlCore::NextTimer() const {
  if (is_stopped_) {
    return MonotonicTime::max();
  }
  MonotonicTime next = std::min(next_heartbeat_, next_load_);
  if (drain_since_.has_value()) {
    next = std::min(next, *drain_since_ + options_.drain_timeout);
  }
  if (link_ == Link::kDown) {
    next = std::min(next, connect_at_);
  } else if (link_ == Link::kConnecting) {
    next = std::min(next, connected_at_ + options_.connect_timeout);
  } else {
    next = std::min(next, SilentAt());
    // Only where it decides something: a timer that stays due would be asked for again and again.
    // After a pause it may be due without a lease; then the next acknowledgement decides.
    const MonotonicTime settled_at = quiet_since_ + options_.settle_after;
    if (MayBecomeReady() && settled_at < lease_from_ + FenceAfter() && settled_at > looked_at_) {
      next = std::min(next, settled_at);
    }
  }
  return next;
}

// A router that registers a worker late, because it recovers, has heard of it all the same: the
// silence begins with its answer.
MonotonicTime WorkerControlCore::SilentAt() const {
  return std::max(lease_from_, registered_at_) + terms_.dead_after;
}

bool WorkerControlCore::MayBecomeReady() const {
  return !is_announced_ && !is_stopped_ && plans_.empty() && !(has_failed_plan_ && held_.empty());
}

// Ready: a member, nothing is left to load, and what was given is held; a router that has nothing
// to give is waited for a little, because the first Prepare comes right behind the registration.
void WorkerControlCore::CheckReady(MonotonicTime now, WorkerActions* out) {
  looked_at_ = now;
  if (!MayBecomeReady() || !HasLease(now)) {
    return;
  }
  const bool is_placed = std::any_of(holders_.begin(), holders_.end(), [this](const auto& entry) {
    return held_.contains(entry.first) &&
           std::find(entry.second.begin(), entry.second.end(), *worker_) != entry.second.end();
  });
  if (is_placed || now - quiet_since_ >= options_.settle_after) {
    is_announced_ = true;
    out->push_back(action::AnnounceReady{});
  }
}

void WorkerControlCore::Stop(absl::Status status, WorkerActions* out) {
  is_stopped_ = true;
  link_ = Link::kDown;
  out->push_back(action::Stop{std::move(status)});
}

RegistrationFacts WorkerControlCore::registration() const {
  RegistrationFacts registration;
  for (const auto& [unit, held] : held_) {
    registration.held.push_back(held);
  }
  registration.last_router = router_;
  registration.last_epoch = epoch_;
  registration.is_draining = drain_since_.has_value();
  return registration;
}

std::vector<UnitRows> WorkerControlCore::LoadDeltas(std::span<const UnitRows> cumulative) {
  std::vector<UnitRows> deltas;
  for (const UnitRows& now : cumulative) {
    UnitRows& before = reported_[now.unit];
    UnitRows delta{.unit = now.unit};
    bool has_rows = false;
    for (size_t i = 0; i < std::size(now.rows); ++i) {
      delta.rows[i] = now.rows[i] - before.rows[i];
      has_rows = has_rows || delta.rows[i] > 0;
    }
    before = now;
    if (has_rows) {
      deltas.push_back(delta);
    }
  }
  return deltas;
}

WorkerState WorkerControlCore::state(MonotonicTime now) const {
  if (is_stopped_) {
    return WorkerState::kStopped;
  }
  if (drain_since_.has_value()) {
    return WorkerState::kDraining;
  }
  if (link_ != Link::kUp) {
    return WorkerState::kConnecting;
  }
  return HasLease(now) ? WorkerState::kRegistered : WorkerState::kFenced;
}

}  // namespace conclave::expert_worker
