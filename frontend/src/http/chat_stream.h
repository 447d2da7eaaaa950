// The way from the engine's thread to a connection: a bounded mailbox that merges what the
// connection has not taken yet, so that a slow client costs memory only up to a bound and the
// engine never waits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/frontend/chat.h"

namespace conclave::frontend {

// What happened since the last Take.
struct ChatEvents {
  struct Choice {
    std::optional<ChatDelta> delta;  // several merged into one
    std::optional<ChoiceEnd> end;    // after the delta
  };
  struct Done {
    Usage usage;
    Timings timings;
  };
  std::vector<Choice> choices;  // by index, one per choice
  std::optional<Done> done;     // after everything else

  bool is_empty() const;
};

// Thread-safe.
class ChatStream : public ChatSink {
 public:
  // `notify` is called at most once between two calls of Take, on the thread of the event and under
  // a lock: it may only hand on ("post"), neither block nor call back.
  ChatStream(int32_t num_choices, size_t pending_bytes_max, std::function<void()> notify);

  void OnDelta(ChatDelta delta) override;
  void OnChoiceEnd(ChoiceEnd end) override;
  void OnDone(const Usage& usage, const Timings& timings) override;

  // Empty when nothing happened.
  ChatEvents Take();

  // More than `pending_bytes_max` piled up: what was pending is dropped, later events are too.
  // Notified once.
  bool has_overflowed() const;

  // The receiver is going away: no `notify` from now on, events are dropped.
  void Detach();

 private:
  // Whether an event may be added.
  bool IsOpen() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Notify() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const int32_t num_choices_;
  const size_t pending_bytes_max_;

  mutable Mutex mu_;  // Held for moves and appends only.
  std::function<void()> notify_ ABSL_GUARDED_BY(mu_);
  ChatEvents pending_ ABSL_GUARDED_BY(mu_);
  size_t pending_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool is_notified_ ABSL_GUARDED_BY(mu_) = false;
  bool has_overflowed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace conclave::frontend
