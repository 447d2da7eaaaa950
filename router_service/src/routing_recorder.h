// What the core writes down while somebody records: see routing_trace.h for the bytes. It keeps
// them in memory up to a limit; then recording stops, and what came until then stays.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/router_service/routing_trace.h"

namespace conclave::router_service {

// One thread, the core's; what Take gives may be read by any.
class RoutingRecorder {
 public:
  using Experts = std::vector<UnitReplicas>;

  explicit RoutingRecorder(size_t bytes_max) : bytes_max_(bytes_max) {}

  bool is_recording() const { return is_recording_; }
  // Nothing before the first Start.
  std::optional<RecordingStatus> status() const;

  // In place of what was recorded before. Nothing while it records already.
  void Start(MonotonicTime now, const TraceHead& head, std::vector<TraceWorker> workers,
             std::shared_ptr<const Experts> placement);
  void AddRows(std::span<const ExpertRows> rows);
  bool IsWindowOver(MonotonicTime now) const {
    return is_recording_ && now - window_at_ >= head_.window;
  }
  // Ends the window, with what has changed in it. `placement` is the same object as long as it is
  // the same placement.
  void EndWindow(MonotonicTime now, std::vector<TraceWorker> workers,
                 std::shared_ptr<const Experts> placement);
  // With the window that is under way. Nothing while it does not record.
  void Stop(MonotonicTime now, std::vector<TraceWorker> workers,
            std::shared_ptr<const Experts> placement);

  // The file up to now, in pieces.
  Recording Take() const;

 private:
  // False: no room, recording has stopped.
  bool Append(const std::string& frames);
  // What differs from what was written last, as frames.
  std::string Changes(std::vector<TraceWorker> workers, std::shared_ptr<const Experts> placement);
  void EndWith(TraceEnd end);

  const size_t bytes_max_;
  bool is_recording_ = false;
  std::optional<RecordingStatus> status_;
  TraceHead head_;
  std::optional<TraceEncoder> encoder_;
  MonotonicTime window_at_;
  std::map<ExpertUnit, ExpertRows> rows_;
  std::vector<TraceWorker> workers_;          // as written last
  std::set<WorkerId> known_;                  // all that were ever written
  std::shared_ptr<const Experts> placement_;  // likewise
  std::vector<std::shared_ptr<const std::string>> pieces_;
  std::string open_;  // the last piece, which still grows
};

}  // namespace conclave::router_service
