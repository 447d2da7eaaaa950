// One frontend's session on the worker's end of the ucx channel, and what all sessions share.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "conclave/base/mutex.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/call_server.h"
#include "conclave/transport/frame.h"
#include "damage_window.h"
#include "session_terms.h"
#include "side_server.h"
#include "ucx_worker.h"

namespace conclave::transport {

class UcxSession;

// The UCX worker of a server with its lock; shared, so that calls may outlive the server.
struct UcxCore {
  CallSink* sink = nullptr;
  std::shared_ptr<SessionCounters> counters;
  const Clock* clock = nullptr;

  // Threads that wait to send: the one that makes progress gives way to them.
  std::atomic<int> num_waiting{0};
  Mutex mu;  // of UCX's worker and all that its callbacks touch; never held while a sink is called
  std::unique_ptr<UcxWorker> worker ABSL_GUARDED_BY(mu);  // null: stopped
  std::map<uint64_t, std::shared_ptr<UcxSession>> sessions ABSL_GUARDED_BY(mu);

  // A frame in memory of its session's, to be looked at without the lock.
  struct Arrival {
    std::shared_ptr<UcxSession> session;
    int lane = 0;  // -1: in its spare memory
    FrameHeader header{};
    size_t bytes = 0;
    bool has_payload = true;  // false: too much to be taken without a lane
  };
  std::vector<Arrival> arrivals ABSL_GUARDED_BY(mu);
  struct Failure {
    std::shared_ptr<UcxSession> session;
    absl::Status why;
  };
  std::vector<Failure> failures ABSL_GUARDED_BY(mu);
  std::vector<std::shared_ptr<UcxSession>> closing ABSL_GUARDED_BY(mu);
};

class UcxSession final : public SideSession,
                         public FailpointLink,
                         public std::enable_shared_from_this<UcxSession> {
 public:
  UcxSession(uint64_t id, const SessionTerms& terms, bool has_payload_crc,
             std::shared_ptr<UcxCore> core, std::function<void(const absl::Status&)> on_end);
  ~UcxSession() override;

  // Any thread.
  void Close() override;
  void Disrupt(FailpointAction how) override;

  // Connects to the frontend. With the core's lock.
  absl::Status Connect(const std::string& peer_address);

  // A message of this session, during the worker's Progress, with the core's lock.
  ucs_status_t OnMessage(const UcxHead& head, void* message, size_t bytes, bool is_large);

  // The server's thread alone, without the lock.
  void Process(const UcxCore::Arrival& arrival);
  // Ends the session for a reason of its own.
  void End(const absl::Status& why);

  // The server's thread alone, with the lock: gives the endpoint up; whether UCX has let go of
  // everything.
  void StartClose();
  bool IsClosed();
  // After the last Process.
  void TellGone();

  uint64_t id() const { return id_; }
  bool has_operations() const { return num_operations_ > 0; }

 private:
  static constexpr size_t kControlBytes = kUcxPrefixBytes + 2 * kFrameHeaderBytes;

  // Memory of one call: FREE → receiving → arrived → served (the sink has it) → sending → FREE.
  struct Lane final : ServedCall {
    enum class State : uint8_t { kFree, kReceiving, kArrived, kServed, kSending };
    bool is_cancelled() const override { return cancelled.load(std::memory_order_acquire); }
    void Finish(const absl::Status& status, Epoch epoch,
                std::span<const WorkerId> holders) override;
    std::shared_ptr<FailpointLink> failpoint_link() override { return session; }

    UcxSession* owner = nullptr;
    int index = 0;
    AlignedBuffer frame;  // what the call's views look into
    AlignedBuffer block;  // of the answer
    FrameHeader header{};
    size_t received_bytes = 0;
    bool has_payload_crc = false;         // of the call, and of its answer
    std::shared_ptr<UcxSession> session;  // while served, so that a call outlives its session
    std::atomic<bool> cancelled{false};
    State state = State::kFree;  // guarded by the core's lock
  };
  struct Control {
    UcxSession* owner = nullptr;
    std::span<std::byte> block;
    bool is_busy = false;  // guarded by the core's lock
  };

  absl::Status Look(const UcxCore::Arrival& arrival);
  absl::Status TakeCall(std::span<const std::byte> frame, Lane* lane, const FrameHeader& header);
  absl::Status TakeControl(std::span<const std::byte> frame);
  void Serve(const Admission& admission, Lane& lane);
  void Refuse(const FrameHeader& header, const absl::Status& why);
  void FinishLane(Lane& lane, const absl::Status& status, Epoch epoch,
                  std::span<const WorkerId> holders);
  void SetFree(Lane& lane);
  // `encode` writes a frame of at most two headers and returns its length.
  void SendControl(const std::function<size_t(std::span<std::byte>)>& encode);
  ucs_status_t TakePayload(Lane& lane, const UcxHead& head, void* message, size_t bytes,
                           bool is_large);
  size_t CancelAll();
  // With the lock: the session is to end.
  void Fail(absl::Status why);

  std::atomic<bool> is_swallowing_{false};  // a failpoint: nothing comes in or goes out

  const uint64_t id_;
  const SessionTerms terms_;
  const bool has_payload_crc_;
  const PeerId peer_;
  const size_t frame_bytes_max_;
  const std::shared_ptr<UcxCore> core_;
  const std::function<void(const absl::Status&)> on_end_;

  std::vector<Lane> lanes_;
  AlignedBuffer spare_;  // for what comes when no lane is free, or needs none
  bool is_spare_used_ = false;
  AlignedBuffer controls_memory_;
  std::vector<Control> controls_;
  std::vector<uint64_t> last_seq_;  // of each slot; the server's thread
  DamageWindow damage_;             // the server's thread

  // Guarded by the core's lock.
  ucp_ep_h endpoint_ = nullptr;
  ucs_status_ptr_t close_ = nullptr;
  bool is_closed_ = false;
  bool is_failed_ = false;
  int num_operations_ = 0;  // that UCX has under way in this session's memory
};

}  // namespace conclave::transport
