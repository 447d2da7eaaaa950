// Goal: the first stop signal asks, the second insists, SIGHUP reloads, SIGPIPE is nothing.
// Method: signals to this process, and to a child where the process is to end.
#include "conclave/service/signals.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <string>
#include <vector>

#include "conclave/base/mutex.h"

namespace conclave::service {
namespace {

// What was called, in order.
class Calls {
 public:
  void Add(const std::string& call) {
    MutexLock lock(mu_);
    calls_.push_back(call);
    changed_.NotifyAll();
  }
  std::vector<std::string> WaitFor(size_t count) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    MutexLock lock(mu_);
    while (calls_.size() < count && std::chrono::steady_clock::now() < until) {
      changed_.WaitFor(mu_, std::chrono::seconds(1));
    }
    return calls_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::vector<std::string> calls_ ABSL_GUARDED_BY(mu_);
};

SignalActions Recording(Calls& calls) {
  return {.on_stop = [&calls](int signal) { calls.Add("stop " + std::to_string(signal)); },
          .on_stop_again = [&calls](int signal) { calls.Add("again " + std::to_string(signal)); },
          .on_reload = [&calls] { calls.Add("reload"); }};
}

TEST(SignalsTest, StopThenStopAgainThenReload) {
  Calls calls;
  auto watcher = SignalWatcher::Start(Recording(calls));
  ASSERT_TRUE(watcher.ok()) << watcher.status();
  ::kill(::getpid(), SIGTERM);
  ASSERT_EQ(calls.WaitFor(1), (std::vector<std::string>{"stop 15"}));
  ::kill(::getpid(), SIGINT);
  ASSERT_EQ(calls.WaitFor(2).back(), "again 2");
  ::kill(::getpid(), SIGHUP);
  EXPECT_EQ(calls.WaitFor(3).back(), "reload");
}

TEST(SignalsTest, ReloadIsNoStop) {
  Calls calls;
  auto watcher = SignalWatcher::Start(Recording(calls));
  ASSERT_TRUE(watcher.ok());
  ::kill(::getpid(), SIGHUP);
  ASSERT_EQ(calls.WaitFor(1).back(), "reload");
  ::kill(::getpid(), SIGTERM);
  EXPECT_EQ(calls.WaitFor(2).back(), "stop 15");
}

TEST(SignalsTest, MaskIsGivenBack) {
  sigset_t before;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &before);
  {
    auto watcher = SignalWatcher::Start({});
    ASSERT_TRUE(watcher.ok());
    sigset_t during;
    ::pthread_sigmask(SIG_SETMASK, nullptr, &during);
    EXPECT_EQ(::sigismember(&during, SIGTERM), 1);
  }
  sigset_t after;
  ::pthread_sigmask(SIG_SETMASK, nullptr, &after);
  EXPECT_EQ(::sigismember(&after, SIGTERM), ::sigismember(&before, SIGTERM));
}

TEST(SignalsTest, L12BrokenPipeIsAnErrorAndNoDeath) {
  IgnoreBrokenPipe();
  int pipe[2];
  ASSERT_EQ(::pipe(pipe), 0);
  ::close(pipe[0]);
  EXPECT_EQ(::write(pipe[1], "x", 1), -1);
  EXPECT_EQ(errno, EPIPE);
  ::close(pipe[1]);
}

TEST(SignalsDeathTest, SecondStopEndsTheProcessAtOnce) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        Calls calls;
        auto watcher = SignalWatcher::Start({.on_stop = [&calls](int) { calls.Add("stop"); },
                                             .on_stop_again = nullptr,
                                             .on_reload = nullptr});
        ::kill(::getpid(), SIGINT);
        calls.WaitFor(1);
        ::kill(::getpid(), SIGTERM);
        while (true) {
          ::pause();
        }
      },
      ::testing::ExitedWithCode(128 + SIGTERM), "");
}

}  // namespace
}  // namespace conclave::service
