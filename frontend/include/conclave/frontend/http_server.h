// The OpenAI-compatible HTTP API on Boost.Beast. Deny by default: a route table lists every path.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/frontend/chat.h"

namespace conclave::frontend {

struct HttpLimits {
  int64_t header_bytes_max = 16 << 10;
  int32_t header_fields_max = 64;
  int32_t request_line_bytes_max = 8 << 10;
  int64_t body_bytes_max = int64_t{32} << 20;  // --max-body; checked before parsing
  int32_t json_depth_max = 32;
  int32_t messages_max = 256;
  int32_t content_parts_max = 64;
  int32_t images_max = 4;
  int64_t image_bytes_max = int64_t{10} << 20;  // encoded
  int32_t choices_max = 4;
  int32_t stops_max = 4;
  int32_t stop_bytes_max = 64;
  int32_t logit_bias_max = 300;
  int32_t connections_max = 10'000;
  std::chrono::seconds header_timeout{5};
  std::chrono::seconds body_timeout{30};
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;   // 0: any free one
  int32_t num_threads = 1;
  HttpLimits limits;
  // Text of /metrics; null: the path is 404 (bad-inputs.md H47).
  std::function<std::string()> metrics_text;
  // Loading state of /health/ready while no backend is set: 0..1.
  std::function<double()> load_progress;
  std::string version;
};

// What the server counts; filled by the caller, called on server threads, must not block.
struct HttpObserver {
  std::function<void(const std::string& route, int status, double seconds)> on_request;
};

// Owns its threads. Start, SetBackend (until then /v1 answers 503 and /health/ready 503 with the progress), Drain, destroy.
class HttpServer {
 public:
  // Binds and listens. kUnavailable ("bind") with "bind HOST:PORT: why".
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options, HttpObserver observer);
  ~HttpServer();  // stops at once

  uint16_t port() const;

  // `backend` outlives the server.
  void SetBackend(ChatBackend& backend);

  // Takes no new request (503 with Retry-After, /health/ready 503) and waits until running ones have ended or
  // `timeout` passed; returns whether all ended.
  bool Drain(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::frontend
