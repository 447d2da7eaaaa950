#include "conclave/live/feed.h"

#include <pthread.h>

#include <chrono>
#include <utility>

#include "conclave/base/clock.h"

namespace conclave::live {

Feed::Feed(Board& board, std::function<void()> before_tick)
    : board_(board), before_tick_(std::move(before_tick)) {
  if (before_tick_) {
    before_tick_();
  }
  (void)board_.Tick();
  thread_ = std::thread([this] { Loop(); });
  ::pthread_setname_np(thread_.native_handle(), "live");
}

Feed::~Feed() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

uint64_t Feed::Watch(Watcher watcher) {
  MutexLock lock(mu_);
  const uint64_t id = next_++;
  watcher({true, board_.seq(), std::make_shared<const std::string>(board_.Snapshot())});
  watchers_.emplace(id, std::move(watcher));
  return id;
}

void Feed::Unwatch(uint64_t id) {
  MutexLock lock(mu_);
  watchers_.erase(id);
}

void Feed::Loop() {
  constexpr std::chrono::seconds kPeriod{1};
  MonotonicTime next = Clock::Real().Now() + kPeriod;
  while (true) {
    {
      MutexLock lock(mu_);
      while (!is_stopping_ && Clock::Real().Now() < next) {
        changed_.WaitFor(mu_, next - Clock::Real().Now());
      }
      if (is_stopping_) {
        return;
      }
    }
    if (before_tick_) {
      before_tick_();
    }
    MutexLock lock(mu_);
    const auto delta = std::make_shared<const std::string>(board_.Tick());
    for (const auto& [id, watcher] : watchers_) {
      watcher({false, board_.seq(), delta});
    }
    // After a pause of the process there is one tick, not one for every second that was missed.
    next = std::max(next + kPeriod, Clock::Real().Now());
  }
}

}  // namespace conclave::live
