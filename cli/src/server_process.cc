#include "server_process.h"

#include <unistd.h>

#include <cstdlib>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/service/exit_codes.h"
#include "conclave/service/ready.h"

namespace conclave::cli {

using std::chrono::milliseconds;

void AddProcessOptions(service::OptionSet& set, ProcessSettings& settings,
                       const std::string& drain_help) {
  set.Add({.name = "drain-timeout", .help = drain_help, .group = "Process"},
          &settings.drain_timeout, {milliseconds(0), milliseconds(3'600'000)});
  set.Add({.name = "ready-fd",
           .help = "descriptor that gets a byte when ready",
           .group = "Process",
           .unset_means = "none"},
          &settings.ready_fd, {3, 1 << 20});
  set.Add({.name = "core-dumps",
           .help = "allow core dumps and debuggers, which see prompts and images",
           .group = "Process"},
          &settings.core_dumps);
}

void AddAdminKeyOption(service::OptionSet& set, std::string& file) {
  set.AddPath({.name = "admin-key-file",
               .help = "file with the key that operators need to change the cluster over HTTP",
               .group = "Network",
               .unset_means = "none: no changes over HTTP"},
              &file, service::PathKind::kExistingFile);
}

void Phase::Stop(int signal) {
  std::function<void()> on_drain;
  {
    MutexLock lock(mu_);
    if (state_ == State::kLoading) {
      observability::LogInfo("stopped while loading", {{"signal", signal}});
      std::_Exit(static_cast<int>(service::ExitCode::kDone));
    }
    state_ = State::kDraining;
    changed_.NotifyAll();
    on_drain = on_drain_;
  }
  if (on_drain) {
    on_drain();
  }
}

void Phase::StartServing(std::function<void()> on_drain) {
  MutexLock lock(mu_);
  state_ = State::kServing;
  on_drain_ = std::move(on_drain);
}

void Phase::WaitForStop() {
  MutexLock lock(mu_);
  while (state_ != State::kDraining) {
    changed_.Wait(mu_);
  }
}

Phase::State Phase::state() const {
  MutexLock lock(mu_);
  return state_;
}

absl::Status Announce(const std::string& role,
                      std::vector<std::pair<std::string, std::string>> endpoints,
                      const ProcessSettings& settings, const Invocation& invocation) {
  service::ReadyState state;
  state.role = role;
  state.endpoints = std::move(endpoints);
  state.pid = static_cast<int>(::getpid());
  return service::AnnounceReady(state, settings.ready_fd, Variable(invocation, "NOTIFY_SOCKET"));
}

std::unique_ptr<service::Watchdog> StartWatchdog(const Invocation& invocation,
                                                 std::vector<service::Watched> watched) {
  std::string socket = Variable(invocation, "NOTIFY_SOCKET");
  const std::optional<std::chrono::microseconds> interval = service::WatchdogInterval(
      Variable(invocation, "WATCHDOG_USEC"), Variable(invocation, "WATCHDOG_PID"), ::getpid());
  if (socket.empty() || !interval.has_value()) {
    return nullptr;
  }
  observability::LogInfo("watchdog", {{"seconds", std::chrono::duration<double>(*interval).count()},
                                      {"threads", watched.size()}});
  return std::make_unique<service::Watchdog>(std::move(socket), *interval, std::move(watched));
}

void AnnounceStopping(const Invocation& invocation, milliseconds timeout) {
  // What comes behind the drain, the end of threads and memory, takes a moment too.
  constexpr std::chrono::seconds kEnd{10};
  const std::chrono::microseconds whole = timeout + kEnd;
  // Only the unit's state line and a drain longer than it allows suffer when nobody listens.
  (void)service::NotifyServiceManager(
      Variable(invocation, "NOTIFY_SOCKET"),
      "STOPPING=1\nEXTEND_TIMEOUT_USEC=" + std::to_string(whole.count()));
}

void ReloadLogLevel(service::OptionSet& set, const LogSettings& log, const Invocation& invocation) {
  const auto parsed = set.Parse(invocation.args, invocation.variables);
  if (!parsed.ok()) {
    observability::LogError("reload refused, the old settings stay",
                            {{"why", MessageOf(parsed.status())}});
    return;
  }
  observability::SetLogLevel(
      observability::ParseLogLevel(log.level).value_or(observability::LogLevel::kInfo));
  observability::LogInfo("reloaded", {{"log_level", log.level}});
}

absl::Status ResolveListeners(const Listeners& listeners, bool is_insecure,
                              bool is_admin_insecure) {
  CONCLAVE_ASSIGN_OR_RETURN(*listeners.listen,
                            service::ResolveListener(*listeners.listen, "--listen", is_insecure));
  CONCLAVE_ASSIGN_OR_RETURN(
      *listeners.admin,
      service::ResolveListener(*listeners.admin, "--admin-listen", is_admin_insecure));
  if (listeners.listen->port != 0 && *listeners.listen == *listeners.admin) {
    return InvalidArgument("usage", "--listen and --admin-listen are both " +
                                        service::ToString(*listeners.listen) +
                                        "; expected two addresses");
  }
  return absl::OkStatus();
}

}  // namespace conclave::cli
