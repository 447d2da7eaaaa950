// Goal: a bar on a terminal, a line every few seconds otherwise, and no flood in either.
// Method: a clock that the test moves and functions that collect what is shown.
#include "conclave/service/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace conclave::service {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

class ManualClock final : public Clock {
 public:
  MonotonicTime Now() const override { return now_; }
  void Move(milliseconds by) { now_ += by; }

 private:
  MonotonicTime now_{};
};

struct Line {
  double fraction;
  std::string what;
  double rate;
};

class ProgressTest : public ::testing::Test {
 protected:
  ProgressOptions Options(bool is_terminal) {
    return {.label = "loading",
            .is_terminal = is_terminal,
            .write_bar = [this](std::string_view text) { bars_.emplace_back(text); },
            .write_line =
                [this](double fraction, const std::string& what, double rate) {
                  lines_.push_back({fraction, what, rate});
                },
            .clock = &clock_};
  }

  ManualClock clock_;
  std::vector<std::string> bars_;
  std::vector<Line> lines_;
};

TEST_F(ProgressTest, LogGetsALineEveryThreeSecondsWithTheRate) {
  Progress progress(Options(false));
  for (int i = 1; i <= 70; ++i) {
    clock_.Move(milliseconds(100));
    progress.Update(i / 100.0, "experts", int64_t{1'000'000} * i);
  }
  ASSERT_EQ(lines_.size(), 2U);
  EXPECT_NEAR(lines_[0].fraction, 0.3, 1e-9);
  EXPECT_EQ(lines_[1].what, "experts");
  EXPECT_NEAR(lines_[1].rate, 1e7, 1);
  EXPECT_TRUE(bars_.empty());
}

TEST_F(ProgressTest, ShortWorkIsSilentInALog) {
  {
    Progress progress(Options(false));
    progress.Update(0.5, "x");
    progress.Finish();
  }
  EXPECT_TRUE(lines_.empty());
  EXPECT_TRUE(bars_.empty());
}

TEST_F(ProgressTest, TerminalGetsABarAtMostTenTimesASecondAndIsCleared) {
  {
    Progress progress(Options(true));
    for (int i = 0; i < 100; ++i) {
      progress.Update(0.5, "experts", 2'000'000);
      clock_.Move(milliseconds(10));
    }
  }
  ASSERT_EQ(bars_.size(), 11U);
  EXPECT_THAT(bars_[1],
              HasSubstr("loading [###############...............] 50% experts 20.0 MB/s"));
  EXPECT_EQ(bars_.back(), "\r\x1b[K");
}

TEST_F(ProgressTest, FractionOnlyGrowsAndStaysInRange) {
  Progress progress(Options(false));
  progress.Update(0.5, "");
  progress.Update(0.2, "");
  EXPECT_EQ(progress.fraction(), 0.5);
  progress.Update(7.0, "");
  EXPECT_EQ(progress.fraction(), 1.0);
}

TEST_F(ProgressTest, FinishIsOne) {
  Progress progress(Options(true));
  progress.Update(0.1, "");
  progress.Finish();
  EXPECT_EQ(progress.fraction(), 1.0);
  EXPECT_EQ(bars_.back(), "\r\x1b[K");
}

}  // namespace
}  // namespace conclave::service
