#include "core_loop.h"

#include <pthread.h>

#include <utility>

#include "conclave/base/clock.h"
#include "conclave/base/failpoint.h"

namespace conclave::router_service {

StateWriter::StateWriter(std::unique_ptr<StateStore> store,
                         std::function<void(PersistedEvent event)> on_done)
    : store_(std::move(store)), on_done_(std::move(on_done)), thread_([this] { Loop(); }) {
  pthread_setname_np(thread_.native_handle(), "router-state");
}

StateWriter::~StateWriter() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void StateWriter::Write(PersistState state) {
  MutexLock lock(mu_);
  next_ = std::move(state);
  changed_.NotifyAll();
}

void StateWriter::Loop() {
  for (;;) {
    std::optional<PersistState> state;
    {
      MutexLock lock(mu_);
      while (!next_.has_value() && !is_stopping_) {
        changed_.Wait(mu_);
      }
      if (!next_.has_value()) {
        return;
      }
      state = std::exchange(next_, std::nullopt);
    }
    (void)CONCLAVE_FAILPOINT("r.before_persist", {});
    const absl::Status saved =
        store_ == nullptr ? absl::OkStatus() : store_->Save(state->blob, state->term);
    (void)CONCLAVE_FAILPOINT("r.after_persist", {});
    on_done_({state->version, saved});
  }
}

CoreLoop::CoreLoop(std::unique_ptr<RouterCore> core, std::unique_ptr<StateStore> store,
                   milliseconds tick, Hooks hooks)
    : core_(std::move(core)),
      tick_(tick),
      hooks_(std::move(hooks)),
      writer_(std::move(store), [this](PersistedEvent event) { Post(std::move(event)); }) {}

CoreLoop::~CoreLoop() { Stop(); }

void CoreLoop::Start() {
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "router-core");
}

void CoreLoop::Stop() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) {
    thread_.join();
  }
}

bool CoreLoop::Post(Event event, std::function<void()> on_done) {
  MutexLock lock(mu_);
  if (is_stopping_) {
    return false;
  }
  items_.push_back({std::move(event), std::move(on_done), nullptr});
  changed_.NotifyAll();
  return true;
}

bool CoreLoop::Ask(std::function<void(const RouterCore& core)> question) {
  MutexLock lock(mu_);
  if (is_stopping_) {
    return false;
  }
  items_.push_back({std::nullopt, nullptr, std::move(question)});
  changed_.NotifyAll();
  return true;
}

void CoreLoop::Loop() {
  MonotonicTime next_tick = Clock::Real().Now();
  for (;;) {
    std::deque<Item> items;
    {
      MutexLock lock(mu_);
      const std::chrono::nanoseconds wait = next_tick - Clock::Real().Now();
      if (items_.empty() && !is_stopping_ && wait.count() > 0) {
        changed_.WaitFor(mu_, wait);
      }
      items = std::exchange(items_, {});
      if (items.empty() && is_stopping_) {
        return;
      }
    }
    // What has arrived counts before time does: after a pause the heartbeats are in the queue.
    for (Item& item : items) {
      Handle(item);
    }
    const MonotonicTime now = Clock::Real().Now();
    if (now >= next_tick) {
      Step(TickEvent{});
      hooks_.on_tick(*core_);
      next_tick = now + tick_;
    }
  }
}

void CoreLoop::Handle(Item& item) {
  if (item.event.has_value()) {
    Step(*item.event);
  }
  if (item.question) {
    item.question(*core_);
  }
  if (item.on_done) {
    item.on_done();
  }
}

void CoreLoop::Step(const Event& event) {
  actions_.clear();
  core_->Step(Clock::Real().Now(), event, actions_);
  for (Action& action : actions_) {
    if (auto* persist = std::get_if<PersistState>(&action); persist != nullptr) {
      writer_.Write(std::move(*persist));
    } else {
      hooks_.on_action(std::move(action), core_->identity());
    }
  }
}

}  // namespace conclave::router_service
