// One bidirectional stream of a peer, on gRPC's callback threads. The peer's messages go out one by
// one through `on_message`; what is sent waits in two places: a short queue of commands, and one
// placement, which a newer one replaces, so that a slow reader costs bounded memory and still gets
// the latest.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/router_service/router_types.h"
#include "conclave/transport/grpc_support.h"

namespace conclave::router_service {

// What the loop sees of a stream. Any thread.
class PeerStream {
 public:
  virtual ~PeerStream() = default;
  // Sends what is queued, then ends. The first status counts.
  virtual void End(const absl::Status& status) = 0;
  virtual void SendView(const SendPlacement& placement) = 0;
  // An event of this stream has been handled: it may read on.
  virtual void EventDone() = 0;
  // Whether a message has come yet.
  virtual bool HasSpoken() const = 0;
};

template <typename In, typename Out>
class RpcStream final : public grpc::ServerBidiReactor<In, Out>,
                        public PeerStream,
                        public std::enable_shared_from_this<RpcStream<In, Out>> {
 public:
  struct Hooks {
    // Translates and enqueues; an error ends the stream. On gRPC's thread, one at a time.
    std::function<absl::Status(const In& message)> on_message;
    // Once: nothing more will come.
    std::function<void()> on_closed;
    // Writes the placement as what changed since the view sent last (null: none).
    std::function<void(const PlacementView* last, const SendPlacement& placement, Out& message)>
        fill_view;
  };
  // Events of this stream that may wait in the loop's queue.
  static constexpr int kEventsMax = 64;
  static constexpr size_t kCommandsMax = 256;

  // The stream lives until gRPC is done with it, whoever else holds it.
  static std::shared_ptr<RpcStream> Start(Hooks hooks) {
    std::shared_ptr<RpcStream> stream(new RpcStream(std::move(hooks)));
    stream->self_ = stream;
    return stream;
  }
  // Behind Start, once the owner has it in its tables.
  void Listen() { this->StartRead(&incoming_); }

  void Send(Out message) ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      if (commands_.size() >= kCommandsMax) {
        Close(Error(absl::StatusCode::kResourceExhausted, "too_many_messages",
                    "the peer does not read what is sent to it"));
      } else {
        commands_.push_back(std::move(message));
      }
    }
    Pump();
  }

  void SendView(const SendPlacement& placement) override ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      if (!placement_.has_value()) {
        placement_ = placement;
      } else {
        placement_->view = placement.view;
        placement_->is_snapshot = placement_->is_snapshot || placement.is_snapshot;
      }
    }
    Pump();
  }

  void End(const absl::Status& status) override ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      Close(status);
    }
    Pump();
  }

  void EventDone() override ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    --num_events_;
    if (is_read_held_) {
      is_read_held_ = false;
      Read();
    }
  }

  bool HasSpoken() const override ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return has_spoken_;
  }

 private:
  explicit RpcStream(Hooks hooks) : hooks_(std::move(hooks)) {}

  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_) {
    absl::Status status;
    if (ok) {
      {
        MutexLock lock(mu_);
        has_spoken_ = true;
        ++num_events_;
      }
      status = hooks_.on_message(incoming_);
    }
    if (!ok || !status.ok()) {
      Leave();
      End(status);
      return;
    }
    MutexLock lock(mu_);
    Read();
  }

  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      is_writing_ = false;
      if (!ok) {
        commands_.clear();
        placement_.reset();
        Close(Error(absl::StatusCode::kUnavailable, "connect", "the stream is broken"));
      }
    }
    Pump();
  }

  void OnCancel() override ABSL_LOCKS_EXCLUDED(mu_) {
    Leave();
    {
      MutexLock lock(mu_);
      commands_.clear();
      placement_.reset();
      Close(Error(absl::StatusCode::kCancelled, "cancelled", "the peer has gone"));
    }
    Pump();
  }

  void OnDone() override {
    Leave();
    // The last use of this object, unless the loop still holds it.
    const std::shared_ptr<RpcStream> self = std::move(self_);
  }

  // Under the lock, so that it comes before Finish or not at all: behind it gRPC may have freed
  // what it would touch. gRPC never calls back from within StartRead.
  void Read() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (is_over_ || num_events_ >= kEventsMax) {
      is_read_held_ = !is_over_;
      return;
    }
    this->StartRead(&incoming_);
  }

  void Leave() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(mu_);
      if (has_left_) {
        return;
      }
      has_left_ = true;
    }
    hooks_.on_closed();
  }

  void Close(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!end_.has_value()) {
      end_ = status;
    }
  }

  // Starts the next write, or ends the stream when all is written.
  void Pump() ABSL_LOCKS_EXCLUDED(mu_) {
    std::optional<absl::Status> end;
    {
      MutexLock lock(mu_);
      if (is_writing_ || is_over_) {
        return;
      }
      outgoing_.Clear();
      if (!commands_.empty()) {
        outgoing_ = std::move(commands_.front());
        commands_.pop_front();
      } else if (placement_.has_value()) {
        const bool is_full = placement_->is_snapshot || last_view_ == nullptr;
        hooks_.fill_view(is_full ? nullptr : last_view_.get(), *placement_, outgoing_);
        last_view_ = placement_->view;
        placement_.reset();
      } else if (end_.has_value()) {
        is_over_ = true;
        end = end_;
      } else {
        return;
      }
      is_writing_ = !end.has_value();
    }
    if (end.has_value()) {
      this->Finish(transport::ToGrpc(*end));
    } else {
      this->StartWrite(&outgoing_);
    }
  }

  const Hooks hooks_;
  std::shared_ptr<RpcStream> self_;
  In incoming_;   // of the read under way
  Out outgoing_;  // of the write under way
  mutable Mutex mu_;
  bool has_spoken_ ABSL_GUARDED_BY(mu_) = false;
  bool has_left_ ABSL_GUARDED_BY(mu_) = false;
  bool is_writing_ ABSL_GUARDED_BY(mu_) = false;
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;
  bool is_read_held_ ABSL_GUARDED_BY(mu_) = false;
  int num_events_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<Out> commands_ ABSL_GUARDED_BY(mu_);
  std::optional<SendPlacement> placement_ ABSL_GUARDED_BY(mu_);
  std::shared_ptr<const PlacementView> last_view_ ABSL_GUARDED_BY(mu_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mu_);
};

}  // namespace conclave::router_service
