// The live picture of a cluster (docs/live.md) as `conclave top` keeps it: a snapshot and what
// deltas made of it, with what is needed to show rates. Everything that comes is checked.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace conclave::cli {

struct LiveLayer {
  int32_t layer = 0;
  int32_t experts = 0;
};

struct LiveWorker {
  int32_t id = 0;
  std::string name;
  std::string state;
  int64_t experts = 0;
  int64_t loading = 0;
  double memory = 0;
  double memory_used = 0;
  double busy = 0;  // 0 to 1
  int64_t queue = 0;
  double rows_per_second = 0;
  double heartbeat_age_ms = 0;
  bool is_distrusted = false;
  std::vector<double> call_seconds;  // counts by LiveState::call_bounds
};

struct LiveCluster {
  double epoch = 0;  // number within the term, or both in one: term << 32 | number
  double term = 0;   // 0: only in the epoch
  std::string state;
  std::string blocked;
  int64_t experts_served = 0;
  int64_t experts_total = 0;
  int64_t replicas_wanted = 0;
  int64_t replicas_lowest = 0;
  double imbalance_planned = 0;
  double imbalance_seen = 0;
  double plan = 0;
};

struct LiveServing {
  double prompt_text = 0;
  double prompt_image = 0;
  double cached = 0;
  double generated = 0;
  double images = 0;
  std::vector<double> ttft;
  std::vector<double> itl;
};

struct LiveEvent {
  double id = 0;
  double time = 0;
  std::string kind;
  std::string name;
  std::string text;
};

// Rows of one expert, by what chose them: rows[unit * 8 + rank * 4 + phase * 2 + modality].
inline constexpr size_t kLiveRowKinds = 8;

class LiveState {
 public:
  // `event` is "snapshot" or "delta"; others are skipped. kFailedPrecondition ("live_gap") for a
  // delta that does not follow the last one: connect again. kUnavailable ("live_update") for what
  // docs/live.md does not allow, with the field; then the state is as before.
  absl::Status Apply(std::string_view event, const std::string& json);

  bool has_snapshot() const { return has_snapshot_; }

  double seq = 0;
  double time = 0;  // the server's, seconds since 1970
  std::string role;
  std::string version;
  std::string model;  // empty: not known yet
  std::vector<LiveLayer> layers;
  LiveCluster cluster;
  std::map<int32_t, LiveWorker> workers;
  int64_t frontends = 0;
  int64_t running = 0;
  int64_t waiting = 0;
  std::vector<double> rows;  // since the start, experts * 8
  LiveServing serving;
  std::vector<double> call_bounds, ttft_bounds, itl_bounds;  // seconds, ascending
  std::deque<LiveEvent> events;                              // oldest first

  // What was about 10 s ago, or at the snapshot where that is younger: rates are differences to it.
  // Null before there are two moments.
  struct Moment {
    double time = 0;
    std::vector<double> rows;
    LiveServing serving;
    std::map<int32_t, std::vector<double>> call_seconds;
  };
  const Moment* earlier() const { return moments_.size() > 1 ? moments_.front().get() : nullptr; }

 private:
  void Remember();

  bool has_snapshot_ = false;
  std::deque<std::shared_ptr<const Moment>> moments_;  // oldest first
};

}  // namespace conclave::cli
