#include "call_table.h"

#include <algorithm>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/transport/rows.h"
#include "frame_faults.h"
#include "frame_io.h"
#include "session_terms.h"
#include "slot_memory.h"

namespace conclave::transport {

absl::Status LinkLost(const std::string& why) {
  return Error(absl::StatusCode::kUnavailable, "link_lost", "link to the worker: " + why);
}

CallTable::CallTable(const ChannelLimits& limits, const FrameLimits& frame_limits,
                     uint32_t frontend, const Clock& clock)
    : limits_(limits),
      frame_limits_(frame_limits),
      frontend_(frontend),
      clock_(clock),
      slots_(limits.num_slots),
      last_heard_(clock.Now()) {
  for (uint32_t i = 0; i < slots_.size(); ++i) {
    slots_[i].index = i;
  }
}

CallTable::Slot& CallTable::Own(CallSlot* slot) {
  const auto it =
      std::find_if(slots_.begin(), slots_.end(), [slot](const Slot& s) { return &s == slot; });
  CONCLAVE_CHECK(it != slots_.end());
  return *it;
}

CallSlot* CallTable::Acquire() {
  const auto it = std::find_if(slots_.begin(), slots_.end(), [](const Slot& s) {
    return s.state == SlotState::kFree && !s.is_busy;
  });
  if (it == slots_.end()) {
    return nullptr;
  }
  it->state = SlotState::kFilled;
  ++it->seq;
  it->call = CallView();
  it->reply = ReplyView();
  it->status = absl::OkStatus();
  it->worker_epoch = Epoch();
  it->holders = {};
  StampCall(limits_, frontend_, it->index, it->seq, it->call);
  return &*it;
}

absl::Status CallTable::Prepare(Slot& slot) {
  CONCLAVE_CHECK(slot.state == SlotState::kFilled);
  StampCall(limits_, frontend_, slot.index, slot.seq, slot.call);
  CONCLAVE_RETURN_IF_ERROR(CheckSpans(limits_, slot));
  return kValidatesCalls ? ValidateCall(slot.call, frame_limits_) : absl::OkStatus();
}

void CallTable::MarkDispatched(Slot& slot) {
  slot.dispatched_at = clock_.Now();
  slot.state = SlotState::kDispatched;
}

std::optional<absl::Status> CallTable::StatusOf(const Slot& slot) const {
  switch (slot.state) {
    case SlotState::kDone:
      return slot.status;
    case SlotState::kCancelled:
      return Error(absl::StatusCode::kCancelled, "cancelled", "call: was cancelled");
    default:
      CONCLAVE_CHECK(slot.state == SlotState::kDispatched);
      return std::nullopt;
  }
}

absl::StatusOr<std::chrono::nanoseconds> CallTable::TimeLeft(const Slot& slot) const {
  constexpr std::chrono::nanoseconds kTurn = std::chrono::seconds(1);
  if (slot.call.deadline_us == 0) {
    return kTurn;
  }
  const auto until = slot.dispatched_at + std::chrono::microseconds(slot.call.deadline_us);
  const MonotonicTime now = clock_.Now();
  if (now >= until) {
    return Error(absl::StatusCode::kDeadlineExceeded, "deadline",
                 "call: expected an answer within " + std::to_string(slot.call.deadline_us) +
                     " us, found none");
  }
  return std::min<std::chrono::nanoseconds>(kTurn, until - now);
}

std::optional<ControlFrame> CallTable::Cancel(Slot& slot) {
  CONCLAVE_CHECK(slot.state != SlotState::kFree);
  if (slot.state != SlotState::kDispatched) {
    return std::nullopt;
  }
  slot.state = SlotState::kCancelled;
  return ControlFrame{.type = FrameType::kCancel,
                      .epoch = slot.call.epoch,
                      .frontend = frontend_,
                      .slot = slot.index,
                      .seq = slot.seq};
}

void CallTable::Release(Slot& slot) {
  CONCLAVE_CHECK(slot.state != SlotState::kFree && slot.state != SlotState::kDispatched);
  slot.state = SlotState::kFree;
}

std::optional<ControlFrame> CallTable::Ping() {
  if (pinged_at_.has_value()) {
    return std::nullopt;
  }
  pinged_at_ = clock_.Now();
  return ControlFrame{.type = FrameType::kPing, .frontend = frontend_, .seq = ++ping_seq_};
}

void CallTable::Finish(Slot& slot, absl::Status status) {
  if (!status.ok()) {
    slot.reply.rows = {};
  }
  slot.status = std::move(status);
  slot.state = SlotState::kDone;
}

bool CallTable::Lose(const std::string& why) {
  if (!lost_.ok()) {
    return false;
  }
  lost_ = LinkLost(why);
  for (Slot& slot : slots_) {
    if (slot.state == SlotState::kDispatched) {
      Finish(slot, lost_);
    }
  }
  return true;
}

CallTable::Slot* CallTable::Find(uint32_t frontend, uint32_t index, uint64_t seq) {
  const bool is_waited_for = frontend == frontend_ && index < slots_.size() &&
                             slots_[index].seq == seq &&
                             slots_[index].state == SlotState::kDispatched;
  return is_waited_for ? &slots_[index] : nullptr;
}

absl::StatusOr<CallTable::Received> CallTable::Parse(std::span<std::byte> frame) const {
  CONCLAVE_ASSIGN_OR_RETURN(FrameHeader header, PeekHeader(frame));
  FailpointHit hit;
  if (header.type == static_cast<uint16_t>(FrameType::kReply) ||
      header.type == static_cast<uint16_t>(FrameType::kNack)) {
    hit = CONCLAVE_FAILPOINT("l.reply_frame", (ContextOf(header)));
  }
  if (hit.is_hit()) {
    frame = frame.first(Damage(hit, frame));
    CONCLAVE_ASSIGN_OR_RETURN(header, PeekHeader(frame));
  }
  const bool is_twice = hit.action == FailpointAction::kDup;
  switch (static_cast<FrameType>(header.type)) {
    case FrameType::kReply: {
      const absl::StatusOr<ParsedReply> reply = ParseReply(frame, frame_limits_);
      if (reply.ok()) {
        return Received{Reply{*reply, AllFinite(reply->rows, frame_limits_.dtype)}, is_twice};
      }
      if (ReasonOf(reply.status()) != "corrupt_payload") {
        return reply.status();
      }
      return Received{DamagedReply{header.frontend, header.slot, header.seq, reply.status()},
                      is_twice};
    }
    case FrameType::kNack: {
      CONCLAVE_ASSIGN_OR_RETURN(const ParsedNack nack, ParseNack(frame));
      return Received{nack, is_twice};
    }
    default: {
      CONCLAVE_ASSIGN_OR_RETURN(const ControlFrame control, ParseControl(frame));
      if (control.type != FrameType::kPong && control.type != FrameType::kCredit) {
        return FrameError("type", "expected nothing that only a frontend sends");
      }
      return Received{control, false};
    }
  }
}

bool CallTable::Apply(const Received& received) {
  const bool has_ended = Take(received);
  if (received.has_come_twice) {
    Take(received);
  }
  return has_ended;
}

bool CallTable::Take(const Received& received) {
  if (const auto* reply = std::get_if<Reply>(&received.frame)) {
    return TakeReply(*reply);
  }
  if (const auto* damaged = std::get_if<DamagedReply>(&received.frame)) {
    return TakeDamaged(*damaged);
  }
  if (const auto* nack = std::get_if<ParsedNack>(&received.frame)) {
    return TakeNack(*nack);
  }
  TakeControl(std::get<ControlFrame>(received.frame));
  return false;
}

void CallTable::CountMalformed() {
  ++counters_.malformed;
  NoteDamage();
  (void)CONCLAVE_FAILPOINT("l.bad_frame", {});
}

void CallTable::CountLate() {
  ++counters_.late_replies;
  (void)CONCLAVE_FAILPOINT("l.late_reply", {});
}

bool CallTable::TakeDamaged(const DamagedReply& damaged) {
  CountMalformed();
  Slot* slot = Find(damaged.frontend, damaged.slot, damaged.seq);
  if (slot == nullptr) {
    CountLate();
    return false;
  }
  Finish(*slot, damaged.why);
  return true;
}

bool CallTable::TakeReply(const Reply& received) {
  const ParsedReply& reply = received.reply;
  Slot* slot = Find(reply.frontend, reply.slot, reply.seq);
  if (slot == nullptr) {
    CountLate();
    return false;
  }
  absl::Status status = CheckAnswers(slot->call, reply);
  if (status.ok() && !received.is_finite) {
    status = Error(absl::StatusCode::kInternal, "numeric_error",
                   "reply of layer " + std::to_string(slot->call.layer.value()) +
                       ": holds NaN or infinity; expected finite rows");
  }
  if (status.ok()) {
    slot->reply.rows = slot->reply_rows.first(reply.rows.size());
    if (reply.rows.data() != slot->reply.rows.data()) {
      std::copy(reply.rows.begin(), reply.rows.end(), slot->reply.rows.begin());
    }
    slot->reply.service_us = reply.service_us;
    slot->reply.queue_us = reply.queue_us;
  }
  Finish(*slot, std::move(status));
  return true;
}

bool CallTable::TakeNack(const ParsedNack& nack) {
  Slot* slot = Find(nack.frontend, nack.slot, nack.seq);
  if (slot == nullptr) {
    CountLate();
    return false;
  }
  slot->num_holders = 0;
  for (const uint32_t id : nack.holders) {
    if (id <= INT32_MAX) {
      slot->holder_ids[slot->num_holders++] = WorkerId(static_cast<int32_t>(id));
    }
  }
  slot->holders = std::span(slot->holder_ids).first(slot->num_holders);
  slot->worker_epoch = nack.epoch;
  if (nack.code == NackCode::kCorruptPayload) {
    NoteDamage();  // on the way there
  }
  Finish(*slot, ToStatus(nack.code));
  return true;
}

void CallTable::TakeControl(const ControlFrame& control) {
  // CREDIT: the slots are the credits.
  if (control.type == FrameType::kPong && pinged_at_.has_value() && control.seq == ping_seq_) {
    round_trip_ = clock_.Now() - *pinged_at_;
    pinged_at_.reset();
  }
}

}  // namespace conclave::transport
