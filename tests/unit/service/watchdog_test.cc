// Goal: the service manager hears of life exactly as long as there is some, and what its variables
// ask for is understood or refused aloud. Method: threads whose pulse the test sets, looks at times
// of its own, and a datagram socket in place of the service manager's.
#include "conclave/service/watchdog.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <string>

#include "conclave/testing/temp_folder.h"
#include "notify_socket.h"

namespace conclave::service {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr seconds kLimit{30};

class LifeCheckTest : public ::testing::Test {
 protected:
  // One look, `kLimit` after the last.
  std::string Look() {
    now_ += kLimit;
    const Watched* hanging = check_.Look(now_);
    return hanging == nullptr ? "" : hanging->name;
  }

  Pulse engine_;
  Pulse control_;
  MonotonicTime now_;
  LifeCheck check_{
      {{"engine", [this] { return engine_; }}, {"control", [this] { return control_; }}}, kLimit};
};

TEST_F(LifeCheckTest, WhoDoesSomethingLives) {
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Look(), "");
    ++engine_.beats;
    ++control_.beats;
  }
}

TEST_F(LifeCheckTest, WhoHasNothingToDoLives) {
  engine_.is_idle = control_.is_idle = true;
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(Look(), "");
  }
}

TEST_F(LifeCheckTest, WhoHasWorkAndDoesNothingHangsUntilItDoes) {
  control_.is_idle = true;
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(Look(), "engine");
  EXPECT_EQ(Look(), "engine");
  ++engine_.beats;
  EXPECT_EQ(Look(), "");
}

TEST_F(LifeCheckTest, WorkThatHasJustComeIsNoHang) {
  control_.is_idle = true;
  engine_.is_idle = true;
  EXPECT_EQ(Look(), "");
  engine_.is_idle = false;
  EXPECT_EQ(Look(), "") << "it may have come a moment ago";
  EXPECT_EQ(Look(), "engine");
}

TEST_F(LifeCheckTest, LooksThatComeTooSoonJudgeNobody) {
  control_.is_idle = true;
  EXPECT_EQ(Look(), "");
  EXPECT_EQ(check_.Look(now_ + seconds(1)), nullptr);
  EXPECT_EQ(Look(), "engine");
}

TEST(KnockTest, BeatsWithEveryAnswerAndKnocksAgainOnlyThen) {
  std::deque<std::function<void()>> loop;
  const Knock knock([&](std::function<void()> answer) {
    loop.push_back(std::move(answer));
    return true;
  });
  EXPECT_EQ(knock().beats, 0U);
  EXPECT_EQ(knock().beats, 0U);
  EXPECT_EQ(loop.size(), 1U) << "an unanswered knock is not repeated";
  loop.front()();
  loop.clear();
  EXPECT_EQ(knock().beats, 1U);
  EXPECT_FALSE(knock().is_idle);
  EXPECT_EQ(loop.size(), 1U);
}

TEST(KnockTest, NoLoopIsIdle) {
  const Knock knock([](const std::function<void()>&) { return false; });
  EXPECT_TRUE(knock().is_idle);
}

TEST(KnockTest, AnswerMayComeWhenNobodyKnocksAnyMore) {
  std::function<void()> late;
  {
    const Knock knock([&](std::function<void()> answer) {
      late = std::move(answer);
      return true;
    });
    (void)knock();
  }
  late();
}

TEST(WatchdogIntervalTest, IsOfThisProcessOnly) {
  EXPECT_EQ(WatchdogInterval("30000000", "", 7), seconds(30));
  EXPECT_EQ(WatchdogInterval("30000000", "7", 7), seconds(30));
  EXPECT_EQ(WatchdogInterval("30000000", "8", 7), std::nullopt);
  EXPECT_EQ(WatchdogInterval("", "7", 7), std::nullopt);
}

TEST(WatchdogIntervalTest, IgnoresWhatItDoesNotUnderstandAndSaysSo) {
  for (const auto& [usec, pid, named] : {std::tuple("0", "7", "WATCHDOG_USEC"),
                                         {"-5", "7", "WATCHDOG_USEC"},
                                         {"30s", "7", "WATCHDOG_USEC"},
                                         {"1.5", "7", "WATCHDOG_USEC"},
                                         {"18446744073709551615", "7", "WATCHDOG_USEC"},
                                         {"30000000", "me", "WATCHDOG_PID"},
                                         {"30000000", "0", "WATCHDOG_PID"}}) {
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(WatchdogInterval(usec, pid, 7), std::nullopt) << usec;
    const std::string log = ::testing::internal::GetCapturedStderr();
    EXPECT_THAT(log, HasSubstr(named)) << usec;
    EXPECT_THAT(log, HasSubstr("expected")) << usec;
  }
}

TEST(WatchdogTest, TellsWhileThreadsLiveAndNoLonger) {
  const testing::TempFolder temp;
  const std::string path = temp.path() + "/notify";
  const testing::NotifySocket socket(path);
  std::atomic<uint64_t> beats{0};
  std::atomic<bool> hangs{false};
  ::testing::internal::CaptureStderr();
  {
    const Watchdog watchdog(path, milliseconds(40),
                            {{"engine", [&] {
                                return Pulse{hangs ? beats.load() : beats.fetch_add(1), false};
                              }}});
    for (int i = 0; i < 3; ++i) {
      EXPECT_EQ(socket.Wait(seconds(20)), "WATCHDOG=1");
    }
    hangs = true;
    // What was on its way, and the look at which the last beat still counted.
    while (!socket.Wait(milliseconds(200)).empty()) {
    }
    EXPECT_THAT(socket.Wait(milliseconds(200)), IsEmpty());
    hangs = false;
    EXPECT_EQ(socket.Wait(seconds(20)), "WATCHDOG=1") << "it goes on";
  }
  const std::string log = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("no sign of life"));
  EXPECT_THAT(log, HasSubstr("engine"));
}

TEST(WatchdogTest, EndsAtOnce) {
  const MonotonicTime start = Clock::Real().Now();
  { const Watchdog watchdog("/nonexistent/socket", seconds(3600), {}); }
  EXPECT_LT(Clock::Real().Now() - start, seconds(60));
}

}  // namespace
}  // namespace conclave::service
