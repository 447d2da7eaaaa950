// Goal: malformed, oversized and slow requests get the status of their row in the bad-input
// catalogue, say nothing internal, and leave the server serving. Method: raw bytes on a real
// socket; a good request after each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "conclave/frontend/http_server.h"
#include "http_test_support.h"

namespace conclave::frontend {
namespace {

using testing::HasSubstr;

class HttpHostileTest : public testing::Test {
 protected:
  void Start(const HttpLimits& limits = {}) {
    HttpServerOptions options;
    options.port = 0;
    options.limits = limits;
    backend_.script = [](const SubmittedChat& chat) {
      chat.Delta("ok");
      chat.End();
      chat.Done();
    };
    auto server = HttpServer::Start(std::move(options), {});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->SetBackend(backend_);
  }

  uint16_t port() const { return server_->port(); }

  void ExpectError(const Response& response, int status, const std::string& code) {
    EXPECT_EQ(ProblemOfError(response, status, code), "");
    TestClient good(port());
    EXPECT_EQ(good.Call(PostChat()).status, 200);
  }

  Response Call(const std::string& bytes) {
    TestClient client(port());
    return client.Call(bytes);
  }

  FakeBackend backend_;
  std::unique_ptr<HttpServer> server_;
};

std::string ChatHead(const std::string& fields) {
  return "POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n" +
         fields + "\r\n";
}

std::string Chunk(const std::string& bytes) {
  char size[32];
  std::snprintf(size, sizeof(size), "%zx\r\n", bytes.size());
  return size + bytes + "\r\n";
}

TEST_F(HttpHostileTest, H01H02H03LimitsOfTheHeaderBlock) {
  Start();
  ExpectError(Call("GET /" + std::string(9000, 'a') + " HTTP/1.1\r\n\r\n"), 414, "uri_too_long");
  ExpectError(Call(Get("/version", "X: " + std::string(1 << 20, 'a') + "\r\n")), 431,
              "headers_too_large");
  std::string fields;
  for (int i = 0; i < 10'000; ++i) {
    fields += "a: b\r\n";
  }
  ExpectError(Call(Get("/version", fields)), 431, "too_many_headers");
}

TEST_F(HttpHostileTest, H04ATooLongBodyIsRefusedBeforeItIsSent) {
  Start();
  TestClient client(port());
  client.Send(ChatHead("Content-Length: 33554433\r\nExpect: 100-continue\r\n"));
  const Response response = client.Receive();
  ExpectError(response, 413, "body_too_large");
  EXPECT_EQ(response.Field("connection"), "close");
}

TEST_F(HttpHostileTest, H04AClientThatSendsTheTooLongBodyAnywayReadsTheReply) {
  HttpLimits limits;
  limits.body_bytes_max = 1000;
  Start(limits);
  TestClient client(port());
  client.Send(ChatHead("Content-Length: 4000000\r\n"));
  client.Send(std::string(4'000'000, 'x'));
  ExpectError(client.Receive(), 413, "body_too_large");
}

TEST_F(HttpHostileTest, H04Expect100IsHonoured) {
  Start();
  TestClient client(port());
  const std::string body = ChatBody();
  client.Send(
      ChatHead("Content-Length: " + std::to_string(body.size()) + "\r\nExpect: 100-continue\r\n"));
  EXPECT_EQ(client.Receive().status_line, "HTTP/1.1 100 Continue");
  EXPECT_EQ(client.Call(body).status, 200);
}

TEST_F(HttpHostileTest, H05AChunkedBodyIsCutAtTheLimit) {
  HttpLimits limits;
  limits.body_bytes_max = 100'000;
  Start(limits);
  TestClient client(port());
  client.Send(ChatHead("Transfer-Encoding: chunked\r\n"));
  for (int i = 0; i < 30; ++i) {
    client.Send(Chunk(std::string(4096, ' ')));
  }
  ExpectError(client.Receive(), 413, "body_too_large");
}

TEST_F(HttpHostileTest, H05H10AChunkedBodyThatNeverEndsTimesOut) {
  HttpLimits limits;
  limits.body_timeout = std::chrono::seconds(1);
  Start(limits);
  TestClient client(port());
  client.Send(ChatHead("Transfer-Encoding: chunked\r\n") + Chunk("{"));
  ExpectError(client.Receive(), 408, "body_timeout");
}

TEST_F(HttpHostileTest, H06OneByteChunksAreAccepted) {
  Start();
  TestClient client(port());
  std::string bytes = ChatHead("Transfer-Encoding: chunked\r\n");
  const std::string body = std::string(300'000, ' ') + ChatBody();
  bytes.reserve(body.size() * 6);
  for (const char c : body) {
    bytes += "1\r\n";
    bytes += c;
    bytes += "\r\n";
  }
  bytes += "0\r\n\r\n";
  client.Send(bytes);
  EXPECT_EQ(client.Receive().status, 200);
}

TEST_F(HttpHostileTest, H07MalformedChunks) {
  Start();
  for (const std::string& chunk :
       {std::string("-1\r\n"), "0x10\r\n" + std::string(16, 'x') + "\r\n0\r\n\r\n",
        std::string("zz\r\n"), std::string("11111111111111111\r\nx"),
        "1;" + std::string(1 << 20, 'a') + "\r\nx\r\n", std::string("1\r\nxx\r\n0\r\n\r\n")}) {
    TestClient client(port());
    client.Send(ChatHead("Transfer-Encoding: chunked\r\n") + chunk);
    ExpectError(client.Receive(), 400, "bad_chunk");
  }
  // The largest size there is exceeds the limit of a body first.
  TestClient client(port());
  client.Send(ChatHead("Transfer-Encoding: chunked\r\n") + "FFFFFFFFFFFFFFFF\r\nx");
  ExpectError(client.Receive(), 413, "body_too_large");
}

TEST_F(HttpHostileTest, H07ChunksWithBareLineFeedsAreNeverUnderstood) {
  HttpLimits limits;
  limits.body_timeout = std::chrono::seconds(1);
  Start(limits);
  TestClient client(port());
  client.Send(ChatHead("Transfer-Encoding: chunked\r\n") + "2\n{}\n0\n\n");
  ExpectError(client.Receive(), 408, "body_timeout");
}

TEST_F(HttpHostileTest, H08AmbiguousFramingClosesTheConnection) {
  Start();
  const std::string smuggled = "0\r\n\r\nGET /version HTTP/1.1\r\nHost: x\r\n\r\n";
  for (const std::string fields :
       {"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n", "Transfer-Encoding: identity\r\n",
        "X: a\r\n b\r\nContent-Length: 4\r\n", "Content-Length : 4\r\n"}) {
    TestClient client(port());
    client.Send(ChatHead(fields) + smuggled);
    const Response response = client.Receive();
    ExpectError(response, 400, "ambiguous_framing");
    EXPECT_EQ(response.Field("connection"), "close");
    client.FinishSending();
    EXPECT_EQ(client.ReceiveRest(), "") << "what was smuggled must not be answered";
  }
}

TEST_F(HttpHostileTest, H09ABodyNeedsALength) {
  Start();
  const Response response = Call(ChatHead(""));
  ExpectError(response, 411, "length_required");
  EXPECT_EQ(response.Field("connection"), "close");
}

TEST_F(HttpHostileTest, H10ABodyThatEndsEarly) {
  Start();
  TestClient client(port());
  client.Send(ChatHead("Content-Length: 100\r\n") + "{");
  client.FinishSending();
  ExpectError(client.Receive(), 400, "body_truncated");
}

TEST_F(HttpHostileTest, H10H11SilenceInHeaderOrBodyTimesOut) {
  HttpLimits limits;
  limits.header_timeout = std::chrono::seconds(1);
  limits.body_timeout = std::chrono::seconds(1);
  Start(limits);
  TestClient body(port());
  body.Send(ChatHead("Content-Length: 100\r\n") + "{");
  TestClient header(port());
  header.Send("GET /version HT");
  ExpectError(body.Receive(), 408, "body_timeout");
  ExpectError(header.Receive(), 408, "header_timeout");
}

TEST_F(HttpHostileTest, H11AnIdleConnectionIsClosedWithoutAWord) {
  HttpLimits limits;
  limits.idle_timeout = std::chrono::seconds(1);
  Start(limits);
  TestClient client(port());
  EXPECT_EQ(client.Call(Get("/version")).status, 200);
  EXPECT_EQ(client.ReceiveRest(), "");
}

TEST_F(HttpHostileTest, H12H13EncodingsAndTypes) {
  Start();
  ExpectError(Call(ChatHead("Content-Encoding: gzip\r\nContent-Length: 4\r\n") + "abcd"), 415,
              "content_encoding_unsupported");
  ExpectError(Call(ChatHead("Content-Encoding: br\r\nContent-Length: 4\r\n") + "abcd"), 415,
              "content_encoding_unsupported");
  ExpectError(Call("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}"),
              415, "content_type_unsupported");
}

TEST_F(HttpHostileTest, H14WrongMethodsAndPaths) {
  Start();
  const Response get = Call(Get("/v1/chat/completions"));
  ExpectError(get, 405, "method_not_allowed");
  EXPECT_EQ(get.Field("allow"), "POST");
  const Response post = Call(Post("/v1/models", "{}"));
  ExpectError(post, 405, "method_not_allowed");
  EXPECT_EQ(post.Field("allow"), "GET");
  for (const std::string path : {"/nope", "//v1/models", "/v1/..%2fversion", "/v1/%00"}) {
    ExpectError(Call(Get(path)), 404, "not_found");
  }
  ExpectError(Call(Get("/a" + std::string(1, '\0'))), 400, "bad_request");
}

TEST_F(HttpHostileTest, AnUnknownPathKeepsAConnectionWithoutABodyOpen) {
  Start();
  TestClient client(port());
  EXPECT_EQ(client.Call(Get("/nope")).status, 404);
  EXPECT_EQ(client.Call(Get("/version")).status, 200);
}

TEST_F(HttpHostileTest, H15ConnectionsBeyondTheLimitAreToldSo) {
  HttpLimits limits;
  limits.connections_max = 2;
  Start(limits);
  auto first = std::make_unique<TestClient>(port());
  TestClient second(port());
  EXPECT_EQ(first->Call(Get("/version")).status, 200);
  EXPECT_EQ(second.Call(Get("/version")).status, 200);
  TestClient third(port());
  const Response response = third.Receive();
  EXPECT_EQ(response.status, 503);
  EXPECT_THAT(response.body, HasSubstr("too_many_connections"));
  EXPECT_EQ(response.Field("retry-after"), "1");
  // A place becomes free when a connection closes.
  first.reset();
  int status = 503;
  while (status == 503) {
    status = Call(Get("/version")).status;
  }
  EXPECT_EQ(status, 200);
}

TEST_F(HttpHostileTest, H15AThousandPipelinedRequestsAreAllAnswered) {
  Start();
  TestClient client(port());
  std::string bytes;
  for (int i = 0; i < 1001; ++i) {
    bytes += Get("/health/live");
  }
  std::thread sender([&client, &bytes] { client.Send(bytes); });
  int num_answered = 0;
  for (int i = 0; i < 1001; ++i) {
    num_answered += client.Receive().status == 200 ? 1 : 0;
  }
  sender.join();
  EXPECT_EQ(num_answered, 1001);
}

TEST_F(HttpHostileTest, H16AddressHeadersAreIgnored) {
  Start();
  EXPECT_EQ(Call(Get("/version", "X-Forwarded-For:\r\nREMOTE_ADDR: ::garbage::\r\n")).status, 200);
}

TEST_F(HttpHostileTest, H18ToH23BodiesThatAreNotARequest) {
  Start();
  const std::pair<std::string, std::string> cases[] = {
      {"", "body_not_object"},
      {"[]", "body_not_object"},
      {ChatBody().substr(0, 20), "json_syntax"},
      {std::string(100'000, '['), "json_too_deep"},
      {ChatBody() + "{}", "json_syntax"},
      {"{\"model\":\"\xFF\"}", "invalid_utf8"},
      {R"({"model":"demo","model":"x"})", "duplicate_key"},
  };
  TestClient client(port());
  for (const auto& [body, code] : cases) {
    ExpectError(client.Call(Post("/v1/chat/completions", body)), 400, code);
  }
  ExpectError(client.Call(Post("/v1/chat/completions", R"({"model":"../../x"})")), 404,
              "model_not_found");
}

TEST_F(HttpHostileTest, U15APictureFormatThatIsNotSupportedIs415) {
  Start();
  const std::string body =
      R"({"model":"demo","messages":[{"role":"user","content":[{"type":"image_url",)"
      R"("image_url":{"url":"data:image/svg+xml;base64,QUJD"}}]}]})";
  ExpectError(Call(Post("/v1/chat/completions", body)), 415, "image_format_unsupported");
}

TEST_F(HttpHostileTest, H46OtherProtocolsOnThePort) {
  Start();
  ExpectError(Call("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505, "http_version_unsupported");
  ExpectError(Call(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11)), 400,
              "bad_request");
  ExpectError(Call("SSH-2.0-OpenSSH_9.2p1\r\n"), 400, "bad_request");
}

TEST_F(HttpHostileTest, AnEmptyLineBetweenRequestsIsSkipped) {
  Start();
  TestClient client(port());
  EXPECT_EQ(client.Call(PostChat() + "\r\n").status, 200);
  EXPECT_EQ(client.Call(Get("/version")).status, 200);
}

}  // namespace
}  // namespace conclave::frontend
