#include "routing_recorder.h"

#include <algorithm>
#include <utility>

namespace conclave::router_service {
namespace {

constexpr size_t kPieceBytes = size_t{256} << 10;
// Kept free for the end, which must not be what does not fit.
constexpr size_t kEndBytes = 16;

// Empty: nobody serves it, or it is not placed yet.
std::vector<WorkerId> WorkersOf(const RoutingRecorder::Experts& placement, ExpertUnit unit) {
  const auto it =
      std::lower_bound(placement.begin(), placement.end(), unit,
                       [](const UnitReplicas& entry, ExpertUnit key) { return entry.unit < key; });
  return it != placement.end() && it->unit == unit ? it->workers : std::vector<WorkerId>();
}

}  // namespace

std::optional<RecordingStatus> RoutingRecorder::status() const { return status_; }

void RoutingRecorder::Start(MonotonicTime now, const TraceHead& head,
                            std::vector<TraceWorker> workers,
                            std::shared_ptr<const Experts> placement) {
  if (is_recording_) {
    return;
  }
  head_ = head;
  encoder_.emplace(head.layers);
  rows_.clear();
  workers_.clear();
  known_.clear();
  placement_.reset();
  pieces_.clear();
  open_.clear();
  status_ = RecordingStatus{};
  status_->is_recording = true;
  is_recording_ = true;
  window_at_ = now;
  // Both stand at the start even when there are none.
  std::string start = TraceStart(head_);
  if (workers.empty()) {
    start += encoder_->Workers({});
  }
  (void)Append(start + Changes(std::move(workers), std::move(placement)));
}

void RoutingRecorder::AddRows(std::span<const ExpertRows> rows) {
  if (!is_recording_) {
    return;
  }
  for (const ExpertRows& expert : rows) {
    ExpertRows& sum = rows_.try_emplace(expert.unit, ExpertRows{expert.unit, {}}).first->second;
    for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
      sum.rows[kind] += expert.rows[kind];
      status_->rows += expert.rows[kind];
    }
  }
}

void RoutingRecorder::EndWindow(MonotonicTime now, std::vector<TraceWorker> workers,
                                std::shared_ptr<const Experts> placement) {
  if (!is_recording_) {
    return;
  }
  std::vector<ExpertRows> rows;
  for (const auto& [unit, sum] : rows_) {
    rows.push_back(sum);
  }
  rows_.clear();
  const auto length = std::chrono::duration_cast<std::chrono::microseconds>(now - window_at_);
  window_at_ = now;
  if (Append(encoder_->Window(length, rows) + Changes(std::move(workers), std::move(placement)))) {
    ++status_->windows;
  }
}

void RoutingRecorder::Stop(MonotonicTime now, std::vector<TraceWorker> workers,
                           std::shared_ptr<const Experts> placement) {
  if (is_recording_ && now > window_at_) {
    EndWindow(now, std::move(workers), std::move(placement));
  }
  if (is_recording_) {
    EndWith(TraceEnd::kStopped);
  }
}

std::string RoutingRecorder::Changes(std::vector<TraceWorker> workers,
                                     std::shared_ptr<const Experts> placement) {
  std::string frames;
  if (workers != workers_) {
    workers_ = std::move(workers);
    for (const TraceWorker& worker : workers_) {
      known_.insert(worker.id);
    }
    frames += encoder_->Workers(workers_);
  }
  if (placement == placement_) {
    return frames;
  }
  TracePlacement changed;
  for (const MoeLayer& layer : head_.layers) {
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      const ExpertUnit unit{layer.layer, ExpertId(e)};
      const std::vector<WorkerId> holders = WorkersOf(*placement, unit);
      if (placement_ == nullptr || holders != WorkersOf(*placement_, unit)) {
        changed.changed.emplace_back(unit, holders);
      }
    }
  }
  // Of a worker that had died before the recording began nobody has heard in it.
  for (auto& [unit, holders] : changed.changed) {
    std::erase_if(holders, [this](WorkerId id) { return !known_.contains(id); });
  }
  // A new epoch may place every expert as before.
  if (placement_ == nullptr || !changed.changed.empty()) {
    frames += encoder_->Placement(changed);
  }
  placement_ = std::move(placement);
  return frames;
}

bool RoutingRecorder::Append(const std::string& frames) {
  if (status_->bytes + frames.size() + kEndBytes > bytes_max_) {
    status_->is_full = true;
    EndWith(TraceEnd::kFull);
    return false;
  }
  open_ += frames;
  status_->bytes += frames.size();
  if (open_.size() >= kPieceBytes) {
    pieces_.push_back(std::make_shared<const std::string>(std::exchange(open_, {})));
  }
  return true;
}

void RoutingRecorder::EndWith(TraceEnd end) {
  is_recording_ = false;
  status_->is_recording = false;
  const std::string frame = encoder_->End(end);
  open_ += frame;
  status_->bytes += frame.size();
  rows_.clear();
}

Recording RoutingRecorder::Take() const {
  Recording recording;
  if (!status_.has_value()) {
    return recording;
  }
  recording.status = *status_;
  recording.pieces = pieces_;
  std::string tail = open_;
  if (is_recording_) {
    tail += encoder_->End(TraceEnd::kGoesOn);
  }
  recording.pieces.push_back(std::make_shared<const std::string>(std::move(tail)));
  return recording;
}

}  // namespace conclave::router_service
