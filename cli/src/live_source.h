// Where `conclave top` gets the live picture of docs/live.md from: the admin listener of a router
// or of `serve`, over HTTP, or a router's control address, over gRPC.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/mutex.h"
#include "conclave/router_service/admin_client.h"

namespace conclave::cli {

class LiveSource {
 public:
  using Take = std::function<absl::Status(std::string_view event, const std::string& json)>;

  virtual ~LiveSource() = default;
  // A snapshot and deltas, until `take` gives an error, which is returned, or the connection ends.
  // One thread. kUnavailable ("connect", "http"), kCancelled, or what the server answers.
  virtual absl::Status Watch(const Take& take) = 0;
  // Any thread: Watch returns, and every later one at once.
  virtual void Cancel() = 0;
};

// "http://HOST:PORT" of an admin listener. kInvalidArgument ("usage").
absl::StatusOr<std::unique_ptr<LiveSource>> LiveFromUrl(const std::string& url);

// The first router that leads. kInvalidArgument ("tls_config").
absl::StatusOr<std::unique_ptr<LiveSource>> LiveFromRouters(
    const std::vector<router_service::AdminClientOptions>& routers);

// Reads a source on a thread of its own, and connects again a second after a connection ended.
class LiveFeed {
 public:
  struct Item {
    std::string event;
    std::string json;
    absl::Status trouble;  // not OK: the connection ended, and this is why
  };

  explicit LiveFeed(std::unique_ptr<LiveSource> source);
  // Cancels and joins.
  ~LiveFeed();
  LiveFeed(const LiveFeed&) = delete;
  LiveFeed& operator=(const LiveFeed&) = delete;

  // Readable when there are items: for poll.
  int fd() const { return fd_; }
  // What has come since the last call. Who takes too slowly loses what was before a snapshot.
  std::vector<Item> TakeAll();
  // Asks for a new snapshot.
  void Reconnect();

 private:
  void Loop();
  absl::Status Put(Item item);

  const std::unique_ptr<LiveSource> source_;
  const int fd_;
  Mutex mu_;
  CondVar changed_;
  bool is_stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool is_reconnecting_ ABSL_GUARDED_BY(mu_) = false;
  size_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Item> items_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace conclave::cli
