// A RouterCore with virtual workers and time, for recordings that are replayed: no threads, nothing
// fails, loads take as long as their bytes do.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "conclave/router_service/router_core.h"
#include "conclave/router_service/routing_trace.h"
#include "planning.h"

namespace conclave::router_service {

class ReplayCluster {
 public:
  // `names`: every worker that will ever come and has an id in the recording. `workers` are there
  // from the start and hold what `placement` says; it names no others.
  ReplayCluster(const TraceHead& head, int32_t replication, milliseconds rebalance_interval,
                const std::map<std::string, WorkerId>& names,
                const std::vector<TraceWorker>& workers, const ReplicaMap& placement);

  // Workers that are missing go, new ones come with nothing, others drain or take experts again.
  void SetWorkers(const std::vector<TraceWorker>& workers);
  // Rows that were computed up to now.
  void AddRows(std::span<const ExpertRows> rows);
  // As an operator's `rebalance --full`; nothing when the router refuses.
  void RebalanceFully();
  // Lets time pass; `time` since the start, never falling.
  void RunTo(std::chrono::nanoseconds time);

  // As published last; never null, the same object as long as it is the same placement.
  std::shared_ptr<const std::vector<UnitReplicas>> placement() const { return placement_; }
  // The workers that are there, with the core's ids.
  std::vector<TraceWorker> Workers() const;
  const RouterCounters& counters() const { return core_->counters(); }
  int64_t bytes_loaded() const { return bytes_loaded_; }
  int64_t num_loads() const { return num_loads_; }
  // Not OK: the core refused a worker, which is a bug of this replay.
  const absl::Status& status() const { return status_; }

 private:
  struct Member {
    TraceWorker worker;
    SessionId session = 0;
    bool is_draining = false;
  };
  void Join(const TraceWorker& worker, const std::vector<ExpertUnit>& held);
  HeldExpert Held(ExpertUnit unit) const;
  // With everything that follows at once.
  void Send(Event event);
  void Handle(const Action& action);
  void Handle(const SendPrepare& prepare);
  MonotonicTime At(std::chrono::nanoseconds time) const { return start_ + time; }
  Member* MemberOf(SessionId session);

  const TraceHead head_;
  const MonotonicTime start_{std::chrono::hours(1)};
  std::unique_ptr<RouterCore> core_;
  MonotonicTime now_;
  MonotonicTime next_tick_;
  SessionId next_session_ = 1;
  uint64_t next_request_ = 1;
  uint64_t load_seq_ = 0;
  std::map<std::string, Member> members_;
  std::map<std::string, uint64_t> incarnations_;
  std::deque<Event> due_;                       // now
  std::multimap<MonotonicTime, Event> coming_;  // loads that end
  std::shared_ptr<const std::vector<UnitReplicas>> placement_;
  Epoch epoch_;
  int64_t num_loads_ = 0;
  int64_t bytes_loaded_ = 0;
  absl::Status status_;
};

}  // namespace conclave::router_service
