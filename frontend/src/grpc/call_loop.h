// The thread of the gRPC API: sends what the engine has made, ends calls whose time is over, and
// looks at the server's health. Writing is not the engine's work, and gRPC's own threads do not
// know when there is something to write.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"

namespace conclave::frontend {

// What the loop sees of a call.
class LoopCall {
 public:
  virtual ~LoopCall() = default;
  // Something may be there to be sent.
  virtual void Pump() = 0;
  // Ends what takes too long; returns when to look again, if anything has a time.
  virtual std::optional<MonotonicTime> Check(MonotonicTime now) = 0;
};

// Thread-safe.
class CallLoop {
 public:
  // `clock` outlives the loop. `on_tick` is called on the thread every kTick and after Wake().
  CallLoop(const Clock& clock, size_t calls_max, std::function<void()> on_tick);
  ~CallLoop();  // no call is left

  void Start();
  // Joins the thread. Nothing is called from here on.
  void Stop() ABSL_LOCKS_EXCLUDED(mu_);

  // False when there are `calls_max` already.
  bool Add(const std::shared_ptr<LoopCall>& call) ABSL_LOCKS_EXCLUDED(mu_);
  void Remove(const LoopCall* call) ABSL_LOCKS_EXCLUDED(mu_);

  // Pump() will be called. Does not block: for the engine's thread. What waits here is bounded,
  // since a ChatStream notifies once until its events are taken, and once more when it overflows.
  void Poke(std::shared_ptr<LoopCall> call) ABSL_LOCKS_EXCLUDED(mu_);
  // Check() of all calls and `on_tick`, now.
  void Wake() ABSL_LOCKS_EXCLUDED(mu_);

  // Health and stalls are noticed this late at most; deadlines of calls are met more exactly.
  static constexpr std::chrono::milliseconds kTick{100};

 private:
  void Run();
  // When the next tick is due.
  MonotonicTime Tick();

  const Clock& clock_;
  const size_t calls_max_;
  const std::function<void()> on_tick_;

  Mutex mu_;
  CondVar wake_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool is_woken_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::shared_ptr<LoopCall>> ready_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<const LoopCall*, std::shared_ptr<LoopCall>> calls_ ABSL_GUARDED_BY(mu_);

  std::thread thread_;  // last
};

}  // namespace conclave::frontend
