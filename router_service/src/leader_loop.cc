#include "leader_loop.h"

#include <pthread.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::router_service {
namespace {

using std::chrono::milliseconds;

// Between two looks at who leads: a takeover is that much later than the end of a lease.
constexpr milliseconds kLookEvery{200};

}  // namespace

LeaderLoop::LeaderLoop(std::unique_ptr<EtcdClient> client, EtcdElectionOptions options, Hooks hooks)
    : client_(std::move(client)),
      options_(std::move(options)),
      hooks_(std::move(hooks)),
      election_(*client_, options_) {}

void LeaderLoop::Start() {
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "router-leader");
}

LeaderLoop::~LeaderLoop() { Stop(); }

void LeaderLoop::Stop() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

void LeaderLoop::StepDown(const std::string& why) {
  MutexLock lock(mu_);
  step_down_ = why;
  changed_.NotifyAll();
}

bool LeaderLoop::IsStopping() const {
  MutexLock lock(mu_);
  return is_stopping_;
}

bool LeaderLoop::Sleep(std::chrono::nanoseconds time) {
  const MonotonicTime until = Clock::Real().Now() + time;
  MutexLock lock(mu_);
  while (!is_stopping_ && step_down_.empty() && Clock::Real().Now() < until) {
    changed_.WaitFor(mu_, until - Clock::Real().Now());
  }
  return !is_stopping_;
}

void LeaderLoop::Loop() {
  while (StandBy() && Sleep(kLookEvery)) {
  }
}

bool LeaderLoop::StandBy() {
  const absl::StatusOr<std::optional<std::string>> leader = election_.Leader();
  absl::Status failed = leader.status();
  if (leader.ok() && leader->has_value()) {
    hooks_.on_standby(
        Error(absl::StatusCode::kUnavailable, "standby",
              "this router stands by; the leader is " +
                  observability::Printable(leader->value().empty() ? "not known" : **leader, 256)));
    return true;
  }
  if (leader.ok() && !IsStopping()) {
    const absl::StatusOr<std::shared_ptr<EtcdLeadership>> won = election_.Campaign();
    failed = won.status();
    if (won.ok() && *won != nullptr) {
      failed = hooks_.on_elected(*won);
      if (failed.ok()) {
        Lead(**won);
        return !IsStopping();
      }
      (*won)->Resign();
    }
  }
  if (absl::IsUnavailable(failed) || ReasonOf(failed) == "leadership_lost") {
    hooks_.on_standby(failed);
  } else if (!failed.ok()) {
    hooks_.on_failed(failed);
    return false;
  }
  return true;
}

void LeaderLoop::Lead(EtcdLeadership& leadership) {
  observability::LogInfo("this router leads", {{"term", std::to_string(leadership.term())}});
  {
    MutexLock lock(mu_);
    step_down_.clear();
  }
  // A sign of life that failed is given again sooner, within the same lease.
  const milliseconds interval = milliseconds(options_.lease) / 3;
  std::string why;
  bool is_heard = true;
  for (;;) {
    const auto left = leadership.held_until() - Clock::Real().Now();
    const bool is_running =
        Sleep(std::min<std::chrono::nanoseconds>(is_heard ? interval : interval / 4, left));
    {
      MutexLock lock(mu_);
      why = is_running ? step_down_ : "the router stops";
    }
    if (!why.empty()) {
      break;
    }
    const absl::Status kept = leadership.KeepAlive();
    if (!leadership.IsHeld()) {
      why = kept.ok() ? "the lease is over" : MessageOf(kept);
      break;
    }
    if (!kept.ok() && is_heard) {
      observability::LogWarning("etcd does not prolong the lease, trying on",
                                {{"why", MessageOf(kept)}});
    }
    is_heard = kept.ok();
  }
  if (IsStopping()) {
    observability::LogInfo("this router gives its leadership back");
  } else {
    observability::LogError("this router is deposed: it commands nothing any more", {{"why", why}});
  }
  hooks_.on_deposed(
      Error(absl::StatusCode::kUnavailable, "standby", "this router stands by: " + why));
  leadership.Resign();
  MutexLock lock(mu_);
  step_down_.clear();
}

}  // namespace conclave::router_service
