// A client of HTTP/1.1 servers without TLS: one request per connection, the reply read as it comes.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::cli {

struct HttpOptions {
  std::string user_agent;
  // Between two pieces of an answer.
  std::chrono::nanoseconds read_timeout{std::chrono::minutes(10)};
  // Of a reply's body; nothing: a stream without end.
  std::optional<uint64_t> reply_bytes_max = uint64_t{64} << 20;
};

// One thread, but for Cancel. One request at a time; a new one ends the one before.
class HttpConnection {
 public:
  // "http://HOST[:PORT][/PATH]"; the path goes before those of requests, without a final "/v1". Does
  // not connect yet. kInvalidArgument ("usage").
  static absl::StatusOr<std::unique_ptr<HttpConnection>> To(const std::string& url,
                                                            HttpOptions options);
  ~HttpConnection();
  HttpConnection(const HttpConnection&) = delete;
  HttpConnection& operator=(const HttpConnection&) = delete;

  // Sends a request on a new connection and reads the reply's header. kUnavailable ("connect",
  // "http"), kCancelled.
  absl::Status Get(const std::string& path);
  absl::Status Post(const std::string& path, std::string json);

  int status() const;
  // The next piece of the body; empty at its end.
  absl::StatusOr<std::string> ReadSome();
  absl::StatusOr<std::string> ReadAll();

  // Any thread: what is under way, and everything after it, returns kCancelled.
  void Cancel();

 private:
  class Impl;
  explicit HttpConnection(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::cli
