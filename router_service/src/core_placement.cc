// Plans, and the way from one placement to the next. The goal is what a plan wants; what is
// published follows it as far as workers are ready. Everything is derived from the tables anew, so
// a crash, a death or another plan in the middle leaves nothing to be undone.
#include <algorithm>
#include <limits>
#include <set>

#include "conclave/base/check.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "core_impl.h"

namespace conclave::router_service {
namespace {

// Weights that come from a file in a second: what a move costs, against what balance gains.
constexpr double kLoadBytesPerSecond = 1e9;
// For how long a gain is reckoned with.
constexpr double kGainSeconds = 600;
constexpr double kUnevenBy = 0.05;
// Below, loads are noise.
constexpr double kRowsPerSecondMin = 1;

bool Contains(const std::vector<WorkerId>& workers, WorkerId worker) {
  return std::find(workers.begin(), workers.end(), worker) != workers.end();
}

}  // namespace

// Experts that a worker's memory takes.
int64_t RouterCore::Impl::NumPlaces(const Worker& worker) {
  const WorkerRegistration& r = worker.registration;
  return r.memory_bytes / std::max<int64_t>(1, r.expert_bytes);
}

void RouterCore::Impl::WantRepair(milliseconds delay) {
  const MonotonicTime at = now_ + delay;
  repair_at_ = repair_at_.has_value() ? std::min(*repair_at_, at) : at;
}

bool RouterCore::Impl::IsPlacedAt(const ReplicaMap& map, ExpertUnit unit, WorkerId worker) const {
  const auto it = map.find(unit);
  return it != map.end() && Contains(it->second, worker);
}

bool RouterCore::Impl::IsAcked(Epoch epoch) const {
  return std::all_of(frontends_.begin(), frontends_.end(), [&](const auto& entry) {
    const Frontend& frontend = entry.second;
    // One that has not got a placement yet may have an older one from before.
    return CONCLAVE_PLANTED_BUG("acks_not_awaited") || frontend.acked >= epoch ||
           (frontend.waits_since.has_value() &&
            now_ - *frontend.waits_since > options_.ack_timeout);
  });
}

// What is aimed at as far as its workers live; experts that have lost replicas by that, and others
// have them loaded, get those. What a worker has loaded and what it is still to load must fit into
// it together: where they do not, the latter gives way, because the former costs nothing.
ReplicaMap RouterCore::Impl::AliveGoal() const {
  ReplicaMap alive;
  std::map<WorkerId, int64_t> room;  // free places, if all of `alive` were loaded; may be below 0
  for (const auto& [id, worker] : workers_) {
    room[id] = NumPlaces(worker);
  }
  for (const ExpertUnit unit : Units()) {
    std::vector<WorkerId>& workers = alive[unit];
    if (const auto it = goal_.find(unit); it != goal_.end()) {
      std::copy_if(it->second.begin(), it->second.end(), std::back_inserter(workers),
                   [this](WorkerId id) {
                     const auto worker = workers_.find(id);
                     return worker != workers_.end() && worker->second.IsAlive();
                   });
    }
    for (const WorkerId id : workers) {
      --room[id];
    }
  }
  const auto add_loaded = [&](bool is_room_needed) {
    for (auto& [unit, workers] : alive) {
      const auto asked = state_.replicas.find(unit);
      const int32_t wanted = asked == state_.replicas.end() ? options_.replication : asked->second;
      for (const auto& [id, worker] : workers_) {
        if (static_cast<int32_t>(workers.size()) < wanted && worker.IsHere() &&
            worker.CanServe(unit, false) && !Contains(workers, id) && !IsDraining(worker) &&
            !worker.is_distrusted && (!is_room_needed || room[id] > 0)) {
          workers.push_back(id);
          --room[id];
        }
      }
    }
  };
  add_loaded(false);
  for (auto& [unit, workers] : alive) {
    std::erase_if(workers, [&, u = unit](WorkerId id) {
      const Worker& worker = workers_.at(id);
      const bool is_to_load = worker.IsHere() && !worker.held.contains(u);
      const bool gives_way = is_to_load && room[id] < 0;
      room[id] += gives_way ? 1 : 0;
      return gives_way;
    });
  }
  add_loaded(true);
  return alive;
}

PlanInput RouterCore::Impl::MakePlanInput() const {
  PlanInput input;
  input.replication = options_.replication;
  input.replicas = state_.replicas;
  int64_t expert_bytes = 1;
  std::map<std::string, int32_t> hosts;
  for (const auto& [id, worker] : workers_) {
    if (worker.state != Worker::State::kMember && worker.state != Worker::State::kExpected) {
      continue;
    }
    const WorkerRegistration& r = worker.registration;
    expert_bytes = std::max(expert_bytes, r.expert_bytes);
    placement::PlanWorker planned;
    planned.id = id;
    // Without a host each worker is one of its own.
    const std::string host = r.host_id.empty() ? "worker " + r.name : r.host_id;
    planned.host = hosts.try_emplace(host, static_cast<int32_t>(hosts.size())).first->second;
    planned.speed = r.speed;
    planned.memory_bytes = r.memory_bytes;
    planned.takes_experts =
        (!IsDraining(worker) || CONCLAVE_PLANTED_BUG("draining_worker_gets_experts")) &&
        !worker.is_distrusted;
    input.problem.workers.push_back(planned);
  }
  for (const ExpertUnit unit : Units()) {
    input.problem.units.push_back({unit, loads_.PlanLoadOf(unit), expert_bytes});
  }
  for (const auto& [unit, name] : state_.pins) {
    if (const auto known = state_.names.find(name); known != state_.names.end()) {
      input.problem.pins.push_back({unit, known->second.id});
    }
  }
  input.current = AliveGoal();
  return input;
}

void RouterCore::Impl::PlanIfDue() {
  if (repair_at_.has_value() && now_ >= *repair_at_) {
    repair_at_.reset();
    Plan(PlanPurpose::kRepair);
  } else if (fill_rounds_ > 0 && !repair_at_.has_value() && IsGoalReached() && !is_publishing_) {
    --fill_rounds_;
    const ReplicaMap before = goal_;
    Plan(PlanPurpose::kFill);
    if (goal_ == before) {
      fill_rounds_ = 0;
    }
  }
}

void RouterCore::Impl::Plan(PlanPurpose purpose) {
  planned_at_ = now_;
  const PlanInput input = MakePlanInput();
  if (input.problem.workers.empty() || input.problem.units.empty()) {
    return;
  }
  PlanOutcome outcome = MakeGoal(input, purpose);
  Aim(std::move(outcome.goal), outcome.imbalance_after,
      purpose == PlanPurpose::kRepair ? PlanReason::kRepair : PlanReason::kFill);
}

void RouterCore::Impl::EndPlan(PlanResult result) {
  if (plan_id_ == 0) {
    return;
  }
  const auto reason = static_cast<size_t>(plan_reason_);
  ++counters_.plans[reason][static_cast<size_t>(result)];
  if (result == PlanResult::kDone) {
    const double seconds = std::chrono::duration<double>(now_ - plan_begun_at_).count();
    PlanTimes& times = counters_.plan_times[reason];
    const auto bound = std::lower_bound(kPlanTimeBounds.begin(), kPlanTimeBounds.end(), seconds);
    ++times.counts[static_cast<size_t>(bound - kPlanTimeBounds.begin())];
    times.sum += seconds;
  }
  plan_id_ = 0;
}

void RouterCore::Impl::Aim(ReplicaMap goal, double imbalance, PlanReason reason) {
  if (goal == goal_) {
    return;
  }
  EndPlan(PlanResult::kReplaced);
  const std::vector<ReplicaMove> moves = MovesBetween(goal_, goal);
  const auto num_loads = std::count_if(
      moves.begin(), moves.end(), [](const ReplicaMove& move) { return move.to.value() >= 0; });
  goal_ = std::move(goal);
  imbalance_planned_ = imbalance;
  plan_id_ = NextPlanId();
  plan_reason_ = reason;
  plan_begun_at_ = now_;
  is_touched_ = true;
  Log(Severity::kInfo, "plan",
      {{"plan", std::to_string(plan_id_)},
       {"why", std::string(NameOf(reason))},
       {"loads", std::to_string(num_loads)},
       {"changes", std::to_string(moves.size())}});
}

// Two windows in a row that are less even than was planned, and a gain that is worth its loads.
void RouterCore::Impl::CheckBalance() {
  if (!IsCommanding() || now_ - window_at_ < options_.plan_interval) {
    return;
  }
  window_at_ = now_;
  if (!IsGoalReached() || is_publishing_ || repair_at_.has_value() || fill_rounds_ > 0) {
    return;
  }
  const PlanInput input = MakePlanInput();
  if (LacksReplicas(input)) {
    WantRepair(milliseconds(0));  // room or a worker may have come back
    return;
  }
  if (loads_.TotalRate() < kRowsPerSecondMin) {
    num_uneven_windows_ = 0;
    return;
  }
  const double seen = placement::ImbalanceOf(input.problem, ToReplicas(published_), {});
  num_uneven_windows_ = seen > imbalance_planned_ + kUnevenBy ? num_uneven_windows_ + 1 : 0;
  if (num_uneven_windows_ < 2 || now_ - rebalanced_at_ < options_.rebalance_interval ||
      now_ - planned_at_ < options_.plan_interval) {
    return;
  }
  planned_at_ = now_;
  PlanOutcome outcome = MakeGoal(input, PlanPurpose::kBalance);
  const auto bytes =
      static_cast<double>(BytesOf(MovesBetween(input.current, outcome.goal), input.problem));
  const double gain = outcome.imbalance_before - outcome.imbalance_after;
  if (gain * kGainSeconds > bytes / kLoadBytesPerSecond && outcome.goal != goal_) {
    rebalanced_at_ = now_;
    ++counters_.rebalances;
    Aim(std::move(outcome.goal), outcome.imbalance_after, PlanReason::kUneven);
  } else {
    // As even as it gets: measured against this from now on.
    imbalance_planned_ = outcome.imbalance_before;
  }
  num_uneven_windows_ = 0;
}

// Per expert: what is aimed at once all of it is ready. Until then what is ready of it and what
// serves now: make before break.
ReplicaMap RouterCore::Impl::NextPlacement() const {
  ReplicaMap next;
  for (const ExpertUnit unit : Units()) {
    std::vector<WorkerId>& workers = next[unit];
    const auto can_serve = [&](WorkerId id, bool is_placed) {
      const auto it = workers_.find(id);
      return it != workers_.end() && it->second.CanServe(unit, is_placed);
    };
    const auto placed = state_.placement.find(unit);
    const auto is_placed = [&](WorkerId id) {
      return placed != state_.placement.end() && Contains(placed->second, id);
    };
    const auto goal = goal_.find(unit);
    bool is_complete = goal != goal_.end() && !goal->second.empty();
    if (goal != goal_.end()) {
      for (const WorkerId id : goal->second) {
        if (can_serve(id, is_placed(id))) {
          workers.push_back(id);
          // Nobody gives way to a worker that may be gone.
          is_complete = is_complete && !workers_.at(id).IsSuspect();
        } else {
          is_complete = false;
        }
      }
    }
    if (!is_complete && placed != state_.placement.end() &&
        !CONCLAVE_PLANTED_BUG("break_before_make")) {
      for (const WorkerId id : placed->second) {
        if (!Contains(workers, id) && can_serve(id, true)) {
          workers.push_back(id);
        }
      }
    }
  }
  return next;
}

bool RouterCore::Impl::IsGoalReached() const {
  return std::all_of(goal_.begin(), goal_.end(), [this](const auto& entry) {
    const auto it = state_.placement.find(entry.first);
    return it != state_.placement.end() && it->second == entry.second;
  });
}

void RouterCore::Impl::Reconcile() {
  is_waiting_ = false;
  ReplicaMap next = NextPlacement();
  const bool is_current = next == state_.placement;
  if (!is_current) {
    PublishIfDue(std::move(next));
  }
  StartLoads();
  StartRetires();
  FinishDrains();
  if (is_current) {
    CancelIfStuck();
  }
  if (plan_id_ != 0 && IsGoalReached() && !is_publishing_) {
    Log(Severity::kInfo, "plan done", {{"plan", std::to_string(plan_id_)}});
    EndPlan(PlanResult::kDone);
  }
}

void RouterCore::Impl::PublishIfDue(ReplicaMap next) {
  if (is_publishing_) {
    return;  // what is under way comes first; its end brings us here again
  }
  bool is_loss = false;
  bool is_rescue = false;
  bool is_done = true;
  for (const auto& [unit, workers] : next) {
    const auto old = state_.placement.find(unit);
    const bool was_served = old != state_.placement.end() && !old->second.empty();
    is_rescue = is_rescue || (!was_served && !workers.empty());
    is_loss =
        is_loss || (was_served &&
                    std::any_of(old->second.begin(), old->second.end(), [&, u = unit](WorkerId id) {
                      const auto it = workers_.find(id);
                      return it == workers_.end() || !it->second.CanServe(u, true);
                    }));
    const auto goal = goal_.find(unit);
    is_done = is_done && (goal == goal_.end() || goal->second == workers);
  }
  if (!is_loss && !is_rescue && !is_done && now_ - published_at_ < options_.publish_interval) {
    is_waiting_ = true;
    return;
  }
  state_.placement = std::move(next);
  if (state_.epoch_n == UINT32_MAX) {
    RaiseTerm(state_.term);  // the next epoch is the first of a new term
    return;
  }
  if (!CONCLAVE_PLANTED_BUG("epoch_not_raised")) {
    ++state_.epoch_n;
  }
  is_publishing_ = true;
  MarkDirty();
  Defer(Publication{state_.placement, CurrentEpoch()});
}

// What is missing most comes first: experts by the number of replicas that serve.
void RouterCore::Impl::StartLoads() {
  std::map<WorkerId, std::vector<std::pair<size_t, ExpertUnit>>> wanted;
  for (const auto& [unit, workers] : goal_) {
    const auto placed = state_.placement.find(unit);
    const size_t num_serving = placed == state_.placement.end() ? 0 : placed->second.size();
    for (const WorkerId id : workers) {
      const auto it = workers_.find(id);
      if (it != workers_.end() && it->second.state == Worker::State::kMember &&
          !it->second.held.contains(unit) && !it->second.loading.contains(unit)) {
        wanted[id].emplace_back(num_serving, unit);
      }
    }
  }
  for (auto& [id, units] : wanted) {
    is_waiting_ = true;
    std::sort(units.begin(), units.end());
    StartLoadsOf(workers_.at(id), std::move(units));
  }
}

void RouterCore::Impl::StartLoadsOf(Worker& worker,
                                    std::vector<std::pair<size_t, ExpertUnit>> wanted) {
  if (worker.is_silent || worker.is_distrusted || now_ < worker.no_loads_before) {
    return;
  }
  const WorkerRegistration& r = worker.registration;
  int64_t room =
      NumPlaces(worker) -
      static_cast<int64_t>(worker.held.size() + worker.loading.size() + worker.refused.size());
  if (CONCLAVE_PLANTED_BUG("room_not_counted")) {
    room += 100;
  }
  size_t next = 0;
  while (static_cast<int32_t>(worker.loads.size()) < options_.loads_max && room > 0 &&
         next < wanted.size()) {
    SendPrepare prepare;
    prepare.session = worker.session.value_or(0);
    prepare.plan_id = NextPlanId();
    for (; next < wanted.size() && room > 0 &&
           static_cast<int32_t>(prepare.experts.size()) < options_.load_experts_max;
         ++next) {
      const ExpertUnit unit = wanted[next].second;
      if (worker.refused.contains(unit)) {
        continue;  // first it has to go
      }
      --room;
      prepare.experts.push_back(unit);
      worker.loading[unit] = prepare.plan_id;
      const HeldExpert expected = ExpectedWeights(state_, r.numeric, unit);
      if (expected.weight_hash != WeightHash{}) {
        prepare.expected.push_back(expected);
      }
    }
    if (prepare.experts.empty()) {
      return;
    }
    worker.loads[prepare.plan_id] = now_;
    Emit(std::move(prepare));
  }
}

void RouterCore::Impl::ExpireLoads() {
  for (auto& [id, worker] : workers_) {
    for (auto it = worker.loads.begin(); it != worker.loads.end();) {
      if (now_ - it->second <= options_.load_timeout) {
        ++it;
        continue;
      }
      const uint64_t plan = it->first;
      std::erase_if(worker.loading, [&](const auto& entry) { return entry.second == plan; });
      it = worker.loads.erase(it);
      Distrust(worker, "a load did not end");
    }
  }
}

void RouterCore::Impl::NoteUnused(Worker& worker) {
  bool is_routed = worker.state == Worker::State::kExpected;
  for (const auto& [unit, held] : worker.held) {
    if (IsPlacedAt(published_, unit, worker.id)) {
      worker.unused_since.erase(unit);
      is_routed = true;
    } else {
      worker.unused_since.try_emplace(unit, published_epoch_);
    }
  }
  if (is_routed) {
    worker.unrouted_since.reset();
  } else if (!worker.unrouted_since.has_value()) {
    worker.unrouted_since = published_epoch_;
  }
}

// Whether all replicas that are aimed at are loaded on workers that answer: only then others are
// too many.
bool RouterCore::Impl::IsReady(ExpertUnit unit) const {
  const auto goal = goal_.find(unit);
  return goal != goal_.end() && !goal->second.empty() &&
         std::all_of(goal->second.begin(), goal->second.end(), [&](WorkerId id) {
           const auto it = workers_.find(id);
           return it != workers_.end() && it->second.state == Worker::State::kMember &&
                  !it->second.is_silent && it->second.CanServe(unit, false);
         });
}

void RouterCore::Impl::StartRetires() {
  // After a start frontends come back one by one, some with older placements than ours.
  if (now_ - begun_at_ < options_.recover) {
    is_waiting_ = true;
    return;
  }
  for (auto& [id, worker] : workers_) {
    if (worker.state != Worker::State::kMember) {
      continue;
    }
    SendRetire retire;
    for (const auto& [unit, since] : worker.unused_since) {
      if (worker.retiring.contains(unit) || IsPlacedAt(goal_, unit, id) ||
          IsPlacedAt(state_.placement, unit, id) || IsPlacedAt(published_, unit, id)) {
        continue;
      }
      if (CONCLAVE_PLANTED_BUG("unused_never_retired")) {
        continue;
      }
      if (IsAcked(since) && IsReady(unit)) {
        retire.experts.push_back(unit);
      } else {
        is_waiting_ = true;
      }
    }
    for (const ExpertUnit unit : worker.refused) {
      if (!worker.retiring.contains(unit)) {
        retire.experts.push_back(unit);
      }
    }
    if (retire.experts.empty()) {
      continue;
    }
    retire.session = worker.session.value_or(0);
    retire.plan_id = NextPlanId();
    worker.retiring.insert(retire.experts.begin(), retire.experts.end());
    worker.retires[retire.plan_id] = retire.experts;
    Emit(std::move(retire));
  }
}

void RouterCore::Impl::FinishDrains() {
  for (auto& [id, worker] : workers_) {
    if (worker.state != Worker::State::kMember || !IsDraining(worker) || worker.is_drained) {
      continue;
    }
    const bool is_aimed_at =
        std::any_of(goal_.begin(), goal_.end(),
                    [&, w = id](const auto& entry) { return Contains(entry.second, w); });
    const bool is_unrouted =
        worker.unrouted_since.has_value() && !is_aimed_at &&
        std::none_of(state_.placement.begin(), state_.placement.end(),
                     [&, w = id](const auto& entry) { return Contains(entry.second, w); });
    if (!is_unrouted || repair_at_.has_value() || !IsAcked(*worker.unrouted_since)) {
      is_waiting_ = true;
      continue;
    }
    worker.is_drained = true;
    Emit(SendDrainState{worker.session.value_or(0), true, true});
    Log(Severity::kInfo, "worker drained", {{"worker", worker.registration.name}});
  }
}

// A plan may need room that only it would make: then nothing loads, nothing goes, and waiting does
// not help. What cannot be reached is given up; the next plan starts from what there is.
void RouterCore::Impl::CancelIfStuck() {
  if (is_publishing_ || repair_at_.has_value() || IsGoalReached() ||
      now_ - begun_at_ < options_.recover) {
    return;
  }
  for (const auto& [id, worker] : workers_) {
    const bool may_change = worker.state == Worker::State::kExpected ||
                            worker.state == Worker::State::kJoining ||
                            (worker.state == Worker::State::kMember &&
                             (!worker.loads.empty() || !worker.retiring.empty() ||
                              worker.IsSuspect() || now_ < worker.no_loads_before));
    // What waits for frontends goes when they have answered. What waits for the goal itself is no
    // reason to wait for the goal.
    const bool has_unused = std::any_of(
        worker.unused_since.begin(), worker.unused_since.end(), [&, w = id](const auto& entry) {
          return !IsPlacedAt(goal_, entry.first, w) &&
                 !IsPlacedAt(state_.placement, entry.first, w) && IsReady(entry.first);
        });
    if (may_change || has_unused) {
      return;
    }
  }
  bool is_changed = false;
  for (auto& [unit, workers] : goal_) {
    const std::vector<WorkerId>& placed = state_.placement[unit];
    if (workers != placed && !placed.empty()) {
      workers = placed;
      is_changed = true;
    }
  }
  if (is_changed) {
    ++counters_.plans_cancelled;
    fill_rounds_ = 0;
    goal_ = AliveGoal();  // what is loaded beside it is better than nothing
    is_touched_ = true;
    Log(Severity::kWarning, "plan given up: workers have no room for its moves",
        {{"plan", std::to_string(plan_id_)}});
    EndPlan(PlanResult::kGivenUp);
  }
}

void RouterCore::Impl::EraseGone() {
  const auto is_named = [](const ReplicaMap& map, WorkerId id) {
    return std::any_of(map.begin(), map.end(),
                       [&](const auto& entry) { return Contains(entry.second, id); });
  };
  for (auto it = workers_.begin(); it != workers_.end();) {
    // A member without any expert leaves at once; others when the epoch without them is out.
    if (it->second.state == Worker::State::kGone && !is_named(published_, it->first) &&
        !is_named(state_.placement, it->first)) {
      it = workers_.erase(it);
      is_view_old_ = true;
    } else {
      ++it;
    }
  }
}

}  // namespace conclave::router_service
