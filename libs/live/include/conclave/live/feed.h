// Ticks a board once per second and tells everybody who watches.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>

#include "conclave/base/mutex.h"
#include "conclave/live/board.h"

namespace conclave::live {

// One message to a watcher. The text is shared by all of them.
struct Message {
  bool is_snapshot = false;  // else a delta
  uint64_t seq = 0;
  std::shared_ptr<const std::string> json;
};

class Feed {
 public:
  // `board` outlives the feed. `before_tick`, which may be null, is called in front of every tick
  // on the feed's thread, to tell the board how things stand.
  Feed(Board& board, std::function<void()> before_tick);
  ~Feed();
  Feed(const Feed&) = delete;
  Feed& operator=(const Feed&) = delete;

  using Watcher = std::function<void(const Message&)>;
  // The first message, a snapshot, comes within the call; later ones on the feed's thread, every
  // second, without a gap. A watcher must not block and must not call the feed.
  uint64_t Watch(Watcher watcher);
  // Behind it the watcher is not called any more.
  void Unwatch(uint64_t id);

 private:
  void Loop();

  Board& board_;
  const std::function<void()> before_tick_;
  Mutex mu_;  // also held while watchers are called: a snapshot and the deltas behind it fit
  CondVar changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<uint64_t, Watcher> watchers_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace conclave::live
