// The OpenAI-compatible HTTP API on Boost.Beast. Deny by default: a route table lists every path.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/frontend/chat.h"

namespace conclave::observability {
class Tracer;
}  // namespace conclave::observability

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
  // A body must arrive within this time plus a second per 64 KiB received, so that one byte per
  // second ends as well.
  std::chrono::seconds body_timeout{30};
  // A connection without a request is closed after this long.
  std::chrono::seconds idle_timeout{60};
  // A client that has not taken a reply, or a piece of a stream, after this long has gone.
  std::chrono::seconds write_timeout{60};
  // Output that waits for a slow client; beyond it the request is cancelled and the connection
  // closed.
  int64_t pending_bytes_max = int64_t{1} << 20;
};

struct HttpServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;  // 0: any free one
  int32_t num_threads = 1;
  HttpLimits limits;
  // Text of /metrics; null: the path is 404 (bad-inputs.md H47).
  std::function<std::string()> metrics_text;
  // Loading state of /health/ready while no backend is set: 0..1.
  std::function<double()> load_progress;
  std::string version;
  // Decides which chat requests are traced; null: none. Outlives the server.
  observability::Tracer* tracer = nullptr;
};

// What the server counts; filled by the caller, called on server threads, must not block.
struct HttpObserver {
  // `route` is the pattern of the route table ("/v1/models/{id}") or "other", so it may be a metric
  // label. `status` is 499 when the client went away before the end of its reply.
  std::function<void(const std::string& route, int status, double seconds)> on_request;
  // A request field that is ignored because nobody knows it; once per name, the first 64 names,
  // escaped and cut to 64 bytes. To be logged.
  std::function<void(const std::string& name)> on_unknown_field;
  // Pictures of one request, at least one, whose data URI has a media type that their first bytes
  // contradict. They are taken for what the bytes say.
  std::function<void(int32_t num_images)> on_mislabelled_images;
};

// Owns its threads. Start, SetBackend (until then /v1 answers 503 and /health/ready 503 with the
// progress), Drain, destroy. The methods may be called from any thread.
//
// Errors have the body {"error":{"message","type","param","code"},"request_id"}; every reply
// carries x-request-id. What a backend says of errors of its own (kInternal, kUnavailable, ...)
// never reaches a client, only the reason does.
class HttpServer {
 public:
  // Binds and listens. kUnavailable ("bind") with "bind HOST:PORT: why".
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpServerOptions options,
                                                           HttpObserver observer);
  ~HttpServer();  // stops at once

  uint16_t port() const;

  // `backend` outlives the server.
  void SetBackend(ChatBackend& backend);

  // Runs `task`, which must not block, on one of the server's threads, soon.
  void Post(std::function<void()> task);

  // Takes no new request (503 with Retry-After, /health/ready 503) and waits until running ones
  // have ended or `timeout` passed; returns whether all ended. Connections are accepted while it
  // waits, so that probes see the 503, and no longer when it returns; idle ones are then closed,
  // running ones go on until they end.
  bool Drain(std::chrono::milliseconds timeout);

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace conclave::frontend
