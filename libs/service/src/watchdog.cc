#include "conclave/service/watchdog.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "conclave/service/ready.h"
#include "conclave/service/units.h"

namespace conclave::service {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

// An interval below twice this is not kept: looking would become work of its own.
constexpr std::chrono::milliseconds kPeriodMin{10};
// 0xFFFF... is how systemd writes "no limit"; beyond a year nobody waits.
constexpr int64_t kIntervalMax = int64_t{366} * 24 * 3600 * 1'000'000;

}  // namespace

struct Knock::State {
  explicit State(Post hand_over) : post(std::move(hand_over)) {}

  const Post post;
  uint64_t asked = 0;  // of the one thread that takes the pulse
  // Of its own: the loop may answer when this state is gone.
  std::shared_ptr<std::atomic<uint64_t>> answered = std::make_shared<std::atomic<uint64_t>>(0);
};

Knock::Knock(Post post) : state_(std::make_shared<State>(std::move(post))) {}

Pulse Knock::operator()() const {
  State& s = *state_;
  const uint64_t answered = s.answered->load();
  if (answered == s.asked) {
    if (!s.post([counter = s.answered] { counter->fetch_add(1); })) {
      return {answered, true};
    }
    ++s.asked;
  }
  return {answered, false};
}

LifeCheck::LifeCheck(std::vector<Watched> watched, nanoseconds limit)
    : watched_(std::move(watched)), limit_(limit), seen_(watched_.size()) {}

const Watched* LifeCheck::Look(MonotonicTime now) {
  const Watched* hanging = nullptr;
  for (size_t i = 0; i < watched_.size(); ++i) {
    const Pulse pulse = watched_[i].pulse();
    std::optional<Seen>& seen = seen_[i];
    const bool is_waiting = seen.has_value() && !pulse.is_idle && !seen->pulse.is_idle &&
                            pulse.beats == seen->pulse.beats;
    if (!is_waiting) {
      seen = Seen{pulse, now};
    } else if (now - seen->since >= limit_ && hanging == nullptr) {
      hanging = &watched_[i];
    }
  }
  return hanging;
}

std::optional<microseconds> WatchdogInterval(const std::string& usec, const std::string& pid,
                                             int own_pid) {
  if (usec.empty()) {
    return std::nullopt;
  }
  if (!pid.empty()) {
    const absl::StatusOr<int64_t> number = ParseInt(pid);
    if (!number.ok() || *number < 1) {
      observability::LogWarning("the watchdog is off: WATCHDOG_PID is not understood",
                                {{"expected", "a process id"}, {"found", Quoted(pid)}});
      return std::nullopt;
    }
    if (*number != own_pid) {
      return std::nullopt;  // of a parent, which passed its environment on
    }
  }
  const absl::StatusOr<int64_t> number = ParseInt(usec);
  if (!number.ok() || *number < 1 || *number > kIntervalMax) {
    observability::LogWarning("the watchdog is off: WATCHDOG_USEC is not understood",
                              {{"expected", "microseconds, 1 to " + std::to_string(kIntervalMax)},
                               {"found", Quoted(usec)}});
    return std::nullopt;
  }
  return microseconds(*number);
}

Watchdog::Watchdog(std::string notify_socket, microseconds interval, std::vector<Watched> watched)
    : notify_socket_(std::move(notify_socket)),
      period_(std::max<nanoseconds>(interval / 2, kPeriodMin)),
      check_(std::move(watched), period_),
      thread_([this] { Loop(); }) {}

Watchdog::~Watchdog() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void Watchdog::Loop() {
  pthread_setname_np(pthread_self(), "watchdog");
  for (;;) {
    Look();
    const MonotonicTime next = Clock::Real().Now() + period_;
    MutexLock lock(mu_);
    while (!is_stopping_ && Clock::Real().Now() < next) {
      changed_.WaitFor(mu_, next - Clock::Real().Now());
    }
    if (is_stopping_) {
      return;
    }
  }
}

void Watchdog::Look() {
  const Watched* hanging = check_.Look(Clock::Real().Now());
  const std::string name = hanging == nullptr ? "" : hanging->name;
  if (name != hanging_) {
    if (name.empty()) {
      observability::LogInfo("watchdog: it goes on", {{"thread", hanging_}});
    } else {
      observability::LogError(
          "watchdog: no sign of life, the service manager is told nothing until there is one",
          {{"thread", name}, {"seconds", std::chrono::duration<double>(period_).count()}});
    }
    hanging_ = name;
  }
  if (name.empty()) {
    // Nothing to be done where nobody listens; the next one may be heard.
    (void)NotifyServiceManager(notify_socket_, "WATCHDOG=1");
  }
}

}  // namespace conclave::service
