#include "conclave/transport/doorbell.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <thread>

#include "conclave/base/check.h"

namespace conclave::transport {
namespace {

constexpr int kQuiet = 0;
constexpr int kRung = 1;
constexpr int kAsleep = 2;

}  // namespace

Doorbell::Doorbell() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) { CONCLAVE_CHECK(fd_ >= 0); }

Doorbell::~Doorbell() { ::close(fd_); }

void Doorbell::Ring() {
  if (state_.exchange(kRung, std::memory_order_acq_rel) == kAsleep) {
    const uint64_t one = 1;
    // Cannot block: the counter is far below its limit, the owner takes it before it sleeps again.
    while (::write(fd_, &one, sizeof(one)) < 0 && errno == EINTR) {
    }
  }
}

bool Doorbell::TryTake() {
  int expected = kRung;
  return state_.compare_exchange_strong(expected, kQuiet, std::memory_order_acq_rel);
}

void Doorbell::Attach(Waitable* waitable) {
  MutexLock lock(mu_);
  waitables_.push_back(waitable);
}

void Doorbell::Detach(Waitable* waitable) {
  MutexLock lock(mu_);
  std::erase(waitables_, waitable);
}

bool Doorbell::ProgressAll() {
  bool has_come = false;
  MutexLock lock(mu_);
  for (Waitable* waitable : waitables_) {
    has_come = waitable->Progress() || has_come;
  }
  return has_come;
}

bool Doorbell::WaitUntil(MonotonicTime until) {
  if (TryTake()) {
    return true;
  }
  bool has_waitables = false;
  {
    MutexLock lock(mu_);
    has_waitables = !waitables_.empty();
  }
  MonotonicTime spin_until = Clock::Real().Now() + (has_waitables ? kSpin : kSpin * 0);
  while (true) {
    if (has_waitables && ProgressAll()) {
      spin_until = Clock::Real().Now() + kSpin;
    }
    if (TryTake()) {
      return true;
    }
    const MonotonicTime now = Clock::Real().Now();
    if (now >= until) {
      return false;
    }
    if (now < spin_until) {
      // The peer may need this core to answer.
      std::this_thread::yield();
      continue;
    }
    if (Sleep(until)) {
      return true;
    }
  }
}

// Whether it was rung; false when a waitable has something, or at `until`.
bool Doorbell::Sleep(MonotonicTime until) {
  int expected = kQuiet;
  if (!state_.compare_exchange_strong(expected, kAsleep, std::memory_order_acq_rel)) {
    return TryTake();
  }
  entries_.clear();
  entries_.push_back({fd_, POLLIN, 0});
  bool is_quiet = true;
  {
    MutexLock lock(mu_);
    for (Waitable* waitable : waitables_) {
      is_quiet = is_quiet && waitable->Arm();
      entries_.push_back({waitable->fd(), POLLIN, 0});
    }
  }
  while (is_quiet) {
    const auto left = until - Clock::Real().Now();
    if (left <= std::chrono::nanoseconds::zero()) {
      break;
    }
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    const timespec timeout{static_cast<time_t>(seconds.count()),
                           static_cast<long>((left - seconds).count())};
    const int ready = ::ppoll(entries_.data(), entries_.size(), &timeout, nullptr);
    if (ready > 0) {
      break;
    }
    CONCLAVE_CHECK(ready == 0 || errno == EINTR);
  }
  const bool was_rung = state_.exchange(kQuiet, std::memory_order_acq_rel) == kRung;
  if (was_rung) {
    // The ringer writes after its exchange: wait for that write, or the next sleep would end early.
    uint64_t count = 0;
    while (::read(fd_, &count, sizeof(count)) < 0) {
      CONCLAVE_CHECK(errno == EINTR || errno == EAGAIN);
    }
  }
  return was_rung;
}

}  // namespace conclave::transport
