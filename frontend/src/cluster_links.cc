#include "conclave/frontend/cluster_links.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>
#include <utility>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"
#include "link_keeper.h"

namespace conclave::frontend {

using transport::ExpertChannel;

struct ClusterLinks::State {
  explicit State(ClusterLinksOptions links_options)
      : options(std::move(links_options)),
        keeper({options.retry_min, options.retry_max, options.ping_interval,
                options.silent_looks_max, options.on_switched}) {}

  struct Attempt {
    std::thread thread;
    std::atomic<bool> is_done{false};
  };

  void Loop();
  void StartAttempt(LinkKeeper::Attempt what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void FinishAttempt(const LinkKeeper::Attempt& what,
                     absl::StatusOr<std::unique_ptr<ExpertChannel>> channel);
  void Wake() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    has_update.store(true, std::memory_order_release);
    bell.Ring();
  }

  const ClusterLinksOptions options;
  transport::Doorbell bell;
  std::atomic<bool> has_update{false};

  mutable Mutex mu;
  CondVar changed;
  bool is_stopping ABSL_GUARDED_BY(mu) = false;
  LinkKeeper keeper ABSL_GUARDED_BY(mu);
  std::deque<std::unique_ptr<Attempt>> attempts ABSL_GUARDED_BY(mu);
  std::thread thread;  // last: it uses all of the above
};

ClusterLinks::ClusterLinks(ClusterLinksOptions options)
    : state_(std::make_unique<State>(std::move(options))) {
  state_->thread = std::thread([s = state_.get()] { s->Loop(); });
}

ClusterLinks::~ClusterLinks() {
  {
    MutexLock lock(state_->mu);
    state_->is_stopping = true;
    state_->changed.NotifyAll();
  }
  state_->thread.join();
}

void ClusterLinks::State::StartAttempt(LinkKeeper::Attempt what) {
  attempts.push_back(std::make_unique<Attempt>());
  Attempt* attempt = attempts.back().get();
  attempt->thread = std::thread([this, attempt, what = std::move(what)] {
    FinishAttempt(what, options.connect(what.frontend_id, what.member, bell));
    attempt->is_done.store(true);
  });
}

void ClusterLinks::State::FinishAttempt(const LinkKeeper::Attempt& what,
                                        absl::StatusOr<std::unique_ptr<ExpertChannel>> channel) {
  MutexLock lock(mu);
  if (channel.ok()) {
    const char* const name = (*channel)->name();
    // While stopping, the channel goes the way of all others.
    if (keeper.OnConnected(what, *std::move(channel), Clock::Real().Now())) {
      observability::LogInfo(
          "link up",
          {{"worker", what.member.name}, {"address", what.member.data_address}, {"channel", name}});
      Wake();
    }
  } else if (keeper.OnFailed(what, Clock::Real().Now())) {
    observability::LogWarning("no link to a worker yet, trying on",
                              {{"worker", what.member.name},
                               {"address", what.member.data_address},
                               {"why", MessageOf(channel.status())}});
  }
  changed.NotifyAll();
}

void ClusterLinks::State::Loop() {
  mu.lock();
  while (true) {
    // Joined and closed without the lock: both may wait for others.
    std::vector<std::unique_ptr<ExpertChannel>> closing = keeper.TakeUnused();
    std::vector<std::unique_ptr<Attempt>> done;
    for (auto it = attempts.begin(); it != attempts.end();) {
      if ((*it)->is_done.load() || is_stopping) {
        done.push_back(std::move(*it));
        it = attempts.erase(it);
      } else {
        ++it;
      }
    }
    if (!closing.empty() || !done.empty()) {
      mu.unlock();
      for (const auto& attempt : done) {
        attempt->thread.join();
      }
      closing.clear();
      mu.lock();
      continue;
    }
    if (is_stopping) {
      break;
    }
    const MonotonicTime now = Clock::Real().Now();
    for (LinkKeeper::Attempt& attempt : keeper.StartDue(now)) {
      StartAttempt(std::move(attempt));
    }
    const std::vector<LinkKeeper::GivenUp> given_up = keeper.LookAfterLinks(now);
    for (const LinkKeeper::GivenUp& link : given_up) {
      observability::LogWarning("link given up",
                                {{"worker", link.worker}, {"why", MessageOf(link.why)}});
    }
    if (!given_up.empty()) {
      Wake();
      continue;  // channels to close, links to open anew
    }
    const MonotonicTime next = std::min(now + options.ping_interval, keeper.NextRetry());
    changed.WaitFor(mu, next - now);
  }
  keeper.Clear();
  mu.unlock();
}

void ClusterLinks::Apply(ClusterView view) {
  State& s = *state_;
  MutexLock lock(s.mu);
  s.keeper.Apply(std::move(view));
  s.Wake();
  s.changed.NotifyAll();
}

absl::Status ClusterLinks::Readiness() const {
  MutexLock lock(state_->mu);
  return state_->keeper.Readiness();
}

int32_t ClusterLinks::num_links() const {
  MutexLock lock(state_->mu);
  return state_->keeper.num_links();
}

int32_t ClusterLinks::num_links(std::string_view channel) const {
  MutexLock lock(state_->mu);
  return state_->keeper.num_links(channel);
}

Epoch ClusterLinks::epoch() const {
  MutexLock lock(state_->mu);
  return state_->keeper.epoch();
}

std::vector<MemberLink> ClusterLinks::Links() const {
  MutexLock lock(state_->mu);
  return state_->keeper.Links();
}

void ClusterLinks::Enter() {
  MutexLock lock(state_->mu);
  state_->keeper.Enter();
}

void ClusterLinks::Leave() {
  MutexLock lock(state_->mu);
  state_->keeper.Leave();
}

bool ClusterLinks::has_update() const { return state_->has_update.load(std::memory_order_acquire); }

void ClusterLinks::Take(Update& update) {
  State& s = *state_;
  MutexLock lock(s.mu);
  s.has_update.store(false, std::memory_order_relaxed);
  s.keeper.Take(update);
}

void ClusterLinks::Release(ExpertChannel* channel) {
  State& s = *state_;
  MutexLock lock(s.mu);
  if (const ClusterMember* member = s.keeper.Release(channel, Clock::Real().Now());
      member != nullptr) {
    observability::LogWarning("link lost", {{"worker", member->name}});
  }
  s.changed.NotifyAll();
}

void ClusterLinks::Report(WorkerId worker, uint64_t incarnation, PeerSighting sighting) {
  if (state_->options.on_sighting != nullptr) {
    state_->options.on_sighting(worker, incarnation, sighting);
  }
}

bool ClusterLinks::WaitUntil(MonotonicTime until) { return state_->bell.WaitUntil(until); }

}  // namespace conclave::frontend
