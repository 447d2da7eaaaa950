// Goal: an answer from a server is streamed as it comes, and everything else is one clear error.
// Method: a server of raw sockets that gives one prepared reply per connection.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <array>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/status.h"
#include "conversation.h"

namespace conclave::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

std::string Reply(const std::string& status, const std::string& type, const std::string& body) {
  return "HTTP/1.1 " + status + "\r\nContent-Type: " + type +
         "\r\nContent-Length: " + std::to_string(body.size()) + "\r\nConnection: close\r\n\r\n" +
         body;
}

std::string Json(const std::string& status, const std::string& body) {
  return Reply(status, "application/json", body);
}

const char* const kModels = R"({"object":"list","data":[{"id":"demo"}]})";

// Chunked, as streams are; the connection is closed behind the text.
std::string Stream(const std::vector<std::string>& chunks, bool is_complete = true) {
  std::string out =
      "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: "
      "chunked\r\nConnection: close\r\n\r\n";
  for (const std::string& chunk : chunks) {
    std::array<char, 16> size{};
    std::snprintf(size.data(), size.size(), "%zx", chunk.size());
    out += std::string(size.data()) + "\r\n" + chunk + "\r\n";
  }
  return out + (is_complete ? "0\r\n\r\n" : "");
}

std::string Delta(const std::string& text) {
  return "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"" + text + "\"}}]}\n\n";
}

class ReplayServer {
 public:
  explicit ReplayServer(std::vector<std::string> replies)
      : replies_(std::move(replies)), fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(fd_, 8), 0);
    socklen_t length = sizeof(address);
    ::getsockname(fd_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Serve(); });
  }
  ~ReplayServer() {
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    ::close(fd_);
  }
  ReplayServer(const ReplayServer&) = delete;
  ReplayServer& operator=(const ReplayServer&) = delete;

  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_); }
  // After all replies were read.
  const std::vector<std::string>& requests() const { return requests_; }

 private:
  void Serve() {
    for (const std::string& reply : replies_) {
      const int client = ::accept(fd_, nullptr, nullptr);
      if (client < 0) {
        return;
      }
      const timeval timeout{20, 0};
      ::setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
      requests_.push_back(ReadRequest(client));
      (void)::send(client, reply.data(), reply.size(), MSG_NOSIGNAL);
      ::shutdown(client, SHUT_WR);
      ::close(client);
    }
  }

  static std::string ReadRequest(int client) {
    std::string request;
    std::array<char, 4096> buffer{};
    size_t wanted = 0;
    while (wanted == 0 || request.size() < wanted) {
      const ssize_t got = ::recv(client, buffer.data(), buffer.size(), 0);
      if (got <= 0) {
        break;
      }
      request.append(buffer.data(), static_cast<size_t>(got));
      const size_t end = request.find("\r\n\r\n");
      if (end != std::string::npos) {
        const size_t length = request.find("Content-Length: ");
        wanted = end + 4 + (length < end ? std::stoul(request.substr(length + 16)) : 0);
      }
    }
    return request;
  }

  const std::vector<std::string> replies_;
  const int fd_;
  uint16_t port_ = 0;
  std::vector<std::string> requests_;
  std::thread thread_;
};

struct Answer {
  absl::Status status;
  std::vector<std::string> pieces;
};

Answer AskAt(const std::string& url) {
  Answer answer;
  auto source = ConnectTo(url);
  if (!source.ok()) {
    answer.status = source.status();
    return answer;
  }
  answer.status = (*source)->Ask({{true, "What is it?", {}}}, {}, [&](std::string_view piece) {
    answer.pieces.emplace_back(piece);
    return absl::OkStatus();
  });
  return answer;
}

TEST(HttpSourceTest, StreamsTheAnswer) {
  ReplayServer server(
      {Json("200 OK", kModels), Stream({Delta("Hello"), Delta(" you"), "data: [DONE]\n\n"})});
  const Answer answer = AskAt(server.url());
  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_THAT(answer.pieces, ElementsAre("Hello", " you"));
  EXPECT_THAT(server.requests().at(0), StartsWith("GET /v1/models HTTP/1.1\r\n"));
  EXPECT_THAT(server.requests().at(1), StartsWith("POST /v1/chat/completions HTTP/1.1\r\n"));
  EXPECT_THAT(server.requests().at(1), HasSubstr("\"model\":\"demo\""));
}

TEST(HttpSourceTest, EventsMayBeCutAnywhere) {
  const std::string all = Delta("Hello") + Delta(" you") + "data: [DONE]\n\n";
  std::vector<std::string> bytes;
  for (const char c : all) {
    bytes.emplace_back(1, c);
  }
  ReplayServer server({Json("200 OK", kModels), Stream(bytes)});
  const Answer answer = AskAt(server.url() + "/v1/");
  EXPECT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_THAT(answer.pieces, ElementsAre("Hello", " you"));
}

TEST(HttpSourceTest, ErrorReplyKeepsItsReason) {
  ReplayServer server(
      {Json("200 OK", kModels),
       Json("400 Bad Request", R"({"error":{"message":"too long","code":"prompt_too_long"}})")});
  const Answer answer = AskAt(server.url());
  EXPECT_EQ(answer.status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(answer.status), "prompt_too_long");
}

TEST(HttpSourceTest, ServerThatIsLoadingSaysSo) {
  ReplayServer server({Json("503 Service Unavailable",
                            R"({"error":{"message":"loading","code":"model_loading"}})")});
  EXPECT_EQ(ReasonOf(AskAt(server.url()).status), "model_loading");
}

TEST(HttpSourceTest, ErrorAfterTextEndsTheAnswer) {
  ReplayServer server(
      {Json("200 OK", kModels),
       Stream({Delta("Hel"),
               "data: {\"error\":{\"message\":\"gone\",\"code\":\"expert_unserved\"}}\n\n",
               "data: [DONE]\n\n"})});
  const Answer answer = AskAt(server.url());
  EXPECT_EQ(ReasonOf(answer.status), "expert_unserved");
  EXPECT_THAT(answer.pieces, ElementsAre("Hel"));
}

TEST(HttpSourceTest, AnswerThatIsCutIsAnError) {
  for (const bool is_complete : {true, false}) {
    ReplayServer server({Json("200 OK", kModels), Stream({Delta("Hel")}, is_complete)});
    const Answer answer = AskAt(server.url());
    EXPECT_EQ(ReasonOf(answer.status), "http") << is_complete;
    EXPECT_THAT(answer.pieces, ElementsAre("Hel"));
  }
}

TEST(HttpSourceTest, WhatIsNoServerOfOursIsRefused) {
  for (const std::string& reply :
       {Json("200 OK", "[]"), Json("200 OK", R"({"data":[]})"),
        Json("200 OK", R"({"data":[{"id":7}]})"), Reply("404 Not Found", "text/html", "<html>"),
        std::string("SSH-2.0-x\r\n"), std::string()}) {
    ReplayServer server({reply});
    EXPECT_EQ(ReasonOf(AskAt(server.url()).status), "http") << reply;
  }
}

TEST(HttpSourceTest, NobodyListens) {
  std::string url;
  {
    ReplayServer server({});
    url = server.url();
  }
  const Answer answer = AskAt(url);
  EXPECT_EQ(ReasonOf(answer.status), "connect");
  EXPECT_EQ(MessageOf(answer.status), url + ": Connection refused");
}

TEST(HttpSourceTest, OtherUrlsAreUsageErrors) {
  for (const char* url :
       {"", "127.0.0.1:8000", "https://127.0.0.1", "http://", "http://a:b@127.0.0.1", "ftp://x",
        "http://x/?q", "http://x/#f", "http://x y/", "http://127.0.0.1:99999999"}) {
    EXPECT_EQ(ReasonOf(AskAt(url).status), "usage") << url;
  }
}

}  // namespace
}  // namespace conclave::cli
