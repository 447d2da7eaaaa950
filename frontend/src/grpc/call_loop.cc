#include "grpc/call_loop.h"

#include <pthread.h>

#include <algorithm>
#include <utility>

namespace conclave::frontend {

CallLoop::CallLoop(const Clock& clock, size_t calls_max, std::function<void()> on_tick)
    : clock_(clock), calls_max_(calls_max), on_tick_(std::move(on_tick)) {}

CallLoop::~CallLoop() { Stop(); }

void CallLoop::Stop() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    wake_.NotifyOne();
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

void CallLoop::Start() {
  thread_ = std::thread([this] { Run(); });
}

bool CallLoop::Add(const std::shared_ptr<LoopCall>& call) {
  MutexLock lock(mu_);
  return calls_.size() < calls_max_ && calls_.emplace(call.get(), call).second;
}

void CallLoop::Remove(const LoopCall* call) {
  MutexLock lock(mu_);
  calls_.erase(call);
}

void CallLoop::Poke(std::shared_ptr<LoopCall> call) {
  MutexLock lock(mu_);
  ready_.push_back(std::move(call));
  wake_.NotifyOne();
}

void CallLoop::Wake() {
  MutexLock lock(mu_);
  is_woken_ = true;
  wake_.NotifyOne();
}

MonotonicTime CallLoop::Tick() {
  std::vector<std::shared_ptr<LoopCall>> calls;
  {
    MutexLock lock(mu_);
    calls.reserve(calls_.size());
    for (const auto& [key, call] : calls_) {
      calls.push_back(call);
    }
  }
  const MonotonicTime now = clock_.Now();
  MonotonicTime next = now + kTick;
  for (const std::shared_ptr<LoopCall>& call : calls) {
    if (const std::optional<MonotonicTime> due = call->Check(now); due.has_value()) {
      next = std::min(next, *due);
    }
  }
  on_tick_();
  return next;
}

void CallLoop::Run() {
  pthread_setname_np(pthread_self(), "grpc-calls");
  std::vector<std::shared_ptr<LoopCall>> ready;
  MonotonicTime next = clock_.Now();
  while (true) {
    bool is_tick = false;
    {
      MutexLock lock(mu_);
      // A virtual clock moves without waking anybody: after kTick of real time it is asked anyway.
      if (!is_stopping_ && !is_woken_ && ready_.empty()) {
        const auto left = std::chrono::nanoseconds(next - clock_.Now());
        if (left > std::chrono::nanoseconds(0)) {
          wake_.WaitFor(mu_, std::min<std::chrono::nanoseconds>(left, kTick));
        }
      }
      if (is_stopping_) {
        return;
      }
      is_tick = std::exchange(is_woken_, false) || clock_.Now() >= next;
      std::swap(ready, ready_);
    }
    for (const std::shared_ptr<LoopCall>& call : ready) {
      call->Pump();
    }
    ready.clear();
    if (is_tick) {
      next = Tick();
    }
  }
}

}  // namespace conclave::frontend
