// An HTTP server on loopback that says what a test tells it to, byte by byte.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include "conclave/service/address.h"
#include "gtest/gtest.h"

namespace conclave::router_service {

inline std::string HttpReply(const std::string& body, const std::string& status = "200 OK") {
  return "HTTP/1.1 " + status +
         "\r\nContent-Type: application/json\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\n\r\n" + body;
}

class ScriptedHttp {
 public:
  // `answer` gets path and body of each request, on the server's thread; an empty answer leaves the
  // connection open and silent until the client has gone.
  using Answer = std::function<std::string(const std::string& path, const std::string& body)>;
  explicit ScriptedHttp(Answer answer) : answer_(std::move(answer)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(listener_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(::listen(listener_, 16), 0);
    EXPECT_EQ(::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { Loop(); });
  }
  ~ScriptedHttp() {
    is_stopping_.store(true);
    thread_.join();
    ::close(listener_);
  }
  ScriptedHttp(const ScriptedHttp&) = delete;
  ScriptedHttp& operator=(const ScriptedHttp&) = delete;

  service::Address address() const { return {"127.0.0.1", port_}; }
  int num_requests() const { return num_requests_.load(); }
  // Of the request that is being answered; within `answer`.
  const std::string& head() const { return head_; }

 private:
  bool WaitReadable(int descriptor) const {
    pollfd poll{descriptor, POLLIN, 0};
    while (!is_stopping_.load()) {
      if (::poll(&poll, 1, 10) > 0) {
        return true;
      }
    }
    return false;
  }

  void Loop() {
    while (WaitReadable(listener_)) {
      const int connection = ::accept(listener_, nullptr, nullptr);
      Serve(connection);
      ::close(connection);
    }
  }

  void Serve(int connection) {
    std::string received;
    size_t header_end = 0;
    size_t length = 0;
    while (header_end == 0 || received.size() < header_end + length) {
      char buffer[4096];
      ssize_t count = 0;
      if (!WaitReadable(connection) ||
          (count = ::recv(connection, buffer, sizeof(buffer), 0)) <= 0) {
        return;
      }
      received.append(buffer, static_cast<size_t>(count));
      const size_t end = received.find("\r\n\r\n");
      if (header_end == 0 && end != std::string::npos) {
        header_end = end + 4;
        const size_t at = received.find("Content-Length: ");
        length = at == std::string::npos ? 0 : std::stoul(received.substr(at + 16));
      }
    }
    ++num_requests_;
    head_ = received.substr(0, header_end);
    const size_t path = received.find(' ') + 1;
    const std::string answer = answer_(received.substr(path, received.find(' ', path) - path),
                                       received.substr(header_end, length));
    if (answer.empty()) {
      char byte = 0;
      while (WaitReadable(connection) && ::recv(connection, &byte, 1, 0) > 0) {
      }
      return;
    }
    for (size_t sent = 0; sent < answer.size();) {
      const ssize_t count =
          ::send(connection, answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) {
        return;
      }
      sent += static_cast<size_t>(count);
    }
    ::shutdown(connection, SHUT_WR);
  }

  const Answer answer_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::atomic<bool> is_stopping_{false};
  std::atomic<int> num_requests_{0};
  std::string head_;  // of the thread
  std::thread thread_;
};

}  // namespace conclave::router_service
