// Goal: everybody who watches gets the picture at once and then every delta, without a gap, until
// they stop watching. Method: watchers that keep a reader; the feed's own second, waited for.
#include "conclave/live/feed.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>

#include "conclave/base/clock.h"
#include "live_reader.h"

namespace conclave::live {
namespace {

// Keeps what it is sent as a page does.
class Watching {
 public:
  Feed::Watcher Watcher() {
    return [this](const Message& message) {
      MutexLock lock(mu_);
      if (message.is_snapshot) {
        EXPECT_FALSE(reader_.has_value());
        reader_.emplace(*message.json);
      } else {
        ASSERT_TRUE(reader_.has_value());
        reader_->Apply(*message.json);
        ++num_deltas_;
      }
      EXPECT_EQ(reader_->picture().at("seq"), message.seq);
      changed_.NotifyAll();
    };
  }
  bool WaitForDeltas(int count) {
    const MonotonicTime end = Clock::Real().Now() + std::chrono::seconds(30);
    MutexLock lock(mu_);
    while (num_deltas_ < count && Clock::Real().Now() < end) {
      changed_.WaitFor(mu_, std::chrono::seconds(1));
    }
    return num_deltas_ >= count;
  }
  int num_deltas() {
    MutexLock lock(mu_);
    return num_deltas_;
  }
  boost::json::object picture() {
    MutexLock lock(mu_);
    return reader_ ? reader_->picture() : boost::json::object();
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::optional<LiveReader> reader_ ABSL_GUARDED_BY(mu_);
  int num_deltas_ ABSL_GUARDED_BY(mu_) = 0;
};

TEST(FeedTest, WatchersGetTheSnapshotWithinTheCallAndThenEveryDelta) {
  Board board({.role = "serve", .version = "1", .bounds = {}, .admin_reason = "", .now = {}});
  std::atomic<int> num_told{0};
  Feed feed(board, [&] { board.AddEvent("recording", -1, "", std::to_string(++num_told)); });
  std::deque<Watching> watching(20);
  for (Watching& one : watching) {
    feed.Watch(one.Watcher());
    EXPECT_EQ(one.picture().at("role"), "serve");
    EXPECT_FALSE(one.picture().at("events").as_array().empty()) << "the first tick is the feed's";
  }
  Watching gone;
  const uint64_t id = feed.Watch(gone.Watcher());
  ASSERT_TRUE(gone.WaitForDeltas(1));
  feed.Unwatch(id);
  const int num_before = gone.num_deltas();
  Watching late;
  feed.Watch(late.Watcher());
  for (Watching& one : watching) {
    ASSERT_TRUE(one.WaitForDeltas(num_before + 1));
  }
  EXPECT_EQ(gone.num_deltas(), num_before);
  ASSERT_TRUE(late.WaitForDeltas(1));
  EXPECT_GE(num_told, 3);
  EXPECT_EQ(late.picture().at("events"), watching[0].picture().at("events"));
}

TEST(FeedTest, EndsAtOnceAndWithWatchers) {
  Board board({.role = "serve", .version = "1", .bounds = {}, .admin_reason = "", .now = {}});
  Watching one;
  const MonotonicTime begin = Clock::Real().Now();
  {
    Feed feed(board, nullptr);
    feed.Watch(one.Watcher());
    feed.Unwatch(12345);  // nobody
  }
  EXPECT_LT(Clock::Real().Now() - begin, std::chrono::milliseconds(900));
  EXPECT_EQ(one.num_deltas(), 0);
}

}  // namespace
}  // namespace conclave::live
