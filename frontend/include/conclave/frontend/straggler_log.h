// Which calls to workers were slowest of late, and who kept the others waiting: what the answers
// say of their own time, kept for whoever asks why a layer was slow. Costs nothing on the wire.
//
// A layer is as slow as the last of its calls. The time by which that one came behind the last but
// one is charged to its worker, as far as the frontend did nothing but wait meanwhile; where the
// call had to be sent again or a second time, to the worker that it was sent to first, which is to
// blame. Calls that are computed within this process are not looked at: they take turns.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/frontend/dispatch_observer.h"

namespace conclave::frontend {

class StragglerLog final : public DispatchObserver {
 public:
  static constexpr int kCallsMax = 64;
  static constexpr std::chrono::minutes kWindow{10};

  // `clock` outlives the log and is the dispatcher's.
  explicit StragglerLog(const Clock& clock = Clock::Real());
  ~StragglerLog() override;

  // The dispatcher's thread.
  void OnAttempt(const AttemptRecord& record) override;
  void OnLayer(const LayerRecord& record) override;

  // A worker that others had to wait for, since the start.
  struct Waits {
    WorkerId worker;
    uint64_t calls = 0;  // how often it was the last of its layer
    std::chrono::nanoseconds waited{0};
  };
  // Ascending by worker. Any thread, without a lock.
  std::vector<Waits> Workers() const;

  // The slowest kCallsMax calls that were answered within kWindow, to the minute, slowest first,
  // and Workers(). Any thread.
  //   {"window_seconds":600,
  //    "calls":[{"age_seconds":12.3,"layer":3,"phase":"decode","worker":1,"first_worker":1,
  //      "rows":4,"image_rows":0,"attempts":1,"total_us":900,"queue_us":100,"service_us":600,
  //      "network_us":200,"is_last":true,"delayed_us":310}],
  //    "workers":[{"worker":1,"straggler_calls":17,"straggler_seconds":0.41}]}
  // worker -1 is the frontend itself. total_us runs from the first attempt to the answer;
  // queue_us, service_us and network_us are those of the attempt that was answered. delayed_us:
  // how much longer the layer took for it, 0 but for the last call of a layer of several.
  std::string Json() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Call;
  struct Minute;
  struct Layer;
  struct Cell {
    std::atomic<int32_t> worker{0};
    std::atomic<uint64_t> calls{0};
    std::atomic<int64_t> waited_ns{0};
  };

  Minute& MinuteOf(MonotonicTime time) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Keep(const Call& call, MonotonicTime now) ABSL_LOCKS_EXCLUDED(mu_);

  const Clock& clock_;
  const MonotonicTime start_;
  // By the dispatcher's index of the link.
  const std::unique_ptr<Cell[]> cells_;
  // The dispatcher's thread: what is known of the layers under way, by micro-batch.
  std::vector<Layer> layers_;
  // The dispatcher's thread: calls as short as this, or shorter, do not get into the minute.
  std::chrono::microseconds floor_{0};
  int64_t floor_minute_ = -1;

  // Held for one insertion among kCallsMax, and by a reader for a copy. A call comes here only when
  // it is among the slowest of its minute so far, which few are.
  mutable Mutex mu_;
  std::vector<Minute> minutes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::frontend
