// Signals of a server: SIGTERM and SIGINT ask for a drain, a second one stops at once, SIGHUP
// reloads; SIGPIPE is ignored. They arrive on one thread of ours and never interrupt another.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"

namespace conclave::service {

// All are called on the signal thread, one at a time; null ones do nothing.
struct SignalActions {
  // The first SIGTERM or SIGINT; gets its number.
  std::function<void(int)> on_stop;
  // Every further one. Null: the process ends at once with 128 + signal.
  std::function<void(int)> on_stop_again;
  std::function<void()> on_reload;
};

class SignalWatcher {
 public:
  // Call in main before any other thread starts: the mask is inherited, so that no other thread
  // takes the signals. One at a time per process.
  static absl::StatusOr<std::unique_ptr<SignalWatcher>> Start(SignalActions actions);

  // Gives the signals back to the mask that was there.
  ~SignalWatcher();
  SignalWatcher(const SignalWatcher&) = delete;
  SignalWatcher& operator=(const SignalWatcher&) = delete;

 private:
  struct State;
  explicit SignalWatcher(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// For commands that are no servers: a closed pipe is a write error and no death.
void IgnoreBrokenPipe();

}  // namespace conclave::service
