// Goal: a stream brings its pieces in order and ends with its client; replies come from any thread
// at any time, also when client or server have gone. Method: handlers that hand their reply to the
// test, which answers when it likes.
#include <gmock/gmock.h>

#include <atomic>
#include <deque>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/service/admin_server.h"
#include "raw_client.h"

namespace conclave::service {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ReplyPtr = std::shared_ptr<AdminReply>;

constexpr std::chrono::seconds kPatience{20};
constexpr char kHead[] = "\r\n\r\n";

std::shared_ptr<const std::string> Piece(std::string text) {
  return std::make_shared<const std::string>(std::move(text));
}

class AdminStreamTest : public ::testing::Test {
 protected:
  AdminStreamTest() {
    AdminServerOptions options;
    AdminRoute later;
    later.method = "GET";
    later.path = "/later";
    later.handler = [this](const AdminRequest&, ReplyPtr reply) { Keep(std::move(reply)); };
    AdminRoute stream = later;
    stream.path = "/stream";
    stream.handler = [this](const AdminRequest&, ReplyPtr reply) {
      reply->BeginStream("text/event-stream", [this] {
        MutexLock lock(mu_);
        ++num_closed_;
        changed_.NotifyAll();
      });
      Keep(std::move(reply));
    };
    options.routes = {later, stream};
    auto server = AdminServer::Start(std::move(options));
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // The reply of the request that came first; null when none comes.
  ReplyPtr Take() {
    WaitFor([this]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return !replies_.empty(); });
    MutexLock lock(mu_);
    if (replies_.empty()) {
      ADD_FAILURE() << "no request came";
      return nullptr;
    }
    ReplyPtr reply = std::move(replies_.front());
    replies_.pop_front();
    return reply;
  }
  bool WaitForClosed(int count) {
    return WaitFor([this, count]() ABSL_NO_THREAD_SAFETY_ANALYSIS { return num_closed_ >= count; });
  }
  int num_closed() {
    MutexLock lock(mu_);
    return num_closed_;
  }
  // A connection that has asked for `path`.
  int Ask(const std::string& path, const std::string& method = "GET") {
    const int fd = Connect(server_->port());
    const std::string request = method + " " + path + " HTTP/1.1\r\nHost: x\r\n\r\n";
    (void)::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
    return fd;
  }

  Mutex mu_;
  CondVar changed_;
  std::deque<ReplyPtr> replies_ ABSL_GUARDED_BY(mu_);
  int num_closed_ ABSL_GUARDED_BY(mu_) = 0;
  std::unique_ptr<AdminServer> server_;

 private:
  void Keep(ReplyPtr reply) {
    MutexLock lock(mu_);
    replies_.push_back(std::move(reply));
    changed_.NotifyAll();
  }
  template <typename Condition>
  bool WaitFor(Condition condition) {
    const MonotonicTime end = Clock::Real().Now() + kPatience;
    MutexLock lock(mu_);
    while (!condition() && Clock::Real().Now() < end) {
      changed_.WaitFor(mu_, std::chrono::seconds(1));
    }
    return condition();
  }
};

TEST_F(AdminStreamTest, PiecesArriveInOrderAndTheEndOfTheClientIsToldOnce) {
  const int fd = Ask("/stream");
  const ReplyPtr reply = Take();
  const std::string head = ReadAll(fd, kHead);
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"));
  EXPECT_THAT(head, HasSubstr("Cache-Control: no-store\r\n"));
  EXPECT_THAT(head, HasSubstr("Connection: close\r\n"));
  std::string expected;
  for (int i = 0; i < 500; ++i) {
    expected += std::to_string(i) + ";";
    reply->Write(Piece(std::to_string(i) + ";"));
  }
  EXPECT_EQ(ReadAll(fd, ";499;"), expected);
  reply->Send(200, "text/plain", "no stream any more");  // not in the middle of one
  reply->Write(Piece("last"));
  EXPECT_EQ(ReadAll(fd, "last"), "last");
  EXPECT_EQ(num_closed(), 0);
  ::close(fd);
  EXPECT_TRUE(WaitForClosed(1));
  reply->Write(Piece("too late"));
  server_.reset();
  EXPECT_EQ(num_closed(), 1);
}

TEST_F(AdminStreamTest, AStreamLivesWithoutItsReplyUntilTheClientGoes) {
  const int fd = Ask("/stream");
  Take().reset();
  EXPECT_THAT(ReadAll(fd, kHead), EndsWith(kHead));
  EXPECT_EQ(num_closed(), 0);
  ::close(fd);
  EXPECT_TRUE(WaitForClosed(1));
}

TEST_F(AdminStreamTest, WhoDoesNotReadIsCutAndOthersAreNot) {
  const int slow = Ask("/stream");
  const ReplyPtr to_slow = Take();
  const int good = Ask("/stream");
  const ReplyPtr to_good = Take();
  const auto piece = Piece(std::string(1 << 20, 'x'));
  // More than all buffers between the two hold.
  for (int i = 0; i < 64; ++i) {
    to_slow->Write(piece);
  }
  EXPECT_TRUE(WaitForClosed(1));
  to_good->Write(Piece("good"));
  EXPECT_THAT(ReadAll(good, "good"), EndsWith("good"));
  EXPECT_EQ(num_closed(), 1);
  ::close(slow);
  ::close(good);
}

TEST_F(AdminStreamTest, HeadOfAStreamIsItsHead) {
  const int fd = Ask("/stream", "HEAD");
  const ReplyPtr reply = Take();
  reply->Write(Piece("body"));
  EXPECT_THAT(ReadAll(fd), EndsWith("Connection: close\r\n\r\n"));
  EXPECT_TRUE(WaitForClosed(1));
  ::close(fd);
}

TEST_F(AdminStreamTest, RepliesOfOtherThreadsReachTheirOwnRequests) {
  constexpr int kNumRequests = 30;
  std::vector<int> connections;
  std::vector<ReplyPtr> replies;
  for (int i = 0; i < kNumRequests; ++i) {
    connections.push_back(Ask("/later"));
    replies.push_back(Take());
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&replies, t] {
      for (int i = t; i < kNumRequests; i += 3) {
        replies[static_cast<size_t>(i)]->Send(200, "text/plain",
                                              "answer " + std::to_string(i) + ".");
      }
    });
  }
  for (int i = 0; i < kNumRequests; ++i) {
    EXPECT_THAT(ReadAll(connections[static_cast<size_t>(i)], "."),
                EndsWith("\r\n\r\nanswer " + std::to_string(i) + "."));
    ::close(connections[static_cast<size_t>(i)]);
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
}

TEST_F(AdminStreamTest, AConnectionServesTheNextRequestBehindALateAnswer) {
  const int fd = Ask("/later");
  Take()->Send(200, "text/plain", "one.");
  EXPECT_THAT(ReadAll(fd, "."), EndsWith("one."));
  const std::string request = "GET /later HTTP/1.1\r\nHost: x\r\n\r\n";
  (void)::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
  Take()->Send(200, "text/plain", "two.");
  EXPECT_THAT(ReadAll(fd, "two."), EndsWith("two."));
  ::close(fd);
}

TEST_F(AdminStreamTest, ARequestThatNobodyAnswersEndsItsConnection) {
  const int fd = Ask("/later");
  Take().reset();
  EXPECT_EQ(ReadAll(fd), "");
  ::close(fd);
}

TEST_F(AdminStreamTest, AnAnswerForAClientThatHasGoneIsDropped) {
  ::close(Ask("/later"));
  const ReplyPtr reply = Take();
  reply->Send(200, "text/plain", "x");
  EXPECT_THAT(Get(server_->port(), "/health/live"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(AdminStreamTest, TheServersEndEndsStreamsAndWhatComesBehindItIsDropped) {
  const int stream = Ask("/stream");
  const ReplyPtr to_stream = Take();
  EXPECT_THAT(ReadAll(stream, kHead), EndsWith(kHead));
  const int later = Ask("/later");
  const ReplyPtr pending = Take();
  std::atomic<bool> is_over{false};
  std::thread writer([&] {
    while (!is_over) {
      to_stream->Write(Piece("x"));
      std::this_thread::yield();
    }
  });
  server_.reset();
  EXPECT_EQ(num_closed(), 1);
  EXPECT_EQ(ReadAll(later), "");
  is_over = true;
  writer.join();
  pending->Send(200, "text/plain", "too late");
  to_stream->Write(Piece("too late"));
  EXPECT_THAT(ReadAll(stream), ::testing::Not(HasSubstr("too late")));
  EXPECT_EQ(num_closed(), 1);
  ::close(stream);
  ::close(later);
}

}  // namespace
}  // namespace conclave::service
