// Goal: results reach stdout whole, a reader that goes away is no error, a terminal cannot be
// steered by an answer. Method: stdout of a child is a closed pipe or a full device.
#include "output.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

namespace conclave::cli {
namespace {

TEST(OutputTest, WritesAll) {
  ::testing::internal::CaptureStdout();
  EXPECT_EQ(PrintResult("a\nb\n"), 0);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), "a\nb\n");
}

TEST(OutputDeathTest, L12ReaderThatHasGoneEndsQuietly) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        ::signal(SIGPIPE, SIG_IGN);
        int pipe[2];
        const bool has_pipe = ::pipe(pipe) == 0;
        ::close(pipe[0]);
        ::dup2(pipe[1], STDOUT_FILENO);
        std::_Exit(has_pipe ? PrintResult("x\n") : 1);
      },
      ::testing::ExitedWithCode(0), "^$");
}

TEST(OutputDeathTest, FullDeviceIsAnError) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO);
        std::_Exit(PrintResult("x\n"));
      },
      ::testing::ExitedWithCode(70),
      "^error: stdout: cannot be written: No space left on device\n$");
}

TEST(OutputTest, TerminalSafeKeepsTextAndDropsControls) {
  EXPECT_EQ(TerminalSafe("a\tb\nc \xc3\xa9"), "a\tb\nc \xc3\xa9");
  EXPECT_EQ(TerminalSafe("a\x1b[31mb\x07\rc\x7f"), "a[31mbc");
  EXPECT_EQ(TerminalSafe("a\xc2\x9b"
                         "31mb"),
            "a31mb");
}

}  // namespace
}  // namespace conclave::cli
