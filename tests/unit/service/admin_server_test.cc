// Goal: the admin listener answers its three paths and nothing else, whatever is sent to it.
// Method: raw sockets against a server on a free port.
#include "conclave/service/admin_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <vector>

#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "raw_client.h"

namespace conclave::service {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class AdminServerTest : public ::testing::Test {
 protected:
  AdminServerTest() {
    AdminServerOptions options;
    options.metrics_text = [this] { return page_; };
    options.health = [this] {
      return is_ready_ ? Health{true, "ready", 1.0} : Health{false, "loading", 0.42};
    };
    auto server = AdminServer::Start(std::move(options));
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  std::string page_ = "# TYPE a counter\na 1\n";
  std::atomic<bool> is_ready_{false};
  std::unique_ptr<AdminServer> server_;
};

TEST_F(AdminServerTest, ServesMetrics) {
  const std::string reply = Get(server_->port(), "/metrics?x=1");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_THAT(reply, HasSubstr("text/plain; version=0.0.4"));
  EXPECT_THAT(reply, ::testing::EndsWith("\r\n\r\n" + page_));
}

TEST_F(AdminServerTest, ReadinessFollowsTheProcess) {
  std::string reply = Get(server_->port(), "/health/ready");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(reply, HasSubstr(R"({"status":"loading","progress":0.42})"));
  is_ready_ = true;
  reply = Get(server_->port(), "/health/ready");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(reply, HasSubstr(R"({"status":"ready"})"));
}

TEST_F(AdminServerTest, LiveIsAlwaysOk) {
  EXPECT_THAT(Get(server_->port(), "/health/live"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(AdminServerTest, SR3EverythingElseIsNotFound) {
  for (const char* path : {"/", "/debug", "/metrics/", "/metrics/../x", "//metrics", "/v1/models",
                           "/health", "/%6detrics", "*"}) {
    EXPECT_THAT(Get(server_->port(), path), StartsWith("HTTP/1.1 404 ")) << path;
  }
}

TEST_F(AdminServerTest, OnlyGetAndHead) {
  for (const char* method : {"POST", "PUT", "DELETE", "OPTIONS", "TRACE"}) {
    const std::string reply = Get(server_->port(), "/metrics", method);
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 405 ")) << method;
    EXPECT_THAT(reply, HasSubstr("Allow: GET, HEAD\r\n"));
  }
  const std::string head = Get(server_->port(), "/metrics", "HEAD");
  EXPECT_THAT(head, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(head, Not(HasSubstr("TYPE")));
}

// This build has failpoints; a release answers 404 (tests/release_test.py).
TEST_F(AdminServerTest, FailpointsAreSetAndReported) {
  const auto put = [this](const std::string& setting) {
    return Exchange(server_->port(),
                    "PUT /debug/failpoints HTTP/1.1\r\nHost: x\r\nConnection: "
                    "close\r\nContent-Length: " +
                        std::to_string(setting.size()) + "\r\n\r\n" + setting);
  };
  EXPECT_THAT(put("test.admin=flip:1"), HasSubstr("\r\n\r\ntest.admin 0\n"));
  EXPECT_TRUE(CONCLAVE_FAILPOINT("test.admin", {}).is_hit());
  EXPECT_THAT(Get(server_->port(), "/debug/failpoints"), HasSubstr("test.admin 1\n"));
  const std::string refused = put("test.admin=nothing");
  EXPECT_THAT(refused, StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(refused, HasSubstr("expected an action"));
  EXPECT_THAT(put(""), ::testing::EndsWith("\r\n\r\n"));
  EXPECT_FALSE(CONCLAVE_FAILPOINT("test.admin", {}).is_hit());
}

TEST_F(AdminServerTest, OneConnectionServesSeveralRequests) {
  const std::string reply =
      Exchange(server_->port(),
               "GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
               "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(reply, HasSubstr(R"({"status":"ok"})"));
  EXPECT_THAT(reply, HasSubstr("a 1\n"));
}

TEST_F(AdminServerTest, GarbageAndTooLargeHeadersAreRefusedAndTheServerLives) {
  EXPECT_THAT(Exchange(server_->port(), "this is not HTTP\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
  EXPECT_THAT(Exchange(server_->port(), std::string("\0\xff\x16\x03", 4) + "\r\n\r\n"),
              StartsWith("HTTP/1.1 400 "));
  const std::string large =
      "GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + std::string(100'000, 'x') + "\r\n\r\n";
  EXPECT_THAT(Exchange(server_->port(), large), Not(HasSubstr("200 OK")));
  EXPECT_THAT(Get(server_->port(), "/health/live"), StartsWith("HTTP/1.1 200 "));
}

TEST_F(AdminServerTest, LargeBodyIsRefusedUnread) {
  const std::string reply = Exchange(
      server_->port(), "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 413 "));
}

TEST_F(AdminServerTest, SR25PageAboveOneMebibyteIsNotSent) {
  page_ = std::string((1 << 20) + 1, 'x');
  const std::string reply = Get(server_->port(), "/metrics");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 500 "));
  EXPECT_LT(reply.size(), 1000U);
}

TEST_F(AdminServerTest, SilentConnectionsDoNotBlockOthers) {
  std::vector<int> silent;
  for (int i = 0; i < 20; ++i) {
    silent.push_back(Connect(server_->port()));
  }
  EXPECT_THAT(Get(server_->port(), "/health/live"), StartsWith("HTTP/1.1 200 "));
  for (const int fd : silent) {
    ::close(fd);
  }
}

TEST_F(AdminServerTest, StopsWithOpenConnections) {
  const int fd = Connect(server_->port());
  server_.reset();
  EXPECT_EQ(ReadAll(fd), "");
  ::close(fd);
}

TEST_F(AdminServerTest, L03AddressInUseAndNotLocal) {
  AdminServerOptions options;
  options.port = server_->port();
  const auto in_use = AdminServer::Start(options);
  ASSERT_FALSE(in_use.ok());
  EXPECT_EQ(ReasonOf(in_use.status()), "bind");
  EXPECT_EQ(MessageOf(in_use.status()),
            "bind 127.0.0.1:" + std::to_string(server_->port()) + ": Address already in use");
  options.host = "192.0.2.1";  // RFC 5737: nobody has it.
  options.port = 8000;
  EXPECT_THAT(MessageOf(AdminServer::Start(options).status()), StartsWith("bind 192.0.2.1:8000: "));
}

}  // namespace
}  // namespace conclave::service
