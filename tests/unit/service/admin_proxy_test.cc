// Goal: a request that is handed on reaches the other server without what concerns the client's
// connection alone, and its answer comes back byte for byte. Method: a server that says what the
// test tells it to.
#include <gmock/gmock.h>

#include <thread>

#include "conclave/base/clock.h"
#include "conclave/base/status.h"
#include "conclave/service/admin_server.h"
#include "raw_client.h"
#include "scripted_http.h"

namespace conclave::service {
namespace {

using router_service::HttpReply;
using router_service::ScriptedHttp;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

class AdminProxyTest : public ::testing::Test {
 protected:
  AdminProxyTest() {
    AdminServerOptions options;
    AdminRoute route;
    route.method = "POST";
    route.path = "/v1/chat";
    route.body_bytes_max = 1 << 20;
    route.upstream = [this] { return upstream_; };
    options.routes = {route, route};
    options.routes[1].method = "GET";
    auto server = AdminServer::Start(std::move(options));
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  uint16_t port() const { return server_->port(); }
  static void SendGet(int fd) {
    const std::string request = "GET /v1/chat HTTP/1.1\r\nHost: x\r\n\r\n";
    (void)::send(fd, request.data(), request.size(), MSG_NOSIGNAL);
  }
  // Until the other server has been asked so often.
  bool WaitForRequests(int count) const {
    const MonotonicTime end = Clock::Real().Now() + std::chrono::seconds(20);
    while (other_.num_requests() < count && Clock::Real().Now() < end) {
      std::this_thread::yield();
    }
    return other_.num_requests() >= count;
  }

  std::string reply_ = HttpReply("{}");
  std::string head_, path_, body_;  // as the other server saw them
  ScriptedHttp other_{[this](const std::string& path, const std::string& body) {
    head_ = other_.head();
    path_ = path;
    body_ = body;
    return reply_;
  }};
  absl::StatusOr<Address> upstream_ = other_.address();
  std::unique_ptr<AdminServer> server_;
};

TEST_F(AdminProxyTest, TheRequestArrivesWithWhatConcernsIt) {
  const std::string body(200'000, 'x');
  Post(port(), "/v1/chat?q=1", body,
       "Authorization: Bearer k\r\nAccept: text/event-stream\r\nKeep-Alive: 5\r\nTE: trailers\r\n"
       "Cookie: a=b\r\nX-Forwarded-For: 1.2.3.4\r\nUpgrade: websocket\r\n");
  EXPECT_EQ(path_, "/v1/chat?q=1");
  EXPECT_EQ(body_, body);
  EXPECT_THAT(head_, StartsWith("POST /v1/chat?q=1 HTTP/1.1\r\n"));
  EXPECT_THAT(head_, HasSubstr("Host: " + ToString(other_.address()) + "\r\n"));
  EXPECT_THAT(head_, HasSubstr("Content-Type: application/json\r\n"));
  EXPECT_THAT(head_, HasSubstr("Authorization: Bearer k\r\n"));
  EXPECT_THAT(head_, HasSubstr("Accept: text/event-stream\r\n"));
  EXPECT_THAT(head_, HasSubstr("Connection: close\r\n"));
  for (const char* dropped : {"Keep-Alive", "TE:", "Cookie", "X-Forwarded-For", "Upgrade"}) {
    EXPECT_THAT(head_, Not(HasSubstr(dropped)));
  }
}

TEST_F(AdminProxyTest, TheAnswerComesBackAsItIs) {
  for (const std::string& reply :
       {HttpReply("{\"a\":1}"), HttpReply(R"({"error":{"code":"overloaded"}})", "429 Busy"),
        std::string("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                    "7\r\ndata: a\r\n5\r\ndata:\r\n0\r\n\r\n"),
        HttpReply(std::string(3 << 20, '\xff')), std::string("no HTTP at all")}) {
    reply_ = reply;
    EXPECT_EQ(Post(port(), "/v1/chat", "{}"), reply);
  }
}

TEST_F(AdminProxyTest, GetAndHeadAreHandedOnToo) {
  EXPECT_EQ(Get(port(), "/v1/chat"), reply_);
  EXPECT_THAT(head_, StartsWith("GET /v1/chat HTTP/1.1\r\n"));
  Get(port(), "/v1/chat", "HEAD");
  EXPECT_THAT(head_, StartsWith("HEAD /v1/chat HTTP/1.1\r\n"));
}

TEST_F(AdminProxyTest, WhoRefusesAPostRefusesItHere) {
  EXPECT_THAT(Post(port(), "/v1/chat", "{}", "Origin: http://evil.example\r\n"),
              StartsWith("HTTP/1.1 403 "));
  EXPECT_EQ(other_.num_requests(), 0);
}

TEST_F(AdminProxyTest, NobodyThereIsAReason) {
  upstream_ = Error(absl::StatusCode::kUnavailable, "no_frontend", "nobody is connected");
  std::string reply = Post(port(), "/v1/chat", "{}");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(BodyOf(reply), R"({"error":{"code":"no_frontend","message":"nobody is connected"}})");
  upstream_ = Address{"127.0.0.1", 1};  // nobody listens on it
  reply = Post(port(), "/v1/chat", "{}");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(BodyOf(reply),
            R"({"error":{"code":"connect","message":"127.0.0.1:1: Connection refused"}})");
  upstream_ = Address{"frontend.example", 80};
  EXPECT_THAT(Post(port(), "/v1/chat", "{}"), HasSubstr("expected a numeric address"));
}

TEST_F(AdminProxyTest, AClientThatGoesAwayEndsItsRequestThere) {
  reply_ = "";  // silent until its client has gone
  const int fd = Connect(port());
  SendGet(fd);
  ASSERT_TRUE(WaitForRequests(1));
  ::close(fd);
  // The other server takes one connection after the other: the next shows the end of that one.
  const int next = Connect(other_.address().port);
  SendGet(next);
  EXPECT_TRUE(WaitForRequests(2));
  ::close(next);
}

TEST_F(AdminProxyTest, EndsWithRequestsUnderWay) {
  reply_ = "";
  const int fd = Connect(port());
  SendGet(fd);
  ASSERT_TRUE(WaitForRequests(1));
  server_.reset();
  EXPECT_EQ(ReadAll(fd), "");
  ::close(fd);
}

}  // namespace
}  // namespace conclave::service
