// The worker's end of a channel: calls that came from frontends, and what takes them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/ids.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::transport {

// One frontend's link to this worker, for fair queues: grows, is never used twice in a process.
using PeerId = Id<struct PeerIdTag, uint64_t>;

// The words that failpoints know phases by.
constexpr std::string_view NameOf(Phase phase) {
  return phase == Phase::kDecode ? "decode" : "prefill";
}

// A call that has arrived and passed every check of ValidateCall. Its memory, that of call and
// reply, belongs to the link's slot and is good until Finish; also when the peer is gone meanwhile.
class ServedCall {
 public:
  virtual ~ServedCall() = default;

  CallView call;
  // Room for exactly the call's rows; the taker fills rows, queue_us and service_us.
  ReplyView reply;
  PeerId peer;
  MonotonicTime received_at;

  // Nobody waits for the answer any more: cancelled by the frontend, or its link is gone. Any
  // thread.
  virtual bool is_cancelled() const = 0;

  // Answers with the reply, or with a NACK for an error (NackCodeOf); `epoch` and `holders` (who
  // has what this worker does not hold) go into a NACK. Once, on any thread; the object must not be
  // touched after it. Does not block.
  virtual void Finish(const absl::Status& status, Epoch epoch,
                      std::span<const WorkerId> holders) = 0;

  // The call's link, for failpoints; null where it has none. Until Finish.
  virtual std::shared_ptr<FailpointLink> failpoint_link() { return nullptr; }
};

// Takes calls: a worker's queue. Outlives the servers that feed it.
class CallSink {
 public:
  virtual ~CallSink() = default;

  // Any thread; does not block. OK: Finish will be called, sooner or later. An error: the server
  // refuses the call with it, and the object stays the server's.
  virtual absl::Status Submit(ServedCall* call) = 0;

  // is_cancelled() of some of this peer's calls has become true: what still waits may be dropped
  // (by Finish with kCancelled, which sends nothing). Any thread.
  virtual void OnCancelled(PeerId peer) = 0;

  // The link is gone; all its calls are cancelled. Any thread.
  virtual void OnPeerGone(PeerId peer) = 0;
};

}  // namespace conclave::transport
