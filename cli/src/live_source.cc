#include "live_source.h"

#include <pthread.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "http_connection.h"
#include "sse.h"

namespace conclave::cli {
namespace {

// Snapshots of the largest models.
constexpr size_t kUpdateBytesMax = size_t{64} << 20;
// Of updates that nobody has taken yet.
constexpr size_t kWaitingBytesMax = 2 * kUpdateBytesMax;
constexpr std::chrono::seconds kRetryAfter{1};
// Updates come every second.
constexpr std::chrono::seconds kSilence{10};

class UrlSource final : public LiveSource {
 public:
  explicit UrlSource(std::unique_ptr<HttpConnection> connection)
      : connection_(std::move(connection)) {}

  absl::Status Watch(const Take& take) override {
    CONCLAVE_RETURN_IF_ERROR(connection_->Get("/moe/events"));
    if (connection_->status() != 200) {
      std::string body;
      constexpr size_t kErrorBytesMax = size_t{64} << 10;
      while (body.size() < kErrorBytesMax) {
        CONCLAVE_ASSIGN_OR_RETURN(const std::string piece, connection_->ReadSome());
        if (piece.empty()) {
          break;
        }
        body += piece;
      }
      return ErrorOf(connection_->status(), body);
    }
    SseReader reader(kUpdateBytesMax);
    while (true) {
      CONCLAVE_ASSIGN_OR_RETURN(const std::string piece, connection_->ReadSome());
      if (piece.empty()) {
        return Error(absl::StatusCode::kUnavailable, "http", "the server ended the stream");
      }
      CONCLAVE_ASSIGN_OR_RETURN(const std::vector<SseEvent> events, reader.FeedNamed(piece));
      for (const SseEvent& event : events) {
        CONCLAVE_RETURN_IF_ERROR(take(event.name, event.data));
      }
    }
  }
  void Cancel() override { connection_->Cancel(); }

 private:
  const std::unique_ptr<HttpConnection> connection_;
};

class RouterSource final : public LiveSource {
 public:
  explicit RouterSource(std::vector<std::unique_ptr<router_service::AdminClient>> clients)
      : clients_(std::move(clients)) {}

  absl::Status Watch(const Take& take) override {
    absl::Status status;
    for (const auto& client : clients_) {
      status = client->WatchLive(take);
      // Another router is asked only where this one has none to say.
      const std::string reason = ReasonOf(status);
      if (reason != "connect" && reason != "standby") {
        break;
      }
    }
    return status;
  }
  void Cancel() override {
    for (const auto& client : clients_) {
      client->Cancel();
    }
  }

 private:
  const std::vector<std::unique_ptr<router_service::AdminClient>> clients_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LiveSource>> LiveFromUrl(const std::string& url) {
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<HttpConnection> connection,
                            HttpConnection::To(url, {.user_agent = "conclave-top",
                                                     .read_timeout = kSilence,
                                                     .reply_bytes_max = std::nullopt}));
  return std::make_unique<UrlSource>(std::move(connection));
}

absl::StatusOr<std::unique_ptr<LiveSource>> LiveFromRouters(
    const std::vector<router_service::AdminClientOptions>& routers) {
  std::vector<std::unique_ptr<router_service::AdminClient>> clients;
  for (const router_service::AdminClientOptions& options : routers) {
    CONCLAVE_ASSIGN_OR_RETURN(clients.emplace_back(), router_service::AdminClient::Create(options));
  }
  return std::make_unique<RouterSource>(std::move(clients));
}

LiveFeed::LiveFeed(std::unique_ptr<LiveSource> source)
    : source_(std::move(source)), fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  CONCLAVE_CHECK(fd_ >= 0);
  thread_ = std::thread([this] { Loop(); });
  pthread_setname_np(thread_.native_handle(), "live-feed");
}

LiveFeed::~LiveFeed() {
  {
    MutexLock lock(mu_);
    is_stopping_ = true;
    changed_.NotifyAll();
  }
  source_->Cancel();
  thread_.join();
  ::close(fd_);
}

std::vector<LiveFeed::Item> LiveFeed::TakeAll() {
  uint64_t count = 0;
  (void)!::read(fd_, &count, sizeof(count));
  MutexLock lock(mu_);
  bytes_ = 0;
  return std::exchange(items_, {});
}

void LiveFeed::Reconnect() {
  MutexLock lock(mu_);
  is_reconnecting_ = true;
}

absl::Status LiveFeed::Put(Item item) {
  MutexLock lock(mu_);
  if (is_stopping_) {
    return absl::CancelledError("cancelled");
  }
  if (std::exchange(is_reconnecting_, false)) {
    return Error(absl::StatusCode::kFailedPrecondition, "live_gap", "a new snapshot is wanted");
  }
  bytes_ += item.json.size();
  if (bytes_ > kWaitingBytesMax) {
    items_.clear();
    bytes_ = 0;
    return Error(absl::StatusCode::kFailedPrecondition, "live_gap", "updates came too fast");
  }
  items_.push_back(std::move(item));
  const uint64_t one = 1;
  (void)!::write(fd_, &one, sizeof(one));
  return absl::OkStatus();
}

void LiveFeed::Loop() {
  while (true) {
    const absl::Status ended =
        source_->Watch([this](std::string_view event, const std::string& json) {
          return Put({std::string(event), json, absl::OkStatus()});
        });
    if (ReasonOf(ended) == "live_gap") {
      continue;
    }
    if (!Put({"", "", ended}).ok()) {
      return;
    }
    const auto until = std::chrono::steady_clock::now() + kRetryAfter;
    MutexLock lock(mu_);
    for (auto left = kRetryAfter / std::chrono::nanoseconds(1); left > 0 && !is_stopping_;
         left = (until - std::chrono::steady_clock::now()) / std::chrono::nanoseconds(1)) {
      changed_.WaitFor(mu_, std::chrono::nanoseconds(left));
    }
  }
}

}  // namespace conclave::cli
