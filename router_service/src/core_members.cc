// Who comes and goes.
#include <algorithm>
#include <cmath>

#include "conclave/base/failpoint.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "core_impl.h"

namespace conclave::router_service {
namespace {

// A start that lasted less counts as a crash; from the second on loads wait, longer each time.
constexpr std::chrono::seconds kStableAfter{60};
// Reports of frontends count for so long.
constexpr std::chrono::seconds kReportLasts{5};

absl::Status Mismatch(const std::string& what, const std::string& expected,
                      const std::string& found) {
  return Error(absl::StatusCode::kFailedPrecondition, "cluster_mismatch",
               what + ": expected " + expected + ", found " + found);
}

// The high 16 bits of a frontend's id, of its incarnation; the low ones are its place among those
// that are here, so that no two have the same id.
uint32_t FoldIncarnation(uint64_t incarnation) {
  return static_cast<uint32_t>(
      (incarnation ^ incarnation >> 16 ^ incarnation >> 32 ^ incarnation >> 48) & 0xffff);
}

}  // namespace

bool RouterCore::Impl::IsDraining(const Worker& worker) const {
  const auto it = state_.names.find(worker.registration.name);
  return worker.wishes_to_leave || (it != state_.names.end() && it->second.is_draining);
}

bool RouterCore::Impl::IsKnownUnit(ExpertUnit unit) const {
  return std::any_of(state_.layers.begin(), state_.layers.end(), [&](const MoeLayer& layer) {
    return layer.layer == unit.layer && unit.expert.value() >= 0 &&
           unit.expert.value() < layer.num_experts;
  });
}

std::vector<ExpertUnit> RouterCore::Impl::Units() const {
  std::vector<ExpertUnit> units;
  for (const MoeLayer& layer : state_.layers) {
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      units.push_back({layer.layer, ExpertId(e)});
    }
  }
  return units;
}

bool RouterCore::Impl::HasFollowers() const {
  return std::any_of(
             workers_.begin(), workers_.end(),
             [](const auto& entry) { return entry.second.state == Worker::State::kMember; }) ||
         std::any_of(frontends_.begin(), frontends_.end(),
                     [](const auto& entry) { return entry.second.is_greeted; });
}

Worker* RouterCore::Impl::WorkerOf(SessionId session) {
  const auto it = worker_sessions_.find(session);
  return it == worker_sessions_.end() ? nullptr : &workers_.at(it->second);
}

Worker* RouterCore::Impl::MemberOf(SessionId session) {
  Worker* worker = WorkerOf(session);
  if (worker == nullptr) {
    Emit(EndSession{session, mode_ == Mode::kStandby
                                 ? Error(absl::StatusCode::kFailedPrecondition, "stale_term",
                                         "this router stands by")
                                 : NotFound("reregister", "the lease is over")});
  }
  return worker;
}

absl::Status RouterCore::Impl::CheckMember(uint32_t major, const std::string& cluster_id,
                                           const ModelIdentity& model) const {
  if (major != kProtocolMajor) {
    return Mismatch("protocol", std::to_string(kProtocolMajor), std::to_string(major));
  }
  if (!cluster_id.empty() && !options_.cluster_id.empty() && cluster_id != options_.cluster_id) {
    return Mismatch("cluster", options_.cluster_id, cluster_id);
  }
  if (!state_.model.manifest_hash.empty() && model != state_.model) {
    return Mismatch("model",
                    state_.model.manifest_hash + " of width " +
                        std::to_string(state_.model.row_width) + " and top " +
                        std::to_string(state_.model.top_k),
                    model.manifest_hash + " of width " + std::to_string(model.row_width) +
                        " and top " + std::to_string(model.top_k));
  }
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::CheckFrontend(const FrontendRegistration& r) const {
  CONCLAVE_RETURN_IF_ERROR(CheckMember(r.protocol_major, r.cluster_id, r.model));
  if (!state_.numeric.dtype.empty() &&
      (r.numeric.dtype != state_.numeric.dtype ||
       r.numeric.kernel_revision != state_.numeric.kernel_revision)) {
    return Mismatch(
        "numeric mode",
        state_.numeric.dtype + " revision " + std::to_string(state_.numeric.kernel_revision),
        r.numeric.dtype + " revision " + std::to_string(r.numeric.kernel_revision));
  }
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::CheckWorker(const WorkerRegistration& r) const {
  CONCLAVE_RETURN_IF_ERROR(CheckMember(r.protocol_major, r.cluster_id, r.model));
  const bool has_others = std::any_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
    return entry.second.IsAlive() && entry.second.registration.name != r.name;
  });
  // Bits are the same on every path that the kernels have, but replicas are compared by a checksum
  // per path, and one path in a cluster leaves nothing to compare that is not equal.
  if (has_others && r.numeric != state_.numeric) {
    return Mismatch("numeric mode",
                    state_.numeric.dtype + " " + state_.numeric.isa + " revision " +
                        std::to_string(state_.numeric.kernel_revision),
                    r.numeric.dtype + " " + r.numeric.isa + " revision " +
                        std::to_string(r.numeric.kernel_revision));
  }
  const auto is_same_layer = [](const MoeLayer& a, const MoeLayer& b) {
    return a.layer == b.layer && a.num_experts == b.num_experts;
  };
  if (!state_.layers.empty() && !r.moe_layers.empty() &&
      !std::equal(state_.layers.begin(), state_.layers.end(), r.moe_layers.begin(),
                  r.moe_layers.end(), is_same_layer)) {
    return Mismatch("moe_layers", std::to_string(state_.layers.size()) + " layers as known",
                    std::to_string(r.moe_layers.size()) + " layers that differ");
  }
  if (state_.layers.empty() && r.moe_layers.empty()) {
    return WithParam(InvalidArgument("moe_layers",
                                     "moe_layers: expected the layers of the checkpoint: this "
                                     "router has no model of its own"),
                     "moe_layers");
  }
  const auto num_alive =
      static_cast<int32_t>(std::count_if(workers_.begin(), workers_.end(), [&](const auto& entry) {
        return entry.second.IsAlive() && entry.second.registration.name != r.name;
      }));
  if (num_alive >= options_.workers_max) {
    return Error(absl::StatusCode::kResourceExhausted, "placement_too_large",
                 "expected at most " + std::to_string(options_.workers_max) + " workers");
  }
  for (const auto& [id, worker] : workers_) {
    if (worker.IsHere() && worker.registration.name != r.name &&
        worker.registration.data_address == r.data_address) {
      return WithParam(
          InvalidArgument("placement_worker", "data_address: " + r.data_address +
                                                  " belongs to worker " + worker.registration.name),
          "data_address");
    }
  }
  return CheckName(r);
}

absl::Status RouterCore::Impl::CheckName(const WorkerRegistration& r) const {
  const auto known = state_.names.find(r.name);
  if (known == state_.names.end()) {
    return absl::OkStatus();
  }
  const auto it = workers_.find(known->second.id);
  const bool is_held = it != workers_.end() && it->second.session.has_value();
  // The same incarnation is the same process, whose old stream is broken on its side already.
  if (r.incarnation < known->second.incarnation ||
      (is_held && r.incarnation != known->second.incarnation)) {
    return Error(absl::StatusCode::kAlreadyExists, "name_taken",
                 "name: " + r.name + " belongs to " +
                     (is_held ? "a live worker" : "a later start of a worker") +
                     "; expected another name or a newer incarnation after its end");
  }
  return absl::OkStatus();
}

absl::Status RouterCore::Impl::Fence(const RouterIdentity& last, Epoch epoch) {
  const uint32_t seen = std::max(last.term, static_cast<uint32_t>(epoch.value() >> 32));
  term_seen_ = std::max(term_seen_, seen);
  const bool is_other =
      seen > state_.term || (seen == state_.term && seen > 0 && last.term == seen &&
                             last.router_id != identity_.router_id);
  if (mode_ == Mode::kRecovering || !is_other) {
    return absl::OkStatus();
  }
  // A kept state that was older than the cluster, or a cluster that was out of reach until now.
  // With followers it is another router that commands, and two that outbid each other help nobody.
  if (now_ - begun_at_ < options_.recover || !HasFollowers()) {
    RaiseTerm(term_seen_);
    return absl::OkStatus();
  }
  if (CONCLAVE_PLANTED_BUG("no_standby")) {
    return absl::OkStatus();
  }
  StandBy("stale_term");
  return Error(absl::StatusCode::kFailedPrecondition, "stale_term",
               "have " + std::to_string(state_.term) + ", got " + std::to_string(seen));
}

void RouterCore::Impl::AdoptModel(const WorkerRegistration& r) {
  const bool is_new_mode = state_.numeric != r.numeric;
  const bool is_new_model = state_.model.manifest_hash.empty() || state_.layers.empty();
  if (is_new_mode) {
    state_.numeric = r.numeric;
    MarkDirty();
  }
  if (is_new_model) {
    state_.model = r.model;
    state_.layers = state_.layers.empty() ? r.moe_layers : state_.layers;
    MarkDirty();
    for (const ExpertUnit unit : Units()) {
      goal_[unit];
    }
  }
  if (!is_new_mode && !is_new_model) {
    return;
  }
  // Frontends came before anybody knew the model, or all workers of the former mode are gone.
  for (auto it = frontends_.begin(); it != frontends_.end();) {
    const absl::Status status = CheckFrontend(it->second.registration);
    if (!status.ok()) {
      Emit(EndSession{it->first, status});
      it = frontends_.erase(it);
    } else {
      ++it;
    }
  }
}

Worker& RouterCore::Impl::Enter(const WorkerRegisterEvent& event) {
  const WorkerRegistration& r = event.registration;
  const bool is_named = state_.names.contains(r.name);
  if (!is_named) {
    state_.names[r.name].id = WorkerId(state_.next_worker_id++);
    MarkDirty();
  }
  KnownName& known = state_.names[r.name];
  Worker& worker = workers_[known.id];
  const bool is_durable =
      worker.has_durable_id || (is_named && !is_dirty_ && version_ == durable_version_);
  const bool is_same_start = is_named && known.incarnation == r.incarnation;
  if (worker.session.has_value()) {
    Emit(EndSession{*worker.session,
                    Error(absl::StatusCode::kCancelled, "replaced", "the worker came again")});
    worker_sessions_.erase(*worker.session);
  }
  Worker fresh;
  fresh.id = known.id;
  fresh.has_durable_id = is_durable;
  if (is_same_start) {
    fresh.is_distrusted = worker.is_distrusted;
    fresh.wishes_to_leave = worker.wishes_to_leave;
  } else {
    // The incarnation counts from here on; the key of a peer that comes again stays, so that
    // frontends need no new one.
    known.incarnation = r.incarnation;
    known.key = event.fresh_key;
    MarkDirty();
    Starts& starts = starts_[r.name];
    const bool has_crashed = starts.last != MonotonicTime() && now_ - starts.last < kStableAfter;
    starts.num_short = has_crashed ? starts.num_short + 1 : 0;
    starts.last = now_;
    if (starts.num_short >= 2) {
      fresh.no_loads_before = now_ + Backoff(starts.num_short - 1);
    }
  }
  if (r.is_draining) {
    fresh.wishes_to_leave = true;
  }
  fresh.key = known.key;
  fresh.registration = r;
  fresh.registration.held.clear();
  fresh.registration.moe_layers.clear();
  fresh.registration.last_router = {};
  fresh.session = event.session;
  fresh.last_heard = leases_.At(now_);
  fresh.heard_at = now_;
  worker = std::move(fresh);
  worker_sessions_[event.session] = worker.id;
  return worker;
}

bool RouterCore::Impl::AcceptHeld(Worker& worker, const HeldExpert& held) {
  const WeightVerdict verdict = CheckWeights(state_, worker.registration.numeric, held);
  switch (verdict) {
    case WeightVerdict::kFirst:
      MarkDirty();
      [[fallthrough]];
    case WeightVerdict::kKnown:
      worker.held[held.unit] = held;
      return true;
    case WeightVerdict::kOtherWeights:
    case WeightVerdict::kOtherCanary:
      break;
  }
  ++counters_.replicas_refused;
  worker.refused.insert(held.unit);
  const bool is_canary = verdict == WeightVerdict::kOtherCanary;
  Log(Severity::kError, "a replica is refused: it is not what the others are",
      {{"worker", worker.registration.name},
       {"expert", Describe(held.unit)},
       {"differs", is_canary ? "canary_checksum" : "weight_hash"}});
  Distrust(worker, is_canary ? "canary_checksum" : "weight_hash");
  return false;
}

void RouterCore::Impl::On(const WorkerRegisterEvent& event) {
  const WorkerRegistration& r = event.registration;
  absl::Status status = mode_ == Mode::kStandby ? Error(absl::StatusCode::kFailedPrecondition,
                                                        "stale_term", "this router stands by")
                                                : CheckWorker(r);
  if (status.ok()) {
    status = Fence(r.last_router, r.last_epoch);
  }
  if (!status.ok()) {
    Emit(EndSession{event.session, status});
    Log(Severity::kWarning, "registration refused",
        {{"worker", r.name}, {"why", MessageOf(status)}});
    return;
  }
  AdoptModel(r);
  Worker& worker = Enter(event);
  for (const HeldExpert& held : r.held) {
    if (!IsKnownUnit(held.unit)) {
      worker.refused.insert(held.unit);
    } else {
      (void)AcceptHeld(worker, held);
    }
  }
  is_touched_ = true;
  if (mode_ == Mode::kServing) {
    Defer(Admission{worker.id, event.session});
  }
}

void RouterCore::Impl::Lose(Worker& worker, bool is_hard, const std::string& why) {
  if (worker.session.has_value()) {
    worker_sessions_.erase(*worker.session);
  }
  worker.session.reset();
  worker.state = Worker::State::kGone;
  worker.held.clear();
  worker.loading.clear();
  worker.loads.clear();
  worker.retires.clear();
  worker.retiring.clear();
  worker.refused.clear();
  worker.unused_since.clear();
  worker.reporters.clear();
  worker.is_silent = true;
  loads_.Forget(worker.id);
  ++counters_.workers_lost;
  is_view_old_ = true;
  is_touched_ = true;
  Log(Severity::kWarning, "worker lost", {{"worker", worker.registration.name}, {"why", why}});
  WantRepair(is_hard ? milliseconds(0) : options_.repair_delay);
}

void RouterCore::Impl::CheckLeases(bool is_after_pause) {
  for (auto& [id, worker] : workers_) {
    if (is_after_pause && !CONCLAVE_PLANTED_BUG("pause_counts_for_leases")) {
      worker.last_heard = leases_.At(now_);
    }
    if (worker.state == Worker::State::kExpected) {
      // It holds what the kept placement says, until it had its time to come back.
      if (leases_.At(now_) - worker.last_heard >= options_.recover && IsCommanding()) {
        Lose(worker, false, "did not come back after the router's restart");
      }
      continue;
    }
    if (worker.state != Worker::State::kMember) {
      continue;
    }
    const std::chrono::nanoseconds silence = leases_.At(now_) - worker.last_heard;
    if (silence >= options_.dead_after) {
      (void)CONCLAVE_FAILPOINT("r.lease_expire", {});
      const SessionId session = worker.session.value_or(0);
      Lose(worker, false, "no heartbeat");
      Emit(EndSession{session, NotFound("reregister", "the lease is over: no heartbeat")});
    } else if (silence >= options_.suspect_after && !worker.is_silent) {
      worker.is_silent = true;
      is_view_old_ = true;
      Log(Severity::kWarning, "worker silent", {{"worker", worker.registration.name}});
    }
  }
  EraseGone();
}

void RouterCore::Impl::ForgetReports() {
  for (auto& [id, worker] : workers_) {
    const bool was_suspect = worker.IsSuspect();
    std::erase_if(worker.reporters,
                  [this](const auto& entry) { return now_ - entry.second > kReportLasts; });
    if (was_suspect != worker.IsSuspect()) {
      is_view_old_ = true;
      is_touched_ = true;
    }
  }
}

void RouterCore::Impl::On(const FrontendRegisterEvent& event) {
  const FrontendRegistration& r = event.registration;
  absl::Status status = mode_ == Mode::kStandby ? Error(absl::StatusCode::kFailedPrecondition,
                                                        "stale_term", "this router stands by")
                                                : CheckFrontend(r);
  if (status.ok() && static_cast<int32_t>(frontends_.size()) >= options_.frontends_max) {
    status = Error(absl::StatusCode::kResourceExhausted, "placement_too_large",
                   "expected at most " + std::to_string(options_.frontends_max) + " frontends");
  }
  for (const auto& [session, other] : frontends_) {
    if (status.ok() && other.registration.name == r.name &&
        other.registration.incarnation > r.incarnation) {
      status = Error(absl::StatusCode::kAlreadyExists, "name_taken",
                     "name: " + r.name + " belongs to a later start of a frontend");
    }
  }
  if (status.ok()) {
    status = Fence(r.last_router, r.last_epoch);
  }
  if (!status.ok()) {
    Emit(EndSession{event.session, status});
    return;
  }
  // The same name again: a frontend that came back before its old stream was known to be over.
  for (auto it = frontends_.begin(); it != frontends_.end();) {
    if (it->second.registration.name == r.name) {
      Emit(EndSession{it->first,
                      Error(absl::StatusCode::kCancelled, "replaced", "the frontend came again")});
      it = frontends_.erase(it);
    } else {
      ++it;
    }
  }
  uint32_t place = 0;
  while (std::any_of(frontends_.begin(), frontends_.end(),
                     [&](const auto& entry) { return (entry.second.id & 0xffff) == place; })) {
    ++place;
  }
  Frontend& frontend = frontends_[event.session];
  frontend.session = event.session;
  frontend.id = FoldIncarnation(r.incarnation) << 16 | place;
  frontend.registration = r;
  frontend.waits_since = now_;
  Log(Severity::kInfo, "frontend joined", {{"frontend", r.name}});
  Greet(frontend);
}

void RouterCore::Impl::On(const SessionClosedEvent& event) {
  if (Worker* worker = WorkerOf(event.session); worker != nullptr) {
    Lose(*worker, true, "its stream ended");
    EraseGone();
    return;
  }
  if (const auto it = frontends_.find(event.session); it != frontends_.end()) {
    Log(Severity::kInfo, "frontend left", {{"frontend", it->second.registration.name}});
    for (auto& [id, worker] : workers_) {
      worker.reporters.erase(event.session);
    }
    frontends_.erase(it);
    is_touched_ = true;
  }
}

}  // namespace conclave::router_service
