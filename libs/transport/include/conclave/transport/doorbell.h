// Wakes the thread that waits for several channels at once.
#pragma once

#include <poll.h>

#include <atomic>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"

namespace conclave::transport {

// What nobody brings on but the thread that waits for it: a network without threads of its own.
class Waitable {
 public:
  virtual ~Waitable() = default;
  // Takes what has come, and rings for it; whether anything had. Does not block.
  virtual bool Progress() = 0;
  // Before a sleep: fd() becomes readable when something comes. False: something has come already.
  virtual bool Arm() = 0;
  virtual int fd() const = 0;
};

// An event counter behind a file descriptor, so that it can be waited for beside other descriptors.
class Doorbell {
 public:
  // Aborts when the process has no descriptor left: it is made at start.
  Doorbell();
  ~Doorbell();
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  // Any thread; does not block. A ring that nobody waits for is kept, once, and costs no system
  // call.
  void Ring();

  // The owner's thread. Returns when it was rung since the last return, at once if that was before
  // the call, or at `until` by the machine's steady clock; whether it was rung. With waitables it
  // brings them on, spins for kSpin, giving way to other threads, and then sleeps.
  static constexpr std::chrono::microseconds kSpin{50};
  bool WaitUntil(MonotonicTime until) ABSL_LOCKS_EXCLUDED(mu_);

  // Takes a kept ring without waiting; whether there was one. The owner's thread.
  bool TryTake();

  // A thing to be brought on while the owner waits, from now on until Detach, which any thread may
  // call: it is not touched any more when that returns. Its functions are called by the owner's
  // thread alone.
  void Attach(Waitable* waitable) ABSL_LOCKS_EXCLUDED(mu_);
  void Detach(Waitable* waitable) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  bool Sleep(MonotonicTime until) ABSL_LOCKS_EXCLUDED(mu_);
  bool ProgressAll() ABSL_LOCKS_EXCLUDED(mu_);

  int fd_ = -1;
  // 0: quiet; 1: rung; 2: the owner sleeps and wants the descriptor written.
  std::atomic<int> state_{0};

  Mutex mu_;  // held while waitables are brought on, never in a sleep
  std::vector<Waitable*> waitables_ ABSL_GUARDED_BY(mu_);
  std::vector<pollfd> entries_;  // of the owner's thread
};

}  // namespace conclave::transport
