// Goal: the ready line has exactly its form, comes first on stdout, and its two companions are
// told. Method: pipes and a datagram socket of the test in place of the real ones.
#include "conclave/service/ready.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <string>

#include "conclave/base/status.h"
#include "conclave/testing/temp_folder.h"
#include "notify_socket.h"

namespace conclave::service {
namespace {

ReadyState Serve() {
  return {"serve", {{"api", "http://127.0.0.1:8000"}, {"admin", "http://127.0.0.1:9000"}}, 4711};
}

TEST(ReadyTest, LineHasRoleEndpointsAndPid) {
  EXPECT_EQ(ReadyLine(Serve()),
            "ready role=serve api=http://127.0.0.1:8000 admin=http://127.0.0.1:9000 pid=4711");
  EXPECT_EQ(ReadyLine({"worker", {{"data", "127.0.0.1:5"}}, 1}),
            "ready role=worker data=127.0.0.1:5 pid=1");
}

TEST(ReadyTest, AnnouncesOnStdoutFdAndSocket) {
  const testing::TempFolder temp;
  const std::string path = temp.path() + "/notify";
  const testing::NotifySocket socket(path);
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  ::testing::internal::CaptureStdout();
  const absl::Status status = AnnounceReady(Serve(), pipe[1], path);
  EXPECT_EQ(::testing::internal::GetCapturedStdout(), ReadyLine(Serve()) + "\n");
  ASSERT_TRUE(status.ok()) << status;
  std::array<char, 8> buffer{};
  EXPECT_EQ(::read(pipe[0], buffer.data(), buffer.size()), 1);
  EXPECT_EQ(::read(pipe[0], buffer.data(), buffer.size()), 0)
      << "the descriptor is closed behind the byte";
  ::close(pipe[0]);
  EXPECT_EQ(socket.Take(), "READY=1");
}

TEST(ReadyTest, AbstractSocketIsTold) {
  const std::string name = "@conclave-ready-test-" + std::to_string(::getpid());
  const testing::NotifySocket socket(name);
  ASSERT_TRUE(NotifyServiceManager(name, "STOPPING=1").ok());
  EXPECT_EQ(socket.Take(), "STOPPING=1");
}

TEST(ReadyTest, NoSocketIsFineAndABadOneIsAnError) {
  EXPECT_TRUE(NotifyServiceManager("", "READY=1").ok());
  for (const std::string& name :
       {std::string("relative"), "/" + std::string(200, 'x'), std::string("/nonexistent/s")}) {
    EXPECT_EQ(NotifyServiceManager(name, "READY=1").code(), absl::StatusCode::kUnavailable) << name;
  }
}

TEST(ReadyTest, ServiceManagerThatIsGoneDoesNotStopTheServer) {
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  const absl::Status status = AnnounceReady(Serve(), -1, "/nonexistent/socket");
  ::testing::internal::GetCapturedStderr();
  ::testing::internal::GetCapturedStdout();
  EXPECT_TRUE(status.ok()) << status;
}

TEST(ReadyTest, ReadyFdMustBeOpenAndNoStandardOne) {
  EXPECT_TRUE(CheckReadyFd(-1).ok());
  for (const int fd : {0, 1, 2, 1'000'000}) {
    const absl::Status status = CheckReadyFd(fd);
    EXPECT_EQ(ReasonOf(status), "usage") << fd;
  }
  std::array<int, 2> pipe{};
  ASSERT_EQ(::pipe2(pipe.data(), O_CLOEXEC), 0);
  EXPECT_TRUE(CheckReadyFd(pipe[1]).ok());
  ::close(pipe[0]);
  ::close(pipe[1]);
}

}  // namespace
}  // namespace conclave::service
