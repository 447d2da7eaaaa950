// The frontend's half of `Hello`, with which every channel between processes begins, and the
// sign of life that a channel keeps beside it when its frames travel elsewhere.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/grpc_channel.h"

namespace conclave::transport {

// A pair that has shaken hands.
struct Handshake {
  std::shared_ptr<grpc::Channel> channel;
  uint64_t session = 0;
  ChannelLimits limits;
  FrameLimits frame_limits;
  std::string ucx_address;  // the worker's
};

// Errors as of ConnectGrpcChannel. `name` is the channel's, `ucx_address` empty but for "ucx".
absl::StatusOr<Handshake> ShakeHands(const std::string& address, const TlsIdentity& tls,
                                     const PairTerms& terms, const char* name,
                                     const std::string& ucx_address,
                                     std::chrono::milliseconds timeout);

// The Exchange stream of a session whose frames do not travel through it. The kernel and gRPC's
// keepalive end it when the worker's process, machine or network is gone, also when nobody here is
// at work: within milliseconds of a death, two seconds of a hang.
class Lifeline final : private grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  // Opens the stream and waits until the worker has taken it, or until `until`. `on_lost` is called
  // once, on a thread of gRPC's, when the stream ends before the lifeline does.
  static absl::StatusOr<std::unique_ptr<Lifeline>> Open(std::shared_ptr<grpc::Channel> channel,
                                                        uint64_t session, MonotonicTime until,
                                                        std::function<void()> on_lost);

  // Ends the stream, which takes no peer. on_lost is not called any more.
  ~Lifeline() override;

 private:
  Lifeline(std::shared_ptr<grpc::Channel> channel, std::function<void()> on_lost)
      : channel_(std::move(channel)), on_lost_(std::move(on_lost)) {}

  void OnReadInitialMetadataDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone(const grpc::Status& status) override ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status WaitForOpen(MonotonicTime until) ABSL_LOCKS_EXCLUDED(mu_);
  void Close() ABSL_LOCKS_EXCLUDED(mu_);
  void Lose() ABSL_LOCKS_EXCLUDED(mu_);

  const std::shared_ptr<grpc::Channel> channel_;
  grpc::ClientContext context_;
  grpc::ByteBuffer message_;

  Mutex mu_;
  CondVar changed_;
  std::function<void()> on_lost_ ABSL_GUARDED_BY(mu_);  // null: said, or not wanted any more
  bool is_open_ ABSL_GUARDED_BY(mu_) = false;
  bool is_started_ ABSL_GUARDED_BY(mu_) = false;
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;
  bool is_done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);  // once done
};

}  // namespace conclave::transport
