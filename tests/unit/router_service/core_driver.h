// A router core with workers, frontends, a disk and time made up by the test: one event after the
// other, no threads. After every step it checks what must hold always (CheckActions).
#pragma once

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "conclave/router_service/router_core.h"

namespace conclave::router_service {

// Layer 1 and 3 with `num_experts` each.
std::vector<ExpertUnit> TestUnits(int32_t num_experts);
ExpertUnit Unit(int32_t layer, int32_t expert);

struct TestWorker {
  std::string name;
  uint64_t incarnation = 1;
  int64_t memory_experts = 100;
  std::string host;
  int port = 0;
  milliseconds load_time{100};
  std::string dtype = "bf16";
  // Canary checksum and weights that it says to have.
  uint32_t canary = 7;
  uint8_t weights = 1;
  bool fails_to_load = false;
  bool is_silent = false;  // sends nothing

  std::optional<SessionId> session;
  std::optional<WorkerId> id;
  uint64_t key = 0;
  absl::Status end;  // of its last stream
  uint64_t heartbeat_seq = 0;
  RouterIdentity last_router;
  Epoch last_epoch;
  std::map<ExpertUnit, HeldExpert> held;
  int num_loaded = 0;
  int num_retired = 0;
  bool is_drained = false;
};

struct TestFrontend {
  std::string name;
  bool acks = true;
  std::optional<SessionId> session;
  std::optional<uint32_t> id;
  absl::Status end;
  std::shared_ptr<const PlacementView> view;   // the latest it was sent
  std::shared_ptr<const PlacementView> acked;  // that it routes by
};

class CoreDriver {
 public:
  explicit CoreDriver(CoreOptions options = Defaults(),
                      std::optional<RouterState> state = std::nullopt);

  static CoreOptions Defaults();

  // Time passes in ticks of 50 ms; workers beat every 200 ms and do what they are told.
  void Run(milliseconds time);
  // Only time: nobody says anything, the core does not tick.
  void Pause(milliseconds time) { now_ += time; }
  void Send(const Event& event);

  TestWorker& Add(const std::string& name);
  void Join(TestWorker& worker);
  void Kill(TestWorker& worker);  // its stream ends and its memory is gone
  TestFrontend& AddFrontend(const std::string& name, const std::string& dtype = "bf16");
  // The answer of an operator's command, which must come by time alone.
  AdminReply Ask(decltype(AdminEvent::command) command);

  // A router after this one, with what it kept or with nothing; streams are gone, workers hold what
  // they held.
  void Restart(bool with_state, const std::string& router_id);

  RouterStatus Status() const { return core_->Status(now_); }
  RouterCore& core() { return *core_; }
  MonotonicTime now() const { return now_; }
  std::vector<WorkerId> WorkersOf(ExpertUnit unit) const;
  int LowestReplication() const;
  int TotalLoads() const;

  std::map<std::string, TestWorker> workers;
  std::map<std::string, TestFrontend> frontends;
  absl::Status disk;  // what writing gives
  std::optional<RouterState> kept;
  int num_experts = 4;           // per layer
  std::vector<std::string> log;  // messages
  std::vector<AdminReply> replies;

 private:
  void Handle(const PersistState& persist);
  void Handle(const SendPlacement& placement);
  void Handle(const SendPrepare& prepare);
  void Handle(const SendRetire& retire);
  void Handle(const SendRegistered& registered);
  void Handle(const SendDrainState& drain);
  void Handle(const EndSession& end);
  void Handle(const AdminReply& reply);
  void Handle(const LogAction& line);
  void Handle(const SendHeartbeatAck&) {}  // its time counts in the simulation
  void CheckEpoch(const PlacementView& view);
  TestWorker* WorkerOf(SessionId session);

  CoreOptions options_;
  std::unique_ptr<RouterCore> core_;
  MonotonicTime now_{std::chrono::hours(1)};
  SessionId next_session_ = 1;
  uint64_t next_request_ = 1;
  int num_ticks_ = 0;
  // What will happen, by time.
  std::multimap<MonotonicTime, Event> coming_;
  Epoch highest_;
};

}  // namespace conclave::router_service
