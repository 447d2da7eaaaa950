// The thread that owns the core, and the one that writes its state.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/router_service/router_core.h"
#include "conclave/router_service/state_store.h"

namespace conclave::router_service {

// Writes one state at a time on its own thread.
class StateWriter {
 public:
  // `store` may be null: then everything is durable at once. `on_done` is called on the writer's
  // thread.
  StateWriter(std::unique_ptr<StateStore> store, std::function<void(PersistedEvent event)> on_done);
  ~StateWriter();
  StateWriter(const StateWriter&) = delete;
  StateWriter& operator=(const StateWriter&) = delete;

  void Write(PersistState state);

 private:
  void Loop();

  const std::unique_ptr<StateStore> store_;
  const std::function<void(PersistedEvent event)> on_done_;
  Mutex mu_;
  CondVar changed_;
  std::optional<PersistState> next_ ABSL_GUARDED_BY(mu_);
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

class CoreLoop {
 public:
  // Both are called on the loop's thread: every action of the core in order, and after each tick.
  struct Hooks {
    std::function<void(Action action, const RouterIdentity& router)> on_action;
    std::function<void(const RouterCore& core)> on_tick;
  };
  CoreLoop(std::unique_ptr<RouterCore> core, std::unique_ptr<StateStore> store, milliseconds tick,
           Hooks hooks);
  // Stops after what is queued.
  ~CoreLoop();
  CoreLoop(const CoreLoop&) = delete;
  CoreLoop& operator=(const CoreLoop&) = delete;

  void Start();
  void Stop();

  // Any thread. `on_done` is called on the loop's thread behind the event's actions. After Stop
  // nothing happens; false says so.
  bool Post(Event event, std::function<void()> on_done = nullptr);
  // Runs on the loop's thread, between events.
  bool Ask(std::function<void(const RouterCore& core)> question);

 private:
  struct Item {
    std::optional<Event> event;
    std::function<void()> on_done;
    std::function<void(const RouterCore& core)> question;
  };
  void Loop();
  void Handle(Item& item);
  void Step(const Event& event);

  const std::unique_ptr<RouterCore> core_;
  const milliseconds tick_;
  const Hooks hooks_;
  std::vector<Action> actions_;  // of the step under way
  Mutex mu_;
  CondVar changed_;
  std::deque<Item> items_ ABSL_GUARDED_BY(mu_);
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  StateWriter writer_;
  std::thread thread_;
};

}  // namespace conclave::router_service
