// What all connections of a server share.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <string_view>

#include "conclave/base/mutex.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"
#include "http/api_error.h"

namespace conclave::frontend {

// Thread-safe.
class ServerState {
 public:
  ServerState(HttpServerOptions options, HttpObserver observer);

  const HttpServerOptions& options() const { return options_; }
  const HttpLimits& limits() const { return options_.limits; }
  const HttpObserver& observer() const { return observer_; }

  // Null until SetBackend.
  ChatBackend* backend() const { return backend_.load(std::memory_order_acquire); }
  void SetBackend(ChatBackend& backend) { backend_.store(&backend, std::memory_order_release); }

  bool is_draining() const { return is_draining_.load(); }
  void StartDraining() { is_draining_.store(true); }

  // Requests between their last byte in and their last byte out. A request that asks is_draining()
  // after BeginRequest() either sees it or is waited for.
  void BeginRequest() ABSL_LOCKS_EXCLUDED(mu_);
  void EndRequest() ABSL_LOCKS_EXCLUDED(mu_);
  // Whether there was none left within `timeout`.
  bool WaitUntilIdle(std::chrono::milliseconds timeout) ABSL_LOCKS_EXCLUDED(mu_);

  // 32 hexadecimal digits that no other request has.
  std::string NewId() ABSL_LOCKS_EXCLUDED(mu_);
  uint64_t NewSeed() ABSL_LOCKS_EXCLUDED(mu_);

  // Hands `name` to the observer the first time.
  void ReportUnknownField(const std::string& name) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const HttpServerOptions options_;
  const HttpObserver observer_;
  std::atomic<ChatBackend*> backend_{nullptr};
  std::atomic<bool> is_draining_{false};

  Mutex mu_;
  CondVar idle_;
  int64_t num_running_ ABSL_GUARDED_BY(mu_) = 0;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> unknown_fields_ ABSL_GUARDED_BY(mu_);
};

// Why no request is taken at the moment: the model is being loaded, or the server drains.
std::optional<HttpError> NotServing(const ServerState& state);

// An id that a client chose is echoed when it can do no harm in a header or a log.
bool IsSaneRequestId(std::string_view id);

}  // namespace conclave::frontend
