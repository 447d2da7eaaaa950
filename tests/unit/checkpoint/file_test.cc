// Goal: read errors are tried again, then reported with file and offset.
// Method: a pread that fails as told, in place of the system's.
#include "file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "conclave/base/status.h"
#include "small_model.h"

namespace conclave::checkpoint {
namespace {

using ::testing::HasSubstr;

int failures_left = 0;
int error_to_give = EIO;

// Fails at byte 3 and beyond as long as failures are left; gives one byte at a time.
ssize_t FlakyPread(int fd, void* buffer, size_t size, off_t offset) {
  if (offset >= 3 && failures_left > 0) {
    --failures_left;
    errno = error_to_give;
    return -1;
  }
  return ::pread(fd, buffer, std::min<size_t>(size, 1), offset);
}

class ReadExactlyTest : public ::testing::Test {
 protected:
  ReadExactlyTest() {
    WriteFile(folder_ / "a.json", "0123456789");
    file_ = *ModelFolder::Open(folder_.path())->OpenFile("a.json");
    error_to_give = EIO;
  }

  TemporaryFolder folder_;
  OpenedFile file_;
  std::string out_ = std::string(6, '\0');
};

TEST_F(ReadExactlyTest, ShortReadsAreContinued) {
  failures_left = 0;
  ASSERT_TRUE(ReadExactly(file_, 2, out_, &FlakyPread).ok());
  EXPECT_EQ(out_, "234567");
}

TEST_F(ReadExactlyTest, TwoErrorsAreOvercome) {
  failures_left = 2;
  ASSERT_TRUE(ReadExactly(file_, 2, out_, &FlakyPread).ok());
  EXPECT_EQ(out_, "234567");
}

TEST_F(ReadExactlyTest, C25_ThreeErrorsAreReportedWithTheirOffset) {
  failures_left = 3;
  const absl::Status status = ReadExactly(file_, 2, out_, &FlakyPread);
  EXPECT_EQ(ReasonOf(status), "model_read_error");
  EXPECT_THAT(MessageOf(status), HasSubstr("a.json"));
  EXPECT_THAT(MessageOf(status), HasSubstr("byte 3"));
  EXPECT_EQ(failures_left, 0);
}

TEST_F(ReadExactlyTest, InterruptedReadsDoNotCount) {
  failures_left = 50;
  error_to_give = EINTR;
  ASSERT_TRUE(ReadExactly(file_, 2, out_, &FlakyPread).ok());
  EXPECT_EQ(out_, "234567");
}

TEST_F(ReadExactlyTest, C12_EarlyEndIsAChange) {
  failures_left = 0;
  const absl::Status status = ReadExactly(file_, 7, out_, &FlakyPread);
  EXPECT_EQ(ReasonOf(status), "model_changed_during_load");
  EXPECT_THAT(MessageOf(status), HasSubstr("byte 10"));
}

TEST(ModelFolderTest, NamesThatAreNoNamesAreRefused) {
  const TemporaryFolder folder;
  const auto opened = ModelFolder::Open(folder.path());
  ASSERT_TRUE(opened.ok());
  for (const std::string& name :
       {std::string(), std::string("."), std::string(".."), std::string("a/b"),
        std::string("/etc/hosts"), std::string("a\0b", 3)}) {
    EXPECT_EQ(ReasonOf(opened->OpenFile(name).status()), "model_path_escape");
  }
}

}  // namespace
}  // namespace conclave::checkpoint
