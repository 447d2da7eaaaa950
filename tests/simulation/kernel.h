// Time, order and nodes of a simulation: the event queue, processes that crash and pause, links
// that are cut, and the streams between members and routers. Knows nothing of what runs on it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "plan.h"
#include "random.h"
#include "world.h"

namespace conclave::simulation {

using Act = std::function<void()>;

// A process. `life` grows with every start; what was meant for an older one is void.
struct Process {
  bool is_up = false;
  uint64_t life = 0;
  Micros paused_until = 0;
  Micros paused_total = 0;  // of this life
  std::deque<Act> waiting;  // what came during the pause
  double rate = 1;          // of its monotonic clock
  std::chrono::nanoseconds offset{0};
  std::chrono::nanoseconds wall_offset{0};  // nothing may depend on it
};

// One gRPC stream: ordered, complete while both ends live, silent while the link is cut.
struct Stream {
  uint64_t id = 0;
  int node[2] = {-1, -1};  // [0] the member, [1] the router
  uint64_t life[2] = {0, 0};
  bool is_open[2] = {false, false};
  Micros last_at[2] = {0, 0};  // delivery of the latest message to the other end
  std::deque<Act> held[2];     // by sender, while the link is cut
  std::function<void(absl::Status)> on_lost[2];
};
using StreamPtr = std::shared_ptr<Stream>;

class Kernel {
 public:
  Kernel(const Plan& plan, const RunOptions& options);

  // ---- Time ----
  Micros now() const { return now_; }
  // Of a node's own monotonic clock.
  MonotonicTime LocalNow(int node) const;
  Micros WorldTimeOf(int node, MonotonicTime local) const;

  // World events happen whatever becomes of nodes; a node's wait while it is paused and are void
  // when it has crashed meanwhile.
  void At(Micros when, Act act);
  void AtNode(Micros when, int node, Act act);
  // A timer of a node by its own clock, with the lateness of the plan.
  void Timer(int node, MonotonicTime local, Act act);
  // Runs events until `when`, or a violation that ends the run.
  void RunUntil(Micros when);

  // ---- Processes and links ----
  Process& process(int node) { return processes_[static_cast<size_t>(node)]; }
  const Process& process(int node) const { return processes_[static_cast<size_t>(node)]; }
  bool IsPaused(int node) const { return process(node).paused_until > now_; }
  // Up, and not paused.
  bool IsRunning(int node) const { return process(node).is_up && !IsPaused(node); }
  // Without pauses, of this life.
  Micros UnpausedTime(int node) const;
  void StartProcess(int node);
  void CrashProcess(int node);
  void Pause(int node, Micros until);
  bool IsCut(int from, int to) const { return cut_until_[Index(from, to)] > now_; }
  bool IsCutEitherWay(int a, int b) const { return IsCut(a, b) || IsCut(b, a); }
  void Cut(int from, int to, Micros until);
  void HealAll();

  // ---- Streams ----
  StreamPtr OpenStream(int member, int router, std::function<void(absl::Status)> on_lost);
  // `deliver` runs at the other end; `from` is 0 for the member, 1 for the router.
  void Send(const StreamPtr& stream, int from, Act deliver);
  void Close(const StreamPtr& stream, int end, const absl::Status& why);
  // Both ends see it: a reset.
  void ResetStreams(int a, int b);

  // ---- Trace and verdicts ----
  void Note(std::string_view what, int node = -1, uint64_t x = 0, uint64_t y = 0);
  // For readers of a trace only: changes neither the hash nor what happens.
  bool is_traced() const { return options_.prints_trace; }
  void Say(std::string_view what, int node);
  void Violate(std::string_view invariant, std::string what);
  bool is_over() const { return is_over_; }
  Outcome& outcome() { return outcome_; }
  Random& random() { return random_; }
  const Plan& plan() const { return plan_; }

  // Both ways, without what is lost on the way.
  Micros NetworkDelay();

 private:
  struct Item {
    Micros at = 0;
    uint64_t tie = 0;
    uint64_t number = 0;
    int node = -1;
    uint64_t life = 0;
    Act act;
  };
  struct Later {
    bool operator()(const Item& x, const Item& y) const {
      return x.at != y.at ? x.at > y.at : x.tie != y.tie ? x.tie > y.tie : x.number > y.number;
    }
  };
  size_t Index(int from, int to) const {
    return static_cast<size_t>(from * plan_.num_nodes() + to);
  }
  void Push(Item item);
  void Arrive(const StreamPtr& stream, int from, const Act& deliver);
  void LoseEnd(const StreamPtr& stream, int end, const absl::Status& why);
  void Resume(int node);
  // Ends of streams notice after a while that nothing answers.
  void WatchKeepalive(int a, int b);
  void FlushHeld(int from, int to);
  void ForgetClosed();

  const Plan& plan_;
  const RunOptions& options_;
  Random random_;
  Random ties_;
  Random network_;
  Micros now_ = 0;
  uint64_t num_items_ = 0;
  uint64_t num_at_once_ = 0;  // events since time went on
  std::priority_queue<Item, std::vector<Item>, Later> queue_;
  std::vector<Process> processes_;
  std::vector<Micros> cut_until_;
  uint64_t num_streams_ = 0;
  std::map<uint64_t, StreamPtr> streams_;
  Outcome outcome_;
  bool is_over_ = false;
};

}  // namespace conclave::simulation
