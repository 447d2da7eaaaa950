// One frontend's stream into a worker, without the gRPC service around it.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "conclave/base/mutex.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/call_server.h"
#include "conclave/transport/frame.h"
#include "damage_window.h"
#include "grpc_envelope.h"
#include "grpc_send.h"
#include "session_terms.h"

namespace conclave::transport {

// The reactor of one Exchange. Created by its Start, which gives it to gRPC; it lives until gRPC
// has ended the stream and the sink has finished the last of its calls.
class Session final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                      public FailpointLink,
                      public std::enable_shared_from_this<Session> {
 public:
  // `sink` and `clock` outlive the session; `context` is gRPC's, good until OnDone.
  Session(const SessionTerms& terms, CallSink& sink, std::shared_ptr<SessionCounters> counters,
          const Clock& clock, grpc::CallbackServerContext* context);
  ~Session() override;

  // Reads the first frame. Once.
  void Start();

  // Ends the stream with `status` and cancels its calls; nothing after the first time. A peer that
  // may not be reading is reset instead: it would not take the status either. Any thread.
  void Close(const grpc::Status& status, bool is_reset) ABSL_LOCKS_EXCLUDED(mu_);

  void Disrupt(FailpointAction how) override ABSL_LOCKS_EXCLUDED(mu_);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnCancel() override;
  void OnDone() override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  // Memory of one call. FREE → served (the sink has it) → being sent (its block is busy) → FREE.
  struct Lane final : ServedCall {
    bool is_cancelled() const override { return cancelled.load(std::memory_order_acquire); }
    void Finish(const absl::Status& status, Epoch epoch,
                std::span<const WorkerId> holders) override;
    std::shared_ptr<FailpointLink> failpoint_link() override { return session; }

    size_t index = 0;
    AlignedBuffer frame;               // what the call's views look into
    std::shared_ptr<Session> session;  // while served, so that a call outlives its stream
    std::atomic<bool> cancelled{false};
    bool has_payload_crc = false;  // of the call, and of its answer
    bool is_served = false;        // guarded by the session's lock
  };

  // OK: the stream goes on.
  absl::Status Receive() ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status TakeCall(std::span<const std::byte> frame, const FrameHeader& header, Lane* lane)
      ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status TakeControl(std::span<const std::byte> frame) ABSL_LOCKS_EXCLUDED(mu_);
  void Serve(const Admission& admission, Lane& lane) ABSL_LOCKS_EXCLUDED(mu_);
  void Refuse(const FrameHeader& header, const absl::Status& why) ABSL_LOCKS_EXCLUDED(mu_);
  void FinishLane(Lane& lane, const absl::Status& status, Epoch epoch,
                  std::span<const WorkerId> holders) ABSL_LOCKS_EXCLUDED(mu_);
  void Send(grpc::ByteBuffer&& message, size_t bytes) ABSL_LOCKS_EXCLUDED(mu_);
  // A lane that nobody uses, or null.
  Lane* FindFree() ABSL_LOCKS_EXCLUDED(mu_);
  // Marks what the sink has; how many that is news for.
  size_t CancelAll() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const SessionTerms terms_;
  const PeerId peer_;
  const size_t frame_bytes_max_;
  const size_t send_bytes_max_;
  CallSink& sink_;
  const std::shared_ptr<SessionCounters> counters_;
  const Clock& clock_;
  const std::shared_ptr<SendMemory> sends_;  // a block per lane, for its answer
  std::vector<Lane> lanes_;

  // Of the one read that is under way.
  grpc::ByteBuffer message_;
  EnvelopeReader envelope_;
  DamageWindow damage_;
  AlignedBuffer spare_frame_;               // for what comes when no lane is free
  std::vector<uint64_t> last_seq_;          // of each slot
  std::atomic<bool> is_swallowing_{false};  // a failpoint: nothing comes in or goes out

  Mutex mu_;  // never held while an operation of the stream is started
  std::shared_ptr<Session> self_ ABSL_GUARDED_BY(mu_);  // until OnDone
  grpc::CallbackServerContext* context_ ABSL_GUARDED_BY(mu_);
  WriteQueue writes_ ABSL_GUARDED_BY(mu_);
  bool is_closing_ ABSL_GUARDED_BY(mu_) = false;
  grpc::Status end_ ABSL_GUARDED_BY(mu_);  // once closing
};

}  // namespace conclave::transport
