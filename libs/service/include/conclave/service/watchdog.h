// Signs of life for a service manager that ends a process which gives none (WatchdogSec= of
// systemd): a datagram "WATCHDOG=1" at every half of the interval, as long as every thread that the
// work goes through goes on. The thread that sends them only looks and tells: a process whose
// engine hangs is not saved by a thread that still runs.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"

namespace conclave::service {

// Of one thread at one moment.
struct Pulse {
  uint64_t beats = 0;    // grows with whatever it does
  bool is_idle = false;  // it has nothing to do, which may last for ever
};

// A thread and how to take its pulse: on the watchdog's thread; may take locks, since whoever holds
// one for ever hangs.
struct Watched {
  std::string name;
  std::function<Pulse()> pulse;
};

// The pulse of a loop that runs what is posted to it: knocks, and again when that was answered.
// `post` hands a function over and does not wait; false: there is no such loop now. Copies share
// their knocks.
class Knock {
 public:
  using Post = std::function<bool(std::function<void()> answer)>;
  explicit Knock(Post post);
  Pulse operator()() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

// Who of them hangs. One thread.
class LifeCheck {
 public:
  // A thread that has something to do at two looks, `limit` or more apart, and has done nothing in
  // between, hangs.
  LifeCheck(std::vector<Watched> watched, std::chrono::nanoseconds limit);

  // One look: the first thread that hangs, or null. Called at intervals of `limit`.
  const Watched* Look(MonotonicTime now);

 private:
  struct Seen {
    Pulse pulse;
    MonotonicTime since;  // when it did something last, or had nothing to do
  };
  const std::vector<Watched> watched_;
  const std::chrono::nanoseconds limit_;
  std::vector<std::optional<Seen>> seen_;
};

// What $WATCHDOG_USEC and $WATCHDOG_PID ask of the process `own_pid`: the interval; nullopt where
// the first is empty or the second names another process. A value that is no whole number from 1
// is logged and ignored: the unit then has no watchdog, which is no reason not to serve.
std::optional<std::chrono::microseconds> WatchdogInterval(const std::string& usec,
                                                          const std::string& pid, int own_pid);

class Watchdog {
 public:
  // Starts the thread, which looks and tells at once and then at every half of `interval`. Start it
  // behind READY=1. What `watched` asks outlives the watchdog.
  Watchdog(std::string notify_socket, std::chrono::microseconds interval,
           std::vector<Watched> watched);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

 private:
  void Loop();
  void Look();

  const std::string notify_socket_;
  const std::chrono::nanoseconds period_;
  LifeCheck check_;
  std::string hanging_;  // as logged last; empty: nobody
  Mutex mu_;
  CondVar changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace conclave::service
