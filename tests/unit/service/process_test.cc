// Goal: a process starts well with closed descriptors and a careless umask (bad inputs, L12, L14).
// Method: children of the death-test kind, which say by their exit code what they found.
#include "conclave/service/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>

#include "conclave/testing/temp_folder.h"

namespace conclave::service {
namespace {

void SetSoftOpenFiles(rlim_t soft) {
  rlimit limit{};
  ::getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = soft;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

class ProcessDeathTest : public ::testing::Test {
 protected:
  ProcessDeathTest() { ::testing::FLAGS_gtest_death_test_style = "threadsafe"; }
};

TEST_F(ProcessDeathTest, L12ClosedStandardDescriptorsAreFilled) {
  EXPECT_EXIT(
      {
        ::close(STDIN_FILENO);
        ::close(STDOUT_FILENO);
        const bool is_prepared = PrepareProcess().ok();
        const int next = ::open("/dev/null", O_RDONLY);
        std::_Exit(is_prepared && next > STDERR_FILENO && ::write(STDOUT_FILENO, "x", 1) == 1 ? 0
                                                                                              : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(ProcessDeathTest, L12CarelessUmaskLetsNobodyElseWrite) {
  const testing::TempFolder temp;
  const std::string file = temp.path() + "/made";
  EXPECT_EXIT(
      {
        ::umask(0);
        const bool is_prepared = PrepareProcess().ok();
        ::close(::open(file.c_str(), O_CREAT | O_WRONLY, 0666));
        struct stat status {};
        ::stat(file.c_str(), &status);
        std::_Exit(is_prepared && (status.st_mode & 0777) == 0644 ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(ProcessDeathTest, L12StrictUmaskStays) {
  EXPECT_EXIT(
      {
        ::umask(077);
        const bool is_prepared = PrepareProcess().ok();
        std::_Exit(is_prepared && ::umask(0) == 077 ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(ProcessDeathTest, L14OpenFilesAreRaisedToTheHardLimit) {
  EXPECT_EXIT(
      {
        SetSoftOpenFiles(64);
        const bool is_raised = RaiseOpenFilesLimit(128) == 128;
        const bool is_kept = RaiseOpenFilesLimit(32) == 128;
        std::_Exit(is_raised && is_kept ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST_F(ProcessDeathTest, SR21DumpsAreForbidden) {
  EXPECT_EXIT(
      {
        ForbidDumps();
        std::_Exit(::prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0 ? 0 : 1);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace conclave::service
