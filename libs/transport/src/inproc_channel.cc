#include "conclave/transport/inproc_channel.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/rows.h"
#include "frame_faults.h"
#include "session_terms.h"
#include "slot_memory.h"

namespace conclave::transport {
namespace {

// All bits set is a NaN in every wire dtype: a row that the handler forgets is caught by the
// finite-check.
constexpr int kPoison = 0xff;

enum class SlotState : uint8_t { kFree, kFilled, kDispatched, kDone, kCancelled };

struct Slot : CallSlot {
  SlotState state = SlotState::kFree;
  uint32_t index = 0;
  uint64_t seq = 0;
  MonotonicTime dispatched_at;
};

FrameLimits FrameLimitsOf(const InprocOptions& options) {
  FrameLimits limits;
  limits.max_rows = options.limits.max_rows;
  limits.max_pairs = options.limits.max_pairs;
  limits.row_width = options.limits.row_width;
  limits.dtype = options.limits.dtype;
  limits.num_layers = options.num_layers;
  limits.num_experts_max = options.num_experts_max;
  limits.top_k = options.top_k;
  limits.gate_bound = options.gate_bound;
  return limits;
}

template <typename T>
bool SameBytes(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

bool SameCall(const CallView& a, const CallView& b) {
  return a.epoch == b.epoch && a.frontend == b.frontend && a.slot == b.slot && a.seq == b.seq &&
         a.model == b.model && a.layer == b.layer && a.phase == b.phase &&
         a.micro_batch == b.micro_batch && a.attempt == b.attempt &&
         a.deadline_us == b.deadline_us && a.image_rows == b.image_rows && a.dtype == b.dtype &&
         a.row_width == b.row_width && a.num_rows == b.num_rows &&
         SameBytes(a.pair_weight, b.pair_weight) && SameBytes(a.pair_row, b.pair_row) &&
         SameBytes(a.pair_expert, b.pair_expert) && SameBytes(a.rows, b.rows);
}

absl::Status ProtocolError(const char* reason, const char* why) {
  return Error(absl::StatusCode::kInternal, reason, std::string("inproc channel: ") + why);
}

class InprocChannel final : public ExpertChannel {
 public:
  InprocChannel(CallHandler& handler, const InprocOptions& options)
      : handler_(handler), options_(options), frame_limits_(FrameLimitsOf(options)) {
    const ChannelLimits& limits = options_.limits;
    CheckLimits(limits);
    const size_t row_bytes = RowBytes(limits.max_rows, limits.row_width, limits.dtype);
    const size_t slot_bytes = SlotBytes(limits);
    memory_ = AlignedBuffer(slot_bytes * limits.num_slots);
    slots_.resize(limits.num_slots);
    for (size_t i = 0; i < slots_.size(); ++i) {
      LayOutSlot(limits, memory_.As<std::byte>() + i * slot_bytes, slots_[i]);
      slots_[i].index = static_cast<uint32_t>(i);
    }
    if (options_.use_frames) {
      call_frame_ = AlignedBuffer(MaxFrameBytes(frame_limits_));
      reply_frame_ = AlignedBuffer(MaxFrameBytes(frame_limits_));
      worker_rows_ = AlignedBuffer(row_bytes);
    }
  }

  const ChannelLimits& limits() const override { return options_.limits; }

  CallSlot* Acquire() override {
    const auto it = std::find_if(slots_.begin(), slots_.end(),
                                 [](const Slot& s) { return s.state == SlotState::kFree; });
    if (it == slots_.end()) {
      return nullptr;
    }
    it->state = SlotState::kFilled;
    ++it->seq;
    it->call = CallView();
    it->reply = ReplyView();
    Stamp(*it);
    return &*it;
  }

  absl::Status Dispatch(CallSlot* call_slot) override {
    Slot& slot = Own(call_slot);
    CONCLAVE_CHECK(slot.state == SlotState::kFilled);
    Stamp(slot);
    CONCLAVE_RETURN_IF_ERROR(CheckSpans(options_.limits, slot));
    if (options_.use_frames || kValidatesCalls) {
      CONCLAVE_RETURN_IF_ERROR(ValidateCall(slot.call, frame_limits_));
    }
    slot.dispatched_at = options_.clock->Now();
    slot.state = SlotState::kDispatched;
    return absl::OkStatus();
  }

  std::optional<absl::Status> Poll(CallSlot* slot) override { return Await(slot); }

  absl::Status LinkStatus() const override { return absl::OkStatus(); }

  absl::Status Await(CallSlot* call_slot) override {
    Slot& slot = Own(call_slot);
    if (slot.state == SlotState::kCancelled) {
      return Error(absl::StatusCode::kCancelled, "cancelled", "call: was cancelled");
    }
    CONCLAVE_CHECK(slot.state == SlotState::kDispatched);
    slot.state = SlotState::kDone;
    const uint32_t queue_us = MicrosecondsBetween(slot.dispatched_at, options_.clock->Now());
    if (slot.call.deadline_us != 0 && queue_us >= slot.call.deadline_us) {
      return Error(absl::StatusCode::kDeadlineExceeded, "deadline",
                   "call: expected to start within " + std::to_string(slot.call.deadline_us) +
                       " us, found it after " + std::to_string(queue_us));
    }
    slot.reply.rows =
        slot.reply_rows.first(RowBytes(slot.call.num_rows, slot.call.row_width, slot.call.dtype));
    slot.reply.queue_us = queue_us;
    absl::Status status = options_.use_frames ? RunByFrames(slot) : Run(slot.call, slot.reply);
    if (status.ok() && !AllFinite(slot.reply.rows, slot.call.dtype)) {
      status = Error(absl::StatusCode::kInternal, "numeric_error",
                     "reply of layer " + std::to_string(slot.call.layer.value()) +
                         ": holds NaN or infinity; expected finite rows");
    }
    if (!status.ok()) {
      slot.reply.rows = {};
    }
    return status;
  }

  void Cancel(CallSlot* call_slot) override {
    Slot& slot = Own(call_slot);
    CONCLAVE_CHECK(slot.state != SlotState::kFree);
    if (slot.state == SlotState::kDispatched) {
      slot.state = SlotState::kCancelled;
    }
  }

  void Release(CallSlot* call_slot) override {
    Slot& slot = Own(call_slot);
    CONCLAVE_CHECK(slot.state != SlotState::kFree && slot.state != SlotState::kDispatched);
    slot.state = SlotState::kFree;
  }

  LinkCounters counters() const override { return counters_; }

 private:
  Slot& Own(CallSlot* slot) {
    const auto it =
        std::find_if(slots_.begin(), slots_.end(), [slot](const Slot& s) { return &s == slot; });
    CONCLAVE_CHECK(it != slots_.end());
    return *it;
  }

  void Stamp(Slot& slot) const {
    StampCall(options_.limits, options_.frontend, slot.index, slot.seq, slot.call);
  }

  absl::Status Run(const CallView& call, ReplyView& reply) {
    const uint32_t queue_us = reply.queue_us;
    const MonotonicTime start = options_.clock->Now();
    CONCLAVE_RETURN_IF_ERROR(handler_.Execute(call, reply));
    reply.service_us = MicrosecondsBetween(start, options_.clock->Now());
    reply.queue_us = queue_us;
    return absl::OkStatus();
  }

  // One delivery: what a worker at the other end of a wire does, up to its encoded reply, and what
  // the frontend makes of that. The result is a view into reply_frame_.
  absl::StatusOr<ParsedReply> Deliver(const CallView& call, uint32_t queue_us) {
    const std::span<std::byte> call_bytes(call_frame_.As<std::byte>(), call_frame_.size_bytes());
    const std::span<std::byte> reply_bytes(reply_frame_.As<std::byte>(), reply_frame_.size_bytes());
    const size_t encoded = EncodeCall(call, true, call_bytes);
    const FailpointHit call_hit = CONCLAVE_FAILPOINT("l.call_frame", (ContextOf(call)));
    const size_t call_length = Damage(call_hit, call_bytes.first(encoded));
    const absl::StatusOr<CallView> parsed = ParseCall(call_bytes.first(call_length), frame_limits_);
    if (!parsed.ok()) {
      return Refused(parsed.status(), call_hit);
    }
    const CallView& received = *parsed;
    if (!SameCall(call, received)) {
      return ProtocolError("frame_differs", "a call changed between encoding and parsing");
    }
    std::memset(worker_rows_.As<std::byte>(), kPoison, call.rows.size());
    ReplyView answer;
    answer.rows = {worker_rows_.As<std::byte>(), call.rows.size()};
    answer.queue_us = queue_us;
    const absl::Status status = Run(received, answer);
    if (!status.ok()) {
      const NackCode code = NackCodeOf(status);
      const size_t length = EncodeNack(received, received.epoch, code, {}, reply_bytes);
      CONCLAVE_ASSIGN_OR_RETURN(const ParsedNack nack, ParseNack(reply_bytes.first(length)));
      if (nack.code != code || nack.slot != call.slot || nack.seq != call.seq) {
        return ProtocolError("frame_differs", "a NACK changed between encoding and parsing");
      }
      return status;
    }
    const size_t length = EncodeReply(received, answer, true, reply_bytes);
    const FailpointHit reply_hit = CONCLAVE_FAILPOINT("l.reply_frame", (ContextOf(call)));
    const absl::StatusOr<ParsedReply> reply =
        ParseReply(reply_bytes.first(Damage(reply_hit, reply_bytes.first(length))), frame_limits_);
    if (!reply.ok()) {
      return Refused(reply.status(), reply_hit);
    }
    CONCLAVE_RETURN_IF_ERROR(CheckAnswers(call, *reply));
    if (!SameBytes<std::byte>(reply->rows, std::span<const std::byte>(answer.rows))) {
      return ProtocolError("frame_differs", "a reply changed between encoding and parsing");
    }
    return *reply;
  }

  // A frame was refused by the parser. One that a failpoint has damaged is worth another attempt,
  // whatever it was taken for: there is no link here that would be closed for it.
  absl::Status Refused(const absl::Status& why, const FailpointHit& hit) {
    ++counters_.malformed;
    return hit.is_hit() ? Error(absl::StatusCode::kDataLoss, ReasonOf(why), MessageOf(why)) : why;
  }

  absl::Status RunByFrames(Slot& slot) {
    const uint32_t queue_us = slot.reply.queue_us;
    CONCLAVE_ASSIGN_OR_RETURN(const ParsedReply reply, Deliver(slot.call, queue_us));
    std::memcpy(slot.reply.rows.data(), reply.rows.data(), reply.rows.size());
    slot.reply.service_us = reply.service_us;
    slot.reply.queue_us = reply.queue_us;
    const absl::StatusOr<ParsedReply> duplicate = Deliver(slot.call, queue_us);
    if (duplicate.status().code() == absl::StatusCode::kDataLoss) {
      return absl::OkStatus();  // damaged by a failpoint; the first one has answered
    }
    if (!duplicate.ok() || !SameBytes<std::byte>(duplicate->rows, slot.reply.rows)) {
      return ProtocolError("duplicate_differs",
                           "a call delivered twice was answered differently; expected equal bytes");
    }
    return absl::OkStatus();
  }

  CallHandler& handler_;
  const InprocOptions options_;
  const FrameLimits frame_limits_;
  AlignedBuffer memory_;  // of all slots
  std::vector<Slot> slots_;
  LinkCounters counters_;
  // Of the frames mode alone.
  AlignedBuffer call_frame_;
  AlignedBuffer reply_frame_;
  AlignedBuffer worker_rows_;
};

}  // namespace

std::unique_ptr<ExpertChannel> MakeInprocChannel(CallHandler& handler,
                                                 const InprocOptions& options) {
  return std::make_unique<InprocChannel>(handler, options);
}

}  // namespace conclave::transport
