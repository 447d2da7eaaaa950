// What members say.
#include <algorithm>

#include "conclave/base/failpoint.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "core_impl.h"

namespace conclave::router_service {
namespace {

constexpr int32_t kBackoffDoublingsMax = 6;
// A worker that could not load so often in a row is not asked again.
constexpr int32_t kFailedLoadsMax = 3;

}  // namespace

std::chrono::seconds Backoff(int32_t num_failures) {
  return std::chrono::seconds(1) * (1 << std::clamp(num_failures - 1, 0, kBackoffDoublingsMax));
}

void RouterCore::Impl::On(const HeartbeatEvent& event) {
  Worker* worker = MemberOf(event.session);
  if (worker == nullptr) {
    return;
  }
  if (CONCLAVE_PLANTED_BUG("heartbeats_not_counted") && event.seq > 3) {
    return;
  }
  if (event.seq <= worker->heartbeat_seq) {
    ++counters_.reports_ignored;
    return;
  }
  worker->heartbeat_seq = event.seq;
  worker->last_heard = leases_.At(now_);
  worker->heard_at = now_;
  worker->busy_ratio = event.busy_ratio;
  worker->queued_rows = event.queued_rows;
  if (worker->is_silent) {
    worker->is_silent = false;
    is_view_old_ = true;
    is_touched_ = true;
  }
  if (!event.is_canary_ok && !worker->is_distrusted) {
    Distrust(*worker, "canary_checksum");
  }
  Emit(SendHeartbeatAck{event.session, event.seq});
}

void RouterCore::Impl::On(const LoadEvent& event) {
  Worker* worker = MemberOf(event.session);
  if (worker == nullptr) {
    return;
  }
  if (event.seq <= worker->load_seq) {
    ++counters_.reports_ignored;
    return;
  }
  worker->load_seq = event.seq;
  std::vector<ExpertRows> known;
  std::copy_if(event.experts.begin(), event.experts.end(), std::back_inserter(known),
               [this](const ExpertRows& rows) { return IsKnownUnit(rows.unit); });
  loads_.Add(worker->id, known);
  recorder_.AddRows(known);
}

void RouterCore::Impl::On(const PrepareResultEvent& event) {
  (void)CONCLAVE_FAILPOINT("r.migrate_loaded_uncommitted", {});
  Worker* worker = MemberOf(event.session);
  if (worker == nullptr) {
    return;
  }
  worker->loads.erase(event.plan_id);
  for (const HeldExpert& held : event.ready) {
    // What a worker holds is worth knowing whichever command it was for.
    if (IsKnownUnit(held.unit) && AcceptHeld(*worker, held)) {
      ++counters_.replicas_loaded;
      counters_.bytes_loaded += static_cast<uint64_t>(worker->registration.expert_bytes);
    }
  }
  std::erase_if(worker->loading, [&](const auto& entry) { return entry.second == event.plan_id; });
  if (event.failed.empty()) {
    worker->num_failed_loads = 0;
  } else {
    ++worker->num_failed_loads;
    worker->no_loads_before = now_ + Backoff(worker->num_failed_loads);
    Log(Severity::kWarning, "a worker could not load",
        {{"worker", worker->registration.name},
         {"experts", std::to_string(event.failed.size())},
         {"first", Describe(event.failed.front())},
         {"why", event.error}});
    if (worker->num_failed_loads >= kFailedLoadsMax) {
      Distrust(*worker, "loads failed");
    }
  }
  NoteUnused(*worker);
  is_touched_ = true;
}

void RouterCore::Impl::On(const RetireResultEvent& event) {
  Worker* worker = MemberOf(event.session);
  if (worker == nullptr) {
    return;
  }
  const auto it = worker->retires.find(event.plan_id);
  if (it == worker->retires.end()) {
    ++counters_.reports_ignored;
    return;
  }
  for (const ExpertUnit unit : it->second) {
    worker->held.erase(unit);
    worker->retiring.erase(unit);
    worker->unused_since.erase(unit);
    worker->refused.erase(unit);
    ++counters_.replicas_retired;
  }
  worker->retires.erase(it);
  is_touched_ = true;
}

void RouterCore::Impl::On(const DrainWishEvent& event) {
  Worker* worker = MemberOf(event.session);
  if (worker == nullptr || worker->wishes_to_leave) {
    return;
  }
  worker->wishes_to_leave = true;
  Log(Severity::kInfo, "a worker wants to leave", {{"worker", worker->registration.name}});
  if (worker->state == Worker::State::kMember) {
    Emit(SendDrainState{event.session, true, false});
  }
  is_view_old_ = true;
  is_touched_ = true;
  WantRepair(milliseconds(0));
}

void RouterCore::Impl::On(const ExpertsLostEvent& event) {
  Worker* worker = MemberOf(event.session);
  if (worker == nullptr) {
    return;
  }
  for (const ExpertUnit unit : event.experts) {
    DropReplica(*worker, unit);
  }
  Log(Severity::kError, "a worker lost experts",
      {{"worker", worker->registration.name},
       {"experts", std::to_string(event.experts.size())},
       {"why", event.why}});
  // It may load them again, but not at once: what broke them may still be there.
  worker->no_loads_before = now_ + Backoff(++worker->num_failed_loads);
  if (event.why.find("canary") != std::string::npos ||
      worker->num_failed_loads >= kFailedLoadsMax) {
    Distrust(*worker, event.why);
  }
  is_touched_ = true;
  WantRepair(milliseconds(0));
}

void RouterCore::Impl::DropReplica(Worker& worker, ExpertUnit unit) {
  worker.held.erase(unit);
  worker.unused_since.erase(unit);
  worker.retiring.erase(unit);
}

void RouterCore::Impl::Distrust(Worker& worker, const std::string& why) {
  if (worker.is_distrusted) {
    return;
  }
  worker.is_distrusted = true;
  is_touched_ = true;
  WantRepair(milliseconds(0));
  Log(Severity::kError, "a worker gets no experts any more, until it is started again",
      {{"worker", worker.registration.name}, {"why", why}});
}

void RouterCore::Impl::On(const EpochAckEvent& event) {
  const auto it = frontends_.find(event.session);
  if (it == frontends_.end() || event.epoch > published_epoch_ || event.epoch < it->second.acked) {
    ++counters_.reports_ignored;
    return;
  }
  it->second.acked = event.epoch;
  it->second.waits_since.reset();
  if (event.epoch < published_epoch_) {
    it->second.waits_since = now_;
  }
  is_touched_ = true;
}

void RouterCore::Impl::On(const PeerReportEvent& event) {
  const auto it = workers_.find(event.worker);
  if (!frontends_.contains(event.session) || it == workers_.end() ||
      it->second.state != Worker::State::kMember ||
      it->second.registration.incarnation != event.worker_incarnation) {
    ++counters_.reports_ignored;
    return;
  }
  Worker& worker = it->second;
  const bool was_suspect = worker.IsSuspect();
  if (event.kind == PeerReportKind::kRecovered) {
    worker.reporters.erase(event.session);
  } else {
    worker.reporters[event.session] = now_;
    if (CONCLAVE_PLANTED_BUG("reports_kill") && worker.reporters.size() >= 2) {
      Lose(worker, true, "reported");
      return;
    }
  }
  if (was_suspect != worker.IsSuspect()) {
    is_view_old_ = true;
    is_touched_ = true;
  }
}

void RouterCore::Impl::On(const ResyncEvent& event) {
  const auto it = frontends_.find(event.session);
  if (it == frontends_.end() || view_ == nullptr || !IsCommanding()) {
    return;
  }
  if (it->second.is_greeted) {
    SendView(event.session, true);
  }
}

}  // namespace conclave::router_service
