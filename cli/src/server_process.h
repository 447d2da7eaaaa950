// What every server command has in common: settings of the process, its life from start to the end
// of the drain, the ready line, and SIGHUP.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "commands.h"
#include "conclave/base/mutex.h"
#include "conclave/service/address.h"
#include "conclave/service/options.h"
#include "conclave/service/watchdog.h"
#include "engine_options.h"

namespace conclave::cli {

struct ProcessSettings {
  std::chrono::milliseconds drain_timeout{30'000};
  int32_t ready_fd = -1;
  bool core_dumps = false;
};
// `drain_help`: what the timeout bounds.
void AddProcessOptions(service::OptionSet& set, ProcessSettings& settings,
                       const std::string& drain_help);

void AddAdminKeyOption(service::OptionSet& set, std::string& file);

// From start to the end of the drain, and who waits for it. Any thread.
class Phase {
 public:
  enum class State : uint8_t { kLoading, kServing, kDraining };

  // The first stop signal. While loading there is nothing to finish: the process ends here, with 0.
  // Otherwise `on_drain` of StartServing is called.
  void Stop(int signal);
  // `on_drain` must not block; it may be null.
  void StartServing(std::function<void()> on_drain = nullptr);
  void WaitForStop();
  State state() const;

 private:
  mutable Mutex mu_;
  CondVar changed_;
  State state_ ABSL_GUARDED_BY(mu_) = State::kLoading;
  std::function<void()> on_drain_ ABSL_GUARDED_BY(mu_);
};

// Prints the ready line with `endpoints` in their order and tells whoever else waits for it.
absl::Status Announce(const std::string& role,
                      std::vector<std::pair<std::string, std::string>> endpoints,
                      const ProcessSettings& settings, const Invocation& invocation);

// Signs of life for a service manager that asks for them, as long as all of `watched` go on, which
// outlive what is returned. Null where nobody asks. Behind Announce.
std::unique_ptr<service::Watchdog> StartWatchdog(const Invocation& invocation,
                                                 std::vector<service::Watched> watched);

// Tells the service manager that the drain has begun, and that it may take `timeout`: more than the
// unit's TimeoutStopSec= if need be.
void AnnounceStopping(const Invocation& invocation, std::chrono::milliseconds timeout);

// SIGHUP: parses the command line, variables and file of `set` once more, whose target of the log
// settings is `log`, and takes the log level. Nothing else changes.
void ReloadLogLevel(service::OptionSet& set, const LogSettings& log, const Invocation& invocation);

// Two listeners with numeric hosts. "usage" for an address that others can reach without
// `is_insecure`, and for two that are the same.
struct Listeners {
  service::Address* listen = nullptr;
  service::Address* admin = nullptr;
};
absl::Status ResolveListeners(const Listeners& listeners, bool is_insecure, bool is_admin_insecure);

}  // namespace conclave::cli
