#include "replay_cluster.h"

#include <algorithm>
#include <set>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::router_service {
namespace {

constexpr milliseconds kTick{100};
// What the core reckons with when it weighs a move.
constexpr double kLoadBytesPerSecond = 1e9;
constexpr uint32_t kCanary = 1;
// Nobody dies of silence here: who goes says so.
constexpr milliseconds kNever{std::chrono::hours(24 * 365)};

NumericMode AnyMode() { return {"bf16", "scalar", 1}; }

WorkerRegistration RegistrationOf(const TraceWorker& worker, const TraceHead& head) {
  WorkerRegistration r;
  r.name = worker.name;
  r.host_id = worker.host;
  r.model = head.model;
  r.numeric = AnyMode();
  r.memory_bytes = worker.memory_bytes;
  r.speed = worker.speed;
  r.expert_bytes = worker.expert_bytes;
  r.moe_layers = head.layers;
  return r;
}

// Of two recorded states of one worker: what only a new start of it changes.
bool IsSameStart(TraceWorker a, const TraceWorker& b) {
  a.takes_experts = b.takes_experts;
  a.id = b.id;
  return a == b;
}

}  // namespace

ReplayCluster::ReplayCluster(const TraceHead& head, int32_t replication,
                             milliseconds rebalance_interval,
                             const std::map<std::string, WorkerId>& names,
                             const std::vector<TraceWorker>& workers, const ReplicaMap& placement)
    : head_(head),
      now_(start_),
      next_tick_(start_),
      placement_(std::make_shared<const std::vector<UnitReplicas>>()) {
  CoreOptions options;
  options.router_id = "0000000000000000";
  options.replication = replication;
  options.rebalance_interval = rebalance_interval;
  // The members of the start register before the first tick.
  options.recover = milliseconds(0);
  options.suspect_after = options.dead_after = options.pause_after = kNever;
  options.load_timeout = kNever;
  options.workers_max = INT32_MAX;
  RouterState state;
  state.term = 1;
  state.epoch_n = 1;
  state.model = head.model;
  state.numeric = AnyMode();
  state.layers = head.layers;
  state.replicas = head.replicas;
  state.pins = head.pins;
  std::set<std::string> draining;
  for (const TraceWorker& worker : workers) {
    // As after a restart of a router: they are reckoned with before they have come back. New ones
    // have no id yet.
    if (names.contains(worker.name)) {
      state.members[worker.id] = RegistrationOf(worker, head);
    }
    if (!worker.takes_experts) {
      draining.insert(worker.name);
    }
  }
  for (const auto& [name, id] : names) {
    state.names[name].id = id;
    state.names[name].is_draining = draining.contains(name);
    state.next_worker_id = std::max(state.next_worker_id, id.value() + 1);
  }
  std::map<std::string, std::vector<ExpertUnit>> held;
  std::map<WorkerId, std::string> name_of;
  for (const TraceWorker& worker : workers) {
    name_of[worker.id] = worker.name;
  }
  for (const auto& [unit, ids] : placement) {
    state.placement[unit] = ids;
    for (const WorkerId id : ids) {
      held[name_of[id]].push_back(unit);
    }
  }
  core_ = std::make_unique<RouterCore>(std::move(options), std::move(state));
  for (const TraceWorker& worker : workers) {
    Join(worker, held[worker.name]);
  }
}

HeldExpert ReplayCluster::Held(ExpertUnit unit) const {
  HeldExpert held;
  held.unit = unit;
  // Weights differ from expert to expert and are the same on all workers.
  const auto layer = static_cast<uint32_t>(unit.layer.value());
  const auto expert = static_cast<uint32_t>(unit.expert.value());
  for (size_t i = 0; i < 4; ++i) {
    held.weight_hash[i] = static_cast<uint8_t>(layer >> (8 * i));
    held.weight_hash[4 + i] = static_cast<uint8_t>(expert >> (8 * i));
  }
  held.weight_hash[8] = 1;
  held.canary_checksum = kCanary;
  return held;
}

void ReplayCluster::Join(const TraceWorker& worker, const std::vector<ExpertUnit>& held) {
  Member& member = members_[worker.name];
  member = Member{worker, next_session_++, false};
  WorkerRegisterEvent event;
  event.session = member.session;
  event.fresh_key = member.session;
  WorkerRegistration& r = event.registration;
  r = RegistrationOf(worker, head_);
  r.incarnation = ++incarnations_[worker.name];
  // No two have the same.
  r.data_address = "replay:" + std::to_string(member.session);
  for (const ExpertUnit unit : held) {
    r.held.push_back(Held(unit));
  }
  member.is_draining = !worker.takes_experts;
  Send(std::move(event));
}

ReplayCluster::Member* ReplayCluster::MemberOf(SessionId session) {
  const auto it = std::find_if(members_.begin(), members_.end(),
                               [&](const auto& entry) { return entry.second.session == session; });
  return it == members_.end() ? nullptr : &it->second;
}

void ReplayCluster::SetWorkers(const std::vector<TraceWorker>& workers) {
  std::map<std::string, TraceWorker> wanted;
  for (const TraceWorker& worker : workers) {
    wanted.emplace(worker.name, worker);
  }
  std::vector<SessionId> gone;
  for (auto it = members_.begin(); it != members_.end();) {
    const auto found = wanted.find(it->first);
    if (found == wanted.end() || !IsSameStart(it->second.worker, found->second)) {
      gone.push_back(it->second.session);
      it = members_.erase(it);
    } else {
      ++it;
    }
  }
  for (const SessionId session : gone) {
    Send(SessionClosedEvent{session});
  }
  for (const auto& [name, worker] : wanted) {
    const auto it = members_.find(name);
    if (it == members_.end()) {
      Join(worker, {});
      Send(AdminEvent{next_request_++, DrainCommand{name, worker.takes_experts}});
      continue;
    }
    Member& member = it->second;
    if (member.is_draining == worker.takes_experts) {
      member.is_draining = !worker.takes_experts;
      member.worker.takes_experts = worker.takes_experts;
      Send(AdminEvent{next_request_++, DrainCommand{name, worker.takes_experts}});
    }
  }
}

void ReplayCluster::AddRows(std::span<const ExpertRows> rows) {
  if (members_.empty()) {
    return;  // The router hears of rows from workers.
  }
  // Plans look at the rows of experts, whoever computed them.
  LoadEvent event;
  event.session = members_.begin()->second.session;
  event.seq = ++load_seq_;
  event.experts.assign(rows.begin(), rows.end());
  Send(std::move(event));
}

void ReplayCluster::RebalanceFully() { Send(AdminEvent{next_request_++, RebalanceCommand{true}}); }

void ReplayCluster::RunTo(std::chrono::nanoseconds time) {
  const MonotonicTime until = At(time);
  while (true) {
    const bool is_load = !coming_.empty() && coming_.begin()->first <= next_tick_;
    const MonotonicTime next = is_load ? coming_.begin()->first : next_tick_;
    if (next > until) {
      now_ = until;
      return;
    }
    now_ = next;
    if (is_load) {
      Event event = std::move(coming_.begin()->second);
      coming_.erase(coming_.begin());
      Send(std::move(event));
    } else {
      next_tick_ += kTick;
      Send(TickEvent{});
    }
  }
}

std::vector<TraceWorker> ReplayCluster::Workers() const {
  std::vector<TraceWorker> workers;
  for (const auto& [name, member] : members_) {
    workers.push_back(member.worker);
    workers.back().takes_experts = !member.is_draining;
  }
  return workers;
}

void ReplayCluster::Send(Event event) {
  due_.push_back(std::move(event));
  while (!due_.empty()) {
    const Event next = std::move(due_.front());
    due_.pop_front();
    std::vector<Action> actions;
    core_->Step(now_, next, actions);
    for (const Action& action : actions) {
      Handle(action);
    }
  }
}

void ReplayCluster::Handle(const Action& action) {
  if (const auto* persist = std::get_if<PersistState>(&action); persist != nullptr) {
    due_.emplace_back(PersistedEvent{persist->version, absl::OkStatus()});
  } else if (const auto* registered = std::get_if<SendRegistered>(&action)) {
    if (Member* member = MemberOf(registered->session); member != nullptr) {
      member->worker.id = registered->worker;
    }
  } else if (const auto* prepare = std::get_if<SendPrepare>(&action)) {
    Handle(*prepare);
  } else if (const auto* retire = std::get_if<SendRetire>(&action)) {
    due_.emplace_back(RetireResultEvent{retire->session, retire->plan_id});
  } else if (const auto* placement = std::get_if<SendPlacement>(&action)) {
    if (placement->view->epoch >= epoch_) {
      epoch_ = placement->view->epoch;
      placement_ = placement->view->experts;
    }
  } else if (const auto* end = std::get_if<EndSession>(&action)) {
    // A result of a worker that has gone meanwhile is answered like this too.
    if (MemberOf(end->session) != nullptr && status_.ok()) {
      status_ = end->status;
    }
  }
}

void ReplayCluster::Handle(const SendPrepare& prepare) {
  const Member* member = MemberOf(prepare.session);
  if (member == nullptr) {
    return;
  }
  PrepareResultEvent result;
  result.session = prepare.session;
  result.plan_id = prepare.plan_id;
  for (const ExpertUnit unit : prepare.experts) {
    result.ready.push_back(Held(unit));
  }
  const double bytes = static_cast<double>(member->worker.expert_bytes) *
                       static_cast<double>(prepare.experts.size());
  num_loads_ += static_cast<int64_t>(prepare.experts.size());
  bytes_loaded_ += static_cast<int64_t>(bytes);
  const auto time = std::chrono::nanoseconds(
      1 + static_cast<int64_t>(std::min(bytes / kLoadBytesPerSecond, 1e6) * 1e9));
  coming_.emplace(now_ + time, std::move(result));
}

}  // namespace conclave::router_service
