#include "grpc_link.h"

#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/transport/grpc_support.h"
#include "frame_faults.h"
#include "frame_io.h"
#include "grpc_pair.h"
#include "session_terms.h"
#include "slot_memory.h"

namespace conclave::transport {
namespace {

// Of a stream that was cancelled; far above what a starved machine needs.
constexpr std::chrono::seconds kEndMax{60};

}  // namespace

Link::Link(std::shared_ptr<grpc::Channel> channel, const ChannelLimits& limits,
           const FrameLimits& frame_limits, const PairTerms& terms, Doorbell& bell,
           const Clock& clock)
    : clock_(clock),
      has_payload_crc_(terms.has_payload_crc),
      frame_bytes_max_(MaxFrameBytes(frame_limits)),
      send_bytes_max_(std::max(kSendQueueBytesMax, (limits.num_slots + 1u) * frame_bytes_max_)),
      channel_(std::move(channel)),
      sends_(SendMemory::Create(limits.num_slots, frame_bytes_max_)),
      memory_(SlotBytes(limits) * limits.num_slots),
      received_(frame_bytes_max_),
      table_(limits, frame_limits, terms.frontend_id, clock),
      bell_(&bell) {
  for (CallTable::Slot& slot : table_.slots()) {
    LayOutSlot(limits, memory_.As<std::byte>() + slot.index * SlotBytes(limits), slot);
  }
}

absl::Status Link::Open(uint64_t session, MonotonicTime until) {
  context_.AddMetadata(kSessionMetadata, SessionText(session));
  grpc::GenericStub stub(channel_);
  stub.PrepareBidiStreamingCall(&context_, "/conclave.v1.ExpertService/Exchange", {}, this);
  // The owner starts writes from outside of reactions.
  AddHold();
  StartRead(&message_);
  StartCall();
  {
    MutexLock lock(mu_);
    while (opening_ == Opening::kWaiting) {
      const auto left = until - clock_.Now();
      if (left <= std::chrono::nanoseconds::zero()) {
        break;
      }
      changed_.WaitFor(mu_, std::min<std::chrono::nanoseconds>(left, std::chrono::seconds(1)));
    }
    if (opening_ == Opening::kOpen && table_.lost().ok()) {
      return absl::OkStatus();
    }
  }
  // Why the stream was refused comes when it is over, and that only without holds.
  Close();
  MutexLock lock(mu_);
  if (end_.code() == absl::StatusCode::kCancelled || ReasonOf(end_).empty()) {
    return Error(absl::StatusCode::kUnavailable, "connect",
                 "worker: shook hands but did not open the stream in time");
  }
  return end_;
}

void Link::Close() {
  {
    MutexLock lock(mu_);
    bell_ = nullptr;
    table_.ForgetPing();
    table_.Lose("closed");
    writes_.DropWaiting();
  }
  context_.TryCancel();
  RemoveHold();
  // A cancelled stream ends here, whatever the peer does. The end must be waited for: the last
  // reference to a gRPC channel that is dropped on one of gRPC's threads makes it join itself.
  const MonotonicTime until = Clock::Real().Now() + kEndMax;
  MutexLock lock(mu_);
  while (!is_done_) {
    CONCLAVE_CHECK(Clock::Real().Now() < until);
    changed_.WaitFor(mu_, std::chrono::milliseconds(100));
  }
}

CallSlot* Link::Acquire() {
  MutexLock lock(mu_);
  return table_.Acquire();
}

absl::Status Link::Dispatch(CallSlot* call_slot) {
  CallTable::Slot& slot = table_.Own(call_slot);
  CONCLAVE_RETURN_IF_ERROR(table_.Prepare(slot));
  CONCLAVE_RETURN_IF_ERROR(LinkStatus());
  const FailpointHit hit = CONCLAVE_FAILPOINT("l.call_frame", (ContextOf(slot.call)));
  const auto encode = [this, &slot, &hit](std::span<std::byte> out) {
    const size_t length = EncodeCall(slot.call, has_payload_crc_, out);
    return Damage(hit, out.first(length));
  };
  // The block is busy only when a call in this slot was given up before gRPC could send it.
  size_t bytes = 0;
  const auto make_message = [&] {
    if (sends_->IsBusy(slot.index)) {
      return sends_->Make(frame_bytes_max_,
                          [&](std::span<std::byte> out) { return bytes = encode(out); });
    }
    bytes = encode(sends_->BytesOf(slot.index));
    return sends_->Lend(slot.index, bytes);
  };
  grpc::ByteBuffer message = make_message();
  {
    MutexLock lock(mu_);
    table_.MarkDispatched(slot);
  }
  const bool is_sent_once =
      hit.action != FailpointAction::kDup || Send(grpc::ByteBuffer(message), bytes);
  if (is_sent_once && Send(std::move(message), bytes)) {
    return absl::OkStatus();
  }
  MutexLock lock(mu_);
  table_.TakeBack(slot);
  return table_.lost();
}

std::optional<absl::Status> Link::Poll(CallSlot* call_slot) {
  const CallTable::Slot& slot = table_.Own(call_slot);
  MutexLock lock(mu_);
  return table_.StatusOf(slot);
}

absl::Status Link::Await(CallSlot* call_slot) {
  const CallTable::Slot& slot = table_.Own(call_slot);
  MutexLock lock(mu_);
  while (true) {
    if (std::optional<absl::Status> status = table_.StatusOf(slot); status.has_value()) {
      return *std::move(status);
    }
    CONCLAVE_ASSIGN_OR_RETURN(const std::chrono::nanoseconds left, table_.TimeLeft(slot));
    changed_.WaitFor(mu_, left);
  }
}

absl::Status Link::LinkStatus() const {
  MutexLock lock(mu_);
  return table_.lost();
}

void Link::Cancel(CallSlot* call_slot) {
  CallTable::Slot& slot = table_.Own(call_slot);
  std::optional<ControlFrame> cancel;
  {
    MutexLock lock(mu_);
    cancel = table_.Cancel(slot);
  }
  if (cancel.has_value()) {
    SendControl(*cancel);
  }
}

void Link::Release(CallSlot* call_slot) {
  CallTable::Slot& slot = table_.Own(call_slot);
  MutexLock lock(mu_);
  table_.Release(slot);
}

void Link::Ping() {
  std::optional<ControlFrame> ping;
  {
    MutexLock lock(mu_);
    ping = table_.Ping();
  }
  if (ping.has_value()) {
    SendControl(*ping);
  }
}

MonotonicTime Link::last_heard() const {
  MutexLock lock(mu_);
  return table_.last_heard();
}

std::chrono::nanoseconds Link::ping_round_trip() const {
  MutexLock lock(mu_);
  return table_.round_trip();
}

LinkCounters Link::counters() const {
  MutexLock lock(mu_);
  return table_.counters();
}

void Link::SendControl(const ControlFrame& control) {
  alignas(kFrameAlignment) std::array<std::byte, kFrameHeaderBytes> frame;
  EncodeControl(control, frame);
  Send(sends_->Copy(frame), frame.size());
}

bool Link::Send(grpc::ByteBuffer&& message, size_t bytes) {
  const grpc::ByteBuffer* first = nullptr;
  bool is_full = false;
  {
    MutexLock lock(mu_);
    if (!table_.lost().ok()) {
      return false;
    }
    is_full = sends_->pending_bytes() > send_bytes_max_;
    if (!is_full) {
      table_.counters().bytes_sent += bytes;
      first = writes_.Push(std::move(message));
    }
  }
  if (is_full) {
    Lose("the worker reads too slowly; " + std::to_string(send_bytes_max_) + " bytes wait for it");
    return false;
  }
  if (first != nullptr) {
    StartWrite(first);
  }
  return true;
}

void Link::Tell() {
  changed_.NotifyAll();
  if (bell_ != nullptr) {
    bell_->Ring();
  }
}

void Link::Lose(const std::string& why) {
  {
    MutexLock lock(mu_);
    if (!table_.Lose(why)) {
      return;
    }
    writes_.DropWaiting();
    Tell();
  }
  context_.TryCancel();
}

absl::Status Link::Receive() {
  CONCLAVE_RETURN_IF_ERROR(envelope_.Open(message_));
  const size_t bytes = envelope_.frame_bytes();
  {
    MutexLock lock(mu_);
    // The clock lives as long as the owner.
    if (bell_ != nullptr) {
      table_.Heard();
    }
    table_.counters().bytes_received += bytes;
  }
  if (bytes > frame_bytes_max_) {
    return FrameError("bad_length", "expected at most " + std::to_string(frame_bytes_max_) +
                                        " bytes, found " + std::to_string(bytes));
  }
  const std::span<std::byte> frame(received_.As<std::byte>(), bytes);
  envelope_.CopyTo(frame);
  CONCLAVE_ASSIGN_OR_RETURN(const CallTable::Received received, table_.Parse(frame));
  MutexLock lock(mu_);
  if (table_.Apply(received)) {
    Tell();
  }
  return absl::OkStatus();
}

bool Link::IsDamaging(const absl::Status& received) {
  MutexLock lock(mu_);
  if (!received.ok()) {
    table_.CountMalformed();
  }
  return table_.is_damaging();
}

void Link::OnReadInitialMetadataDone(bool ok) {
  MutexLock lock(mu_);
  opening_ = ok ? Opening::kOpen : Opening::kFailed;
  changed_.NotifyAll();
}

void Link::OnReadDone(bool ok) {
  if (!ok) {
    Lose("the worker or the network ended it");
    return;
  }
  const absl::Status status = Receive();
  envelope_.Close();
  message_.Clear();
  if (IsDamaging(status)) {
    Lose(CallTable::kTooMuchDamage);
    return;
  }
  StartRead(&message_);
}

void Link::OnWriteDone(bool ok) {
  const grpc::ByteBuffer* next = nullptr;
  {
    MutexLock lock(mu_);
    if (!ok) {
      writes_.DropWaiting();
    }
    next = writes_.Next();
  }
  if (!ok) {
    Lose("the worker or the network ended it");
  } else if (next != nullptr) {
    StartWrite(next);
  }
}

void Link::OnDone(const grpc::Status& status) {
  MutexLock lock(mu_);
  is_done_ = true;
  end_ = FromGrpc(status);
  opening_ = opening_ == Opening::kWaiting ? Opening::kFailed : opening_;
  changed_.NotifyAll();
}

}  // namespace conclave::transport
