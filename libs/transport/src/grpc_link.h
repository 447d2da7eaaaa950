// The frontend's end of one stream: what GrpcChannel's owner and gRPC's threads share.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/support/client_callback.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "call_table.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/doorbell.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/grpc_channel.h"
#include "grpc_envelope.h"
#include "grpc_send.h"

namespace conclave::transport {

// What is shared by the channel's owner and gRPC's threads.
class Link final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Link(std::shared_ptr<grpc::Channel> channel, const ChannelLimits& limits,
       const FrameLimits& frame_limits, const PairTerms& terms, Doorbell& bell, const Clock& clock);

  // Opens the stream and waits until the worker has taken it, or until `until`.
  // After an error it is closed.
  absl::Status Open(uint64_t session, MonotonicTime until) ABSL_LOCKS_EXCLUDED(mu_);

  // Once, by the owner, after Open and before the end of the object: cancels the stream and waits
  // for gRPC to let go of it, which takes no peer. Nobody is rung any more.
  void Close() ABSL_LOCKS_EXCLUDED(mu_);

  CallSlot* Acquire() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Dispatch(CallSlot* slot) ABSL_LOCKS_EXCLUDED(mu_);
  std::optional<absl::Status> Poll(CallSlot* slot) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Await(CallSlot* slot) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status LinkStatus() const ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel(CallSlot* slot) ABSL_LOCKS_EXCLUDED(mu_);
  void Release(CallSlot* slot) ABSL_LOCKS_EXCLUDED(mu_);
  void Ping() ABSL_LOCKS_EXCLUDED(mu_);

  const ChannelLimits& limits() const { return table_.limits(); }
  MonotonicTime last_heard() const ABSL_LOCKS_EXCLUDED(mu_);
  std::chrono::nanoseconds ping_round_trip() const ABSL_LOCKS_EXCLUDED(mu_);
  LinkCounters counters() const ABSL_LOCKS_EXCLUDED(mu_);

  // Reactions, on gRPC's threads.
  void OnReadInitialMetadataDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnReadDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone(const grpc::Status& status) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  enum class Opening : uint8_t { kWaiting, kOpen, kFailed };
  // Whether the queue took it; otherwise the link is lost.
  bool Send(grpc::ByteBuffer&& message, size_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  void SendControl(const ControlFrame& control) ABSL_LOCKS_EXCLUDED(mu_);
  void Lose(const std::string& why) ABSL_LOCKS_EXCLUDED(mu_);
  // A call has ended, or all of them.
  void Tell() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Receive() ABSL_LOCKS_EXCLUDED(mu_);
  // After Receive, with its status: whether the stream carries too much damage to go on.
  bool IsDamaging(const absl::Status& received) ABSL_LOCKS_EXCLUDED(mu_);

  const Clock& clock_;  // the owner's
  const bool has_payload_crc_;
  const size_t frame_bytes_max_;
  const size_t send_bytes_max_;

  const std::shared_ptr<grpc::Channel> channel_;
  grpc::ClientContext context_;
  const std::shared_ptr<SendMemory> sends_;
  AlignedBuffer memory_;  // of all slots

  // Of the one read that is under way.
  grpc::ByteBuffer message_;
  EnvelopeReader envelope_;
  AlignedBuffer received_;

  mutable Mutex mu_;  // never held while an operation of the stream is started
  CondVar changed_;   // a call is done, the link lost, the stream open or over
  CallTable table_;   // guarded as it says itself
  WriteQueue writes_ ABSL_GUARDED_BY(mu_);
  Opening opening_ ABSL_GUARDED_BY(mu_) = Opening::kWaiting;
  bool is_done_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status end_ ABSL_GUARDED_BY(mu_);  // how the stream ended, once done
  Doorbell* bell_ ABSL_GUARDED_BY(mu_);    // null: the owner is gone, and the clock with it
};

}  // namespace conclave::transport
