// The calls of operators on gRPC, in front of the loop that owns the core.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/mutex.h"
#include "conclave/live/feed.h"
#include "conclave/router_service/router_types.h"
#include "core_slot.h"

namespace conclave::router_service {

// Calls that wait for the core's answer. Any thread; every waiter is called once.
class AdminReplies {
 public:
  using Waiter = std::function<void(const AdminReply& reply)>;
  // The number for AdminEvent::request.
  uint64_t Add(Waiter waiter);
  // Nothing happens when nobody waits for it.
  void Answer(const AdminReply& reply);
  void AnswerAll(const AdminReply& reply);

 private:
  Mutex mu_;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<uint64_t, Waiter> waiters_ ABSL_GUARDED_BY(mu_);
};

// Recorded routing, as the shell asks for it. Any thread; `done` is called once, on the core's
// thread or, where no core commands, at once on the caller's with the slot's refusal. Errors:
// "recording_model", "no_recording", "stale_term", "standby".
using RecordingDone = std::function<void(const absl::StatusOr<RecordingStatus>& recording)>;
using RecordingTake = std::function<void(absl::StatusOr<Recording> recording)>;
void Record(bool is_start, CoreSlot& core, AdminReplies& replies, RecordingDone done);
void TakeRecording(CoreSlot& core, const RecordingTake& done);

// All outlive the service, and the service the server that has it.
std::unique_ptr<grpc::Service> MakeAdminService(CoreSlot& core, AdminReplies& replies,
                                                live::Feed& feed);

// kPermissionDenied ("peer_role", "peer_identity") unless the peer's certificate has the role.
// Without TLS there are no roles: the listener is loopback, or the operator said --insecure.
absl::Status CheckRole(const grpc::CallbackServerContext& context, const char* role);

}  // namespace conclave::router_service
