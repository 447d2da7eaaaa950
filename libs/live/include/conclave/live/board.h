// The live picture of a cluster (docs/live.md): who is there, who holds what, what the gates chose,
// and what has just happened. Whoever runs the cluster tells it what is so; it keeps sums over
// frontends, a list of events, incidents and fifteen minutes of history, and writes the JSON that
// the page and `conclave top` read.
//
// Any thread. Events come from comparing one cluster state with the one before, so the teller says
// only how things stand.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "conclave/live/figures.h"

namespace conclave::live {

enum class WorkerState : uint8_t { kJoining, kLive, kSuspect, kDraining, kDrained, kDead, kLeft };
std::string_view NameOf(WorkerState state);

struct WorkerPicture {
  int32_t id = 0;
  std::string name;
  std::string host;
  WorkerState state = WorkerState::kLive;
  int32_t experts = 0;  // replicas that rows are sent to
  int32_t loading = 0;
  int64_t memory_bytes = 0;  // 0: not known
  int64_t memory_used_bytes = 0;
  double busy = 0;  // part of the time, 0..1
  uint32_t queued_rows = 0;
  double rows_per_second = 0;
  double heartbeat_age = 0;  // seconds
  bool is_distrusted = false;
};

struct FrontendPicture {
  uint32_t id = 0;
  std::string name;
  uint64_t incarnation = 0;
  uint64_t epoch = 0;  // number within the term that it routes by
  bool has_api = false;
};

struct ClusterPicture {
  uint64_t epoch = 0;  // number within the term
  uint32_t term = 0;
  std::string state;
  std::string blocked;
  int32_t replicas_wanted = 0;
  int32_t replicas_lowest = 0;
  double placement_age = 0;  // seconds
  double imbalance_planned = 0;
  double imbalance_seen = 0;
  uint64_t plan = 0;
  std::vector<MoeLayer> layers;
  std::vector<WorkerPicture> workers;  // those that are members, by id
  std::vector<FrontendPicture> frontends;
  std::vector<std::vector<int32_t>> placement;  // [expert]: ids of workers
};

struct Bounds {
  std::vector<double> call_seconds, ttft, itl, recovery;
};

struct BoardOptions {
  std::string role;  // "router", "serve"
  std::string version;
  Bounds bounds;
  bool is_admin_enabled = false;
  std::string admin_reason;  // why not
  // Seconds since 1970; the machine's clock where it is empty.
  std::function<double()> now;
};

class Board {
 public:
  explicit Board(BoardOptions options);
  ~Board();
  Board(const Board&) = delete;
  Board& operator=(const Board&) = delete;

  // How the cluster stands. The sooner it is told of a change, the better events are dated.
  void Update(const ClusterPicture& picture);

  // The cluster's state alone, such as "standby"; nobody has come or gone by it.
  void SetState(const std::string& state, const std::string& blocked);

  // All that this start of a frontend has counted. Figures of a frontend that is gone stay in the
  // sums.
  void Report(const std::string& name, uint64_t incarnation, FrontendFigures figures);

  // Whether the last Update named this start of a frontend.
  bool IsFrontend(const std::string& name, uint64_t incarnation) const;

  using Numbers = std::vector<std::pair<std::string_view, double>>;
  // `kind`: of docs/live.md. `worker` below 0: none.
  void AddEvent(std::string_view kind, int32_t worker, std::string_view name, std::string_view text,
                const Numbers& numbers = {});

  // Takes everything that came since the last call into the picture and returns what changed, as
  // the data of a `delta`. Once per second, by one thread.
  std::string Tick();

  // As of the last Tick.
  std::string Snapshot() const;
  std::string PlacementJson() const;
  std::string History() const;
  uint64_t seq() const;

  // The worker's name, or empty.
  std::string WorkerName(int32_t id) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::live
