// Goal: a request reaches the route of its path and method with all that it said, and what no route
// takes is refused with a reason. Method: raw requests to routes that say what they were given.
#include <gmock/gmock.h>

#include "conclave/base/status.h"
#include "conclave/service/admin_server.h"
#include "raw_client.h"

namespace conclave::service {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// Answers with `name` and what it was asked.
AdminRoute Telling(const std::string& method, const std::string& path, const std::string& name) {
  AdminRoute route;
  route.method = method;
  route.path = path;
  route.handler = [name](const AdminRequest& request, const std::shared_ptr<AdminReply>& reply) {
    reply->Send(200, "text/x-told",
                name + " " + request.path + " [" + request.query + "] [" + request.authorization +
                    "] [" + request.body + "]",
                {{"X-More", "yes"}, {"Cache-Control", "no-cache"}});
  };
  return route;
}

class AdminRoutesTest : public ::testing::Test {
 protected:
  AdminRoutesTest() {
    AdminServerOptions options;
    options.routes = {Telling("GET", "/", "root"), Telling("GET", "/app/", "app"),
                      Telling("GET", "/both", "get"), Telling("POST", "/both", "post"),
                      Telling("POST", "/change", "change")};
    options.routes.back().body_bytes_max = 20;
    auto server = AdminServer::Start(std::move(options));
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  uint16_t port() const { return server_->port(); }

  std::unique_ptr<AdminServer> server_;
};

TEST_F(AdminRoutesTest, PathsAreExactOrEverythingBelow) {
  EXPECT_EQ(BodyOf(Get(port(), "/?a=1&b")), "root / [a=1&b] [] []");
  EXPECT_EQ(BodyOf(Get(port(), "/app/")), "app /app/ [] [] []");
  EXPECT_EQ(BodyOf(Get(port(), "/app/x/y.js?")), "app /app/x/y.js [] [] []");
  EXPECT_EQ(BodyOf(Get(port(), "/both")), "get /both [] [] []");
  for (const char* path : {"/app", "/bot", "/both/", "/both/x", "/x"}) {
    const std::string reply = Get(port(), path);
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 404 ")) << path;
    EXPECT_EQ(BodyOf(reply), R"({"error":{"code":"not_found","message":"no such path"}})");
  }
  EXPECT_THAT(Get(port(), "/health/live"), HasSubstr(R"({"status":"ok"})")) << "still its own";
}

TEST_F(AdminRoutesTest, ARoutesHeadersReplaceOurs) {
  const std::string reply = Get(port(), "/both");
  EXPECT_THAT(reply, HasSubstr("Content-Type: text/x-told\r\n"));
  EXPECT_THAT(reply, HasSubstr("X-More: yes\r\n"));
  EXPECT_THAT(reply, HasSubstr("X-Content-Type-Options: nosniff\r\n"));
  EXPECT_THAT(reply, HasSubstr("Cache-Control: no-cache\r\n"));
  EXPECT_THAT(reply, Not(HasSubstr("no-store")));
}

TEST_F(AdminRoutesTest, HeadIsGetWithoutItsBody) {
  const std::string reply = Get(port(), "/both", "HEAD");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(reply, HasSubstr("Content-Length: 18\r\n"));
  EXPECT_EQ(BodyOf(reply), "");
}

TEST_F(AdminRoutesTest, PostBringsItsBodyAndKey) {
  EXPECT_EQ(BodyOf(Post(port(), "/both?q", R"({"a":1})", "Authorization: Bearer k\r\n")),
            R"(post /both [q] [Bearer k] [{"a":1}])");
}

TEST_F(AdminRoutesTest, AnotherMethodIsToldWhatThePathTakes) {
  struct Case {
    const char *method, *path, *allow;
  };
  for (const Case& c : {Case{"POST", "/app/x", "GET, HEAD"}, Case{"GET", "/change", "POST"},
                        Case{"HEAD", "/change", "POST"}, Case{"PUT", "/change", "POST"},
                        Case{"DELETE", "/both", "GET, HEAD, POST"}}) {
    const std::string reply = Get(port(), c.path, c.method);
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 405 ")) << c.method << c.path;
    EXPECT_THAT(reply, HasSubstr(std::string("Allow: ") + c.allow + "\r\n")) << c.method << c.path;
  }
  EXPECT_EQ(BodyOf(Get(port(), "/change", "PUT")),
            R"({"error":{"code":"method_not_allowed","message":"expected the method POST"}})");
}

TEST_F(AdminRoutesTest, ABodyIsTakenUpToTheRoutesBound) {
  EXPECT_THAT(Post(port(), "/change", std::string(20, 'x')), EndsWith(std::string(20, 'x') + "]"));
  const std::string reply = Post(port(), "/change", std::string(21, 'x'));
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 413 "));
  EXPECT_EQ(BodyOf(reply), R"({"error":{"code":"body_too_large",)"
                           R"("message":"expected a body of at most 20 bytes"}})");
  // One that does not say how long it is.
  const std::string chunked =
      Exchange(port(),
               "POST /change HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
               "Transfer-Encoding: "
               "chunked\r\n\r\nf\r\n123456789012345\r\nf\r\n123456789012345\r\n0\r\n\r\n");
  EXPECT_THAT(chunked, StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(chunked, HasSubstr(R"("code":"body_too_large")"));
}

TEST_F(AdminRoutesTest, AClientThatWaitsForContinueGetsIt) {
  const std::string reply = Post(port(), "/change", "{}", "Expect: 100-continue\r\n");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"));
}

TEST_F(AdminRoutesTest, PostOfAnythingButJsonIsRefused) {
  for (const char* type : {"", "Content-Type: text/plain\r\n",
                           "Content-Type: application/x-www-form-urlencoded\r\n"}) {
    const std::string reply =
        Exchange(port(), std::string("POST /change HTTP/1.1\r\nHost: x\r\nConnection: close\r\n") +
                             type + "Content-Length: 2\r\n\r\n{}");
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 415 ")) << type;
    EXPECT_EQ(BodyOf(reply), R"({"error":{"code":"content_type_unsupported",)"
                             R"("message":"expected Content-Type: application/json"}})");
  }
}

TEST_F(AdminRoutesTest, ScriptsOfOtherSitesAreRefused) {
  const std::string own = "127.0.0.1:" + std::to_string(port());
  for (const std::string origin :
       {"http://evil.example", "null", "http://127.0.0.1", "https://127.0.0.1:1"}) {
    const std::string reply = Post(port(), "/change", "{}", "Origin: " + origin + "\r\n");
    EXPECT_THAT(reply, StartsWith("HTTP/1.1 403 ")) << origin;
    EXPECT_THAT(BodyOf(reply), HasSubstr(R"("code":"cross_origin")"));
  }
  EXPECT_THAT(Post(port(), "/change", "{}", "Origin: http://" + own + "\r\n"),
              StartsWith("HTTP/1.1 200 "));
}

// The page of a site whose name points here has its own Host and Origin right.
TEST_F(AdminRoutesTest, ANameThatPointsAtThisMachineIsAnotherSite) {
  const auto post = [this](const std::string& host) {
    return Exchange(port(), "POST /change HTTP/1.1\r\nHost: " + host + "\r\nOrigin: http://" +
                                host +
                                "\r\nConnection: close\r\nContent-Type: application/json\r\n"
                                "Content-Length: 2\r\n\r\n{}");
  };
  EXPECT_THAT(post("evil.example:8080"), StartsWith("HTTP/1.1 403 "));
  EXPECT_THAT(post("localhost:8080"), StartsWith("HTTP/1.1 200 "));
  EXPECT_THAT(post("[::1]:8080"), StartsWith("HTTP/1.1 200 "));
}

TEST(QueryValueTest, FindsANameAndDecodesItsValue) {
  EXPECT_EQ(QueryValue("worker=w1", "worker"), "w1");
  EXPECT_EQ(QueryValue("a=1&worker=w1&worker=w2", "worker"), "w1");
  EXPECT_EQ(QueryValue("workers=x&worker=", "worker"), "");
  EXPECT_EQ(QueryValue("workers=x", "worker"), "");
  EXPECT_EQ(QueryValue("worker", "worker"), "");
  EXPECT_EQ(QueryValue("", "worker"), "");
  EXPECT_EQ(QueryValue("&&w=a%20b+c%2Fd%3d%C3%A9", "w"), "a b c/d=\xC3\xA9");
  EXPECT_EQ(QueryValue("w=100%&v=1", "w"), "100%");
  EXPECT_EQ(QueryValue("w=%4&v=1", "w"), "%4");
  EXPECT_EQ(QueryValue("w=%zz%4g", "w"), "%zz%4g");
}

TEST(AdminErrorTest, HasTheReasonAndTheStatusOfItsCode) {
  EXPECT_EQ(AdminErrorBody(InvalidArgument("why", "a \"b\"")),
            R"({"error":{"code":"why","message":"a \"b\""}})");
  EXPECT_EQ(AdminErrorBody(absl::UnknownError("x")),
            R"({"error":{"code":"internal","message":"x"}})");
  using Code = absl::StatusCode;
  for (const auto& [code, status] :
       {std::pair(Code::kInvalidArgument, 400), std::pair(Code::kUnauthenticated, 401),
        std::pair(Code::kPermissionDenied, 403), std::pair(Code::kNotFound, 404),
        std::pair(Code::kFailedPrecondition, 409), std::pair(Code::kUnavailable, 503),
        std::pair(Code::kResourceExhausted, 503), std::pair(Code::kInternal, 500)}) {
    EXPECT_EQ(AdminErrorStatus(Error(code, "r", "m")), status);
  }
}

}  // namespace
}  // namespace conclave::service
