// What a board holds: as it was told, and as it was shown at the last tick.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "conclave/base/json_writer.h"
#include "conclave/base/mutex.h"
#include "conclave/live/board.h"
#include "incidents.h"

namespace conclave::live {

struct Event {
  uint64_t id = 0;
  std::string json;
};

// Rows in steps of some seconds, kept as increments.
struct History {
  std::vector<double> times;
  std::vector<uint64_t> first;  // at times[0]
  std::vector<uint64_t> last;   // at times.back()
  // [times.size() - 1]: what was added, by cell.
  std::deque<std::vector<std::pair<uint32_t, uint64_t>>> steps;
  size_t num_entries = 0;  // of all steps
};

struct Board::State {
  explicit State(BoardOptions board_options) : options(std::move(board_options)) {}

  // A worker that is no member any more.
  struct Gone {
    WorkerPicture worker;
    double since = 0;
  };

  using ReportKey = std::pair<std::string, uint64_t>;  // a frontend's name and incarnation

  void Compare(const ClusterPicture& before, const ClusterPicture& after, double time)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void CompareWorker(const WorkerPicture* before, const WorkerPicture& after, double time)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void ComparePlacement(const ClusterPicture& before, const ClusterPicture& after)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void OnGone(const WorkerPicture& worker, double time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void CompareFigures(const std::string& name, const FrontendFigures& before,
                      const FrontendFigures& after) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void PutEvent(std::string_view kind, int32_t worker, std::string_view name, std::string_view text,
                const Numbers& numbers) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  Coverage CoverageNow() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string NameOfWorker(int32_t id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void DropReport(const ReportKey& newest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  bool IsHere(const ReportKey& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  FrontendFigures Sums() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Keep(double time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // ---- JSON (board_json.cc) ----
  // Takes `now` and everything else as shown, and says what is new.
  std::string Delta(FrontendFigures now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void WriteSections(JsonWriter& json) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void WriteWorkers(JsonWriter& json) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void WriteEvents(JsonWriter& json) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void WriteIncidents(JsonWriter& json) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string ModelJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string ClusterJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string FrontendsJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string PlacementJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string ServingJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string PathwaysJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  std::string BoundsJson() const;
  std::string AdminJson() const;
  std::map<int32_t, std::string> WorkersJson() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  static std::string ToJson(const Incident& incident);

  const BoardOptions options;
  mutable Mutex mu;

  // As told.
  bool has_picture ABSL_GUARDED_BY(mu) = false;
  ClusterPicture told ABSL_GUARDED_BY(mu);
  double told_at ABSL_GUARDED_BY(mu) = 0;
  double placed_at ABSL_GUARDED_BY(mu) = 0;  // the epoch of now
  double started ABSL_GUARDED_BY(mu) = 0;
  std::deque<Gone> gone ABSL_GUARDED_BY(mu);
  // Those of frontends that are gone too.
  std::map<ReportKey, FrontendFigures> reports ABSL_GUARDED_BY(mu);
  FrontendFigures dropped ABSL_GUARDED_BY(mu);  // sums of reports that were too many
  std::deque<Event> events ABSL_GUARDED_BY(mu);
  uint64_t next_event ABSL_GUARDED_BY(mu) = 1;
  Incidents incidents ABSL_GUARDED_BY(mu);

  // As of the last tick.
  uint64_t seq ABSL_GUARDED_BY(mu) = 0;
  double ticked_at ABSL_GUARDED_BY(mu) = 0;
  FrontendFigures sums ABSL_GUARDED_BY(mu);
  std::map<std::string, std::string> sections ABSL_GUARDED_BY(mu);  // JSON by key
  std::map<int32_t, std::string> workers ABSL_GUARDED_BY(mu);
  std::map<uint64_t, std::string> shown_incidents ABSL_GUARDED_BY(mu);
  uint64_t shown_events ABSL_GUARDED_BY(mu) = 0;  // id of the last one
  live::History history ABSL_GUARDED_BY(mu);
};

}  // namespace conclave::live
