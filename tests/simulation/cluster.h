// The nodes of a simulated cluster: what production's threads, gRPC, files and kernels do around
// each core, on the kernel's events.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "conclave/base/thread_pool.h"
#include "conclave/expert_worker/worker_control.h"
#include "conclave/frontend/cluster_view.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/router_service/router_core.h"
#include "kernel.h"
#include "link_keeper.h"

namespace conclave::simulation {

using placement::ExpertUnit;

inline constexpr int32_t kRowWidth = 4;
inline constexpr int32_t kTopK = 2;
inline constexpr uint64_t kRevision = 1;  // of the weights that are right

// Of a weight file: the expert and its revision.
router_service::WeightHash HashOf(ExpertUnit unit, uint64_t revision);
// One term of the oracle: small numbers, so that sums are exact and every term shows in them.
float TermOf(ExpertUnit unit, uint64_t revision, float weight, float row, int32_t column);

// ---- Router -------------------------------------------------------------------------------------

// The folder of a router: the newest generations, and what is being written.
struct Disk {
  std::deque<std::string> files;  // encoded; newest last
  std::optional<std::string> writing;
  // Since when what is published now may have been decided: the begin of the last good write but
  // one.
  Micros began_at = 0;
  Micros decided_after = 0;
  Micros fails_until = 0;
  Micros slow_until = 0;
  bool is_rotten = false;
  // (term, epoch) of what is durable.
  std::optional<router_service::RouterState> durable;
};

struct RouterNode {
  int node = -1;
  Disk disk;
  std::unique_ptr<router_service::RouterCore> core;
  std::map<uint64_t, StreamPtr> sessions;
  // By the unpaused time of the router.
  struct Member {
    bool is_worker = false;
    int node = -1;
    Micros heard_at = 0;
    std::shared_ptr<const router_service::PlacementView> sent;  // for deltas
    Micros ack_due = 0;  // since when an epoch waits for its acknowledgement; 0: none does
    Epoch acked;
  };
  std::map<uint64_t, Member> members;
  std::shared_ptr<const router_service::PlacementView> published;
  MonotonicTime ticked_at;
  Micros changed_at = 0;  // what it aims at, by a fault or a command
  uint64_t num_requests = 0;
  std::map<uint64_t, std::pair<std::string, bool>> drains_asked;  // by request: name, undo
};

// ---- Worker -------------------------------------------------------------------------------------

struct CallMessage;

struct MemoryEntry {
  uint64_t revision = kRevision;
};

struct WorkerNode {
  int node = -1;
  uint64_t incarnation = 0;
  std::unique_ptr<expert_worker::WorkerControlCore> control;
  StreamPtr stream;
  uint64_t timer = 0;  // the latest; older ones are void
  std::map<ExpertUnit, MemoryEntry> memory;
  struct Task {
    bool is_load = true;
    ExpertUnit unit{};
    expert_worker::ExpectedExpert expected;
    uint64_t plan_id = 0;
    std::vector<ExpertUnit> units;
  };
  std::deque<Task> tasks;
  bool is_loading = false;  // room is taken for the task under way
  std::map<ExpertUnit, expert_worker::UnitRows> rows;
  std::deque<std::shared_ptr<CallMessage>> calls;
  bool is_computing = false;
  double slowness = 1;
  Micros slow_until = 0;
  Micros wrong_weights_until = 0;
  bool is_leaving = false;
  Micros changed_at = 0;  // its process, its stream or its memory, by a fault
  // What fencing and leases are checked with.
  expert_worker::RouterIdentity obeyed;
  std::map<uint64_t, MonotonicTime> beats;  // sent and not yet acknowledged, of this stream
  MonotonicTime lease_from;
  MonotonicTime connected_at;
  bool is_registered = false;
  Epoch epoch_seen;
};

// ---- Frontend -----------------------------------------------------------------------------------

// A connection for calls. Lost when one of its processes ends or it is reset.
struct DataLink {
  int frontend = -1;
  int worker = -1;
  uint64_t frontend_life = 0;
  uint64_t worker_life = 0;
  uint64_t incarnation = 0;
  bool is_lost = false;
  class SimChannel* channel = nullptr;  // null: closed
};

struct CallMessage {
  std::shared_ptr<DataLink> link;
  size_t slot = 0;
  uint64_t seq = 0;
  int32_t layer = 0;
  std::vector<std::pair<uint16_t, uint16_t>> pairs;  // expert, row
  std::vector<float> weights;
  std::vector<float> rows;
  size_t num_rows = 0;
  Micros received_at = 0;
};

struct ReplyMessage {
  std::shared_ptr<DataLink> link;
  size_t slot = 0;
  uint64_t seq = 0;
  absl::Status status;
  std::vector<float> rows;
  uint32_t queue_us = 0;
  uint32_t service_us = 0;
};

struct FrontendNode;
class SimLinks;
class NodeClock;

// The router's word as a frontend has it: fenced and in order, as RouterClient keeps it.
struct Picture {
  router_service::RouterIdentity router;
  Epoch epoch;
  uint32_t frontend_id = 0;
  std::map<WorkerId, frontend::ClusterMember> members;
  std::map<ExpertUnit, std::vector<WorkerId>> holders;
};

struct LayerRun {
  int32_t layer = 0;
  std::vector<float> n, out, weights;
  std::vector<int32_t> experts;
  std::vector<model::StepRow> rows;
  Micros began_at = 0;
  Micros paused_before = 0;
  uint64_t refusals_before = 0;
};

struct FrontendNode {
  int node = -1;
  uint64_t incarnation = 0;
  std::unique_ptr<NodeClock> clock;
  std::unique_ptr<SimLinks> links;
  std::unique_ptr<frontend::Dispatcher> dispatcher;
  Picture picture;
  StreamPtr stream;
  std::chrono::milliseconds backoff{100};
  Epoch acknowledged;
  std::optional<LayerRun> run;
  MonotonicTime wake_at;
  uint64_t wake = 0;  // the latest timer
  uint64_t retry = 0;
  bool is_rung = false;
  uint64_t num_begun = 0;
  uint64_t num_ok = 0;
  uint64_t num_failed = 0;
  uint64_t num_broken = 0;  // by its own crash
  Micros started_at = 0;
  std::shared_ptr<const placement::Placement> routed_by;  // what the dispatcher took last
  std::set<WorkerId> links_taken;
};

class Cluster {
 public:
  Cluster(const Plan& plan, const RunOptions& options);
  ~Cluster();
  void RunAll();
  Kernel& kernel() { return kernel_; }

 private:
  friend class SimLinks;
  friend class SimChannel;

  // ---- Phases and faults (cluster.cc) ----
  void Begin(int node);
  void Apply(const Fault& fault);
  void FailCanary(WorkerNode& worker, uint64_t salt);
  void Leave(WorkerNode& worker);
  void ApplyToLinks(const Fault& fault);
  void AskRouter(const Fault& fault);
  void Crash(int node, Micros restart_after);
  void Heal();
  void Operate(RouterNode& router);
  bool IsSettled(std::string* why) const;
  bool IsIdle() const;
  void CheckRest();
  void CheckCalm();
  int RouterOf(int node) const { return router_of_[static_cast<size_t>(node)]; }
  const std::vector<ExpertUnit>& units() const { return units_; }
  WorkerNode& Worker(int node) { return workers_[static_cast<size_t>(node - plan_.worker(0))]; }
  FrontendNode& Front(int node) {
    return frontends_[static_cast<size_t>(node - plan_.frontend(0))];
  }
  const WorkerNode* WorkerOfId(WorkerId id, const router_service::PlacementView& view) const;
  int NodeOfWorker(const std::string& name) const;

  // ---- Router (router_node.cc) ----
  void StartRouter(RouterNode& router);
  void TickRouter(RouterNode& router);
  void Accept(RouterNode& router, const StreamPtr& stream, int member_node,
              router_service::Event event);
  void StepRouter(RouterNode& router, const router_service::Event& event);
  void Do(RouterNode& router, const router_service::Event& cause,
          const router_service::Action& action);
  void SendPlacementTo(RouterNode& router, const router_service::SendPlacement& send);
  void SendToWorker(RouterNode& router, uint64_t session, expert_worker::RouterCommand command);
  void WriteState(RouterNode& router, const router_service::PersistState& state);
  void End(RouterNode& router, const router_service::Event& cause,
           const router_service::EndSession& end);
  void CheckAnswer(RouterNode& router, const router_service::AdminReply& reply);
  void CheckPublication(RouterNode& router, const router_service::PlacementView& view);
  void CheckReplicas(RouterNode& router, const router_service::PlacementView& view);
  void CheckNotDraining(RouterNode& router, uint64_t session);
  bool IsDrainAsked(const RouterNode& router, const router_service::MemberView& member) const;
  int PossibleReplicas(const RouterNode& router) const;
  void CheckRetire(RouterNode& router, const router_service::SendRetire& retire);
  void CheckUnrouted(RouterNode& router, uint64_t session, const std::vector<ExpertUnit>& units,
                     std::string_view invariant);
  router_service::CoreOptions RouterOptions(const RouterNode& router);

  // ---- Worker (worker_node.cc) ----
  void StartWorker(WorkerNode& worker);
  void StepWorker(WorkerNode& worker,
                  const std::function<void(expert_worker::WorkerActions*)>& what);
  void Do(WorkerNode& worker, const expert_worker::WorkerAction& action);
  void SendLoads(WorkerNode& worker, uint64_t seq);
  void SendPrepareResult(WorkerNode& worker,
                         const expert_worker::action::SendPrepareResult& result);
  void ConnectWorker(WorkerNode& worker);
  void OnCommand(WorkerNode& worker, const StreamPtr& stream,
                 const expert_worker::RouterCommand& command);
  void ArmWorker(WorkerNode& worker);
  void ToRouter(WorkerNode& worker, std::function<router_service::Event(uint64_t session)> make);
  void NextTask(WorkerNode& worker);
  void EndTask(WorkerNode& worker);
  void OnCall(const std::shared_ptr<CallMessage>& call);
  void Compute(WorkerNode& worker);
  void Answer(WorkerNode& worker, const std::shared_ptr<CallMessage>& call);
  void CheckMemory(WorkerNode& worker);
  router_service::HeldExpert HeldOf(ExpertUnit unit, const MemoryEntry& entry) const;

  // ---- Frontend (frontend_node.cc) ----
  void StartFrontend(FrontendNode& front);
  void ConnectFrontend(FrontendNode& front);
  void OnUpdate(FrontendNode& front, const StreamPtr& stream,
                const std::shared_ptr<const router_service::PlacementView>& view, Epoch base,
                const router_service::PlacementDelta& delta, std::optional<uint32_t> id);
  void SendFromFrontend(FrontendNode& front,
                        std::function<router_service::Event(uint64_t session)> make);
  void TryLinks(FrontendNode& front);
  void ConnectData(FrontendNode& front, const frontend::LinkKeeper::Attempt& attempt);
  void ThinkThenRun(FrontendNode& front);
  void BeginLayer(FrontendNode& front);
  void Pump(FrontendNode& front);
  void Ring(FrontendNode& front);
  void EndLayer(FrontendNode& front, const absl::Status& status);
  void CheckRows(FrontendNode& front);
  void CheckUnserved(FrontendNode& front);
  void CheckBudget(FrontendNode& front);
  void SendCall(const std::shared_ptr<CallMessage>& call);
  void SendReply(std::shared_ptr<ReplyMessage> reply);
  // Over a link for calls: lost, late, twice.
  void Carry(int from, int to, Act act);
  void LoseDataLinks(int a, int b, Micros delay);

  const Plan& plan_;
  const RunOptions& options_;
  Kernel kernel_;
  Random random_;
  ThreadPool pool_{1};
  std::vector<ExpertUnit> units_;
  std::vector<int> router_of_;
  std::vector<RouterNode> routers_;
  std::vector<WorkerNode> workers_;
  std::vector<FrontendNode> frontends_;
  std::vector<std::weak_ptr<DataLink>> data_links_;
  uint64_t num_starts_ = 0;
  bool is_healed_ = false;
  int ruler_ = 0;          // the router of the second phase
  bool is_loaded_ = true;  // frontends run layers
  bool has_replicas_asked_ = false;
  Micros healed_at_ = 0;

  // Of calls, by time.
  Micros loss_until_ = 0;
  double loss_ = 0;
  Micros delay_until_ = 0;
  double delay_s_ = 0;
  Micros duplicate_until_ = 0;
  double duplicate_ = 0;

  // Which placement an epoch of a router is, by (router id, epoch).
  std::map<std::pair<std::string, uint64_t>, uint64_t> placements_;
  std::string last_unsettled_;
};

}  // namespace conclave::simulation
