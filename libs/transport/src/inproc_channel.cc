#include "conclave/transport/inproc_channel.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/rows.h"
#include "frame_io.h"

namespace conclave::transport {
namespace {

#if !defined(NDEBUG) || defined(CONCLAVE_FAILPOINTS)
constexpr bool kValidatesCalls = true;
#else
constexpr bool kValidatesCalls = false;
#endif

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

uint32_t Microseconds(MonotonicTime from, MonotonicTime to) {
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(to - from).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(us, 0, UINT32_MAX));
}

template <typename T>
bool IsPrefix(std::span<const T> used, std::span<T> memory) {
  return used.size() <= memory.size() && (used.empty() || used.data() == memory.data());
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
    CONCLAVE_CHECK(limits.num_slots >= 1 && limits.max_rows >= 1 && limits.max_pairs >= 1);
    CONCLAVE_CHECK(limits.row_width >= 1 && limits.max_rows <= kMaxRowsPerCall);
    const size_t row_bytes = RowBytes(limits.max_rows, limits.row_width, limits.dtype);
    const size_t slot_bytes = AlignUp(PairBytes(limits.max_pairs)) + 2 * AlignUp(row_bytes);
    memory_ = AlignedBuffer(slot_bytes * limits.num_slots);
    slots_.resize(limits.num_slots);
    for (size_t i = 0; i < slots_.size(); ++i) {
      LayOut(slots_[i], memory_.As<std::byte>() + i * slot_bytes, row_bytes);
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
    const CallView& call = slot.call;
    const bool is_within =
        IsPrefix(call.pair_weight, slot.pair_weight) && IsPrefix(call.pair_row, slot.pair_row) &&
        IsPrefix(call.pair_expert, slot.pair_expert) && IsPrefix(call.rows, slot.rows) &&
        call.num_rows <= options_.limits.max_rows;
    if (!is_within) {
      return InvalidArgument("bad_items",
                             "call: expected spans that are prefixes of the slot's memory and at "
                             "most " +
                                 std::to_string(options_.limits.max_rows) + " rows, found others");
    }
    if (options_.use_frames || kValidatesCalls) {
      CONCLAVE_RETURN_IF_ERROR(ValidateCall(call, frame_limits_));
    }
    slot.dispatched_at = options_.clock->Now();
    slot.state = SlotState::kDispatched;
    return absl::OkStatus();
  }

  absl::Status Await(CallSlot* call_slot) override {
    Slot& slot = Own(call_slot);
    if (slot.state == SlotState::kCancelled) {
      return Error(absl::StatusCode::kCancelled, "cancelled", "call: was cancelled");
    }
    CONCLAVE_CHECK(slot.state == SlotState::kDispatched);
    slot.state = SlotState::kDone;
    const uint32_t queue_us = Microseconds(slot.dispatched_at, options_.clock->Now());
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

 private:
  void LayOut(Slot& slot, std::byte* memory, size_t row_bytes) const {
    const size_t pairs = options_.limits.max_pairs;
    slot.pair_weight = {reinterpret_cast<float*>(memory), pairs};
    slot.pair_row = {reinterpret_cast<uint16_t*>(memory + 4 * pairs), pairs};
    slot.pair_expert = {reinterpret_cast<uint16_t*>(memory + 6 * pairs), pairs};
    std::byte* rows = memory + AlignUp(PairBytes(pairs));
    slot.rows = {rows, row_bytes};
    slot.reply_rows = {rows + AlignUp(row_bytes), row_bytes};
  }

  Slot& Own(CallSlot* slot) {
    const auto it =
        std::find_if(slots_.begin(), slots_.end(), [slot](const Slot& s) { return &s == slot; });
    CONCLAVE_CHECK(it != slots_.end());
    return *it;
  }

  void Stamp(Slot& slot) const {
    slot.call.frontend = options_.frontend;
    slot.call.slot = slot.index;
    slot.call.seq = slot.seq;
    slot.call.row_width = options_.limits.row_width;
    slot.call.dtype = options_.limits.dtype;
  }

  absl::Status Run(const CallView& call, ReplyView& reply) {
    const uint32_t queue_us = reply.queue_us;
    const MonotonicTime start = options_.clock->Now();
    CONCLAVE_RETURN_IF_ERROR(handler_.Execute(call, reply));
    reply.service_us = Microseconds(start, options_.clock->Now());
    reply.queue_us = queue_us;
    return absl::OkStatus();
  }

  // One delivery: what a worker at the other end of a wire does, up to its encoded reply, and what
  // the frontend makes of that. The result is a view into reply_frame_.
  absl::StatusOr<ParsedReply> Deliver(const CallView& call, uint32_t queue_us) {
    const std::span<std::byte> call_bytes(call_frame_.As<std::byte>(), call_frame_.size_bytes());
    const std::span<std::byte> reply_bytes(reply_frame_.As<std::byte>(), reply_frame_.size_bytes());
    const size_t call_length = EncodeCall(call, true, call_bytes);
    CONCLAVE_ASSIGN_OR_RETURN(const CallView received,
                              ParseCall(call_bytes.first(call_length), frame_limits_));
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
    CONCLAVE_ASSIGN_OR_RETURN(const ParsedReply reply,
                              ParseReply(reply_bytes.first(length), frame_limits_));
    CONCLAVE_RETURN_IF_ERROR(CheckAnswers(call, reply));
    if (!SameBytes<std::byte>(reply.rows, std::span<const std::byte>(answer.rows))) {
      return ProtocolError("frame_differs", "a reply changed between encoding and parsing");
    }
    return reply;
  }

  absl::Status RunByFrames(Slot& slot) {
    const uint32_t queue_us = slot.reply.queue_us;
    CONCLAVE_ASSIGN_OR_RETURN(const ParsedReply reply, Deliver(slot.call, queue_us));
    std::memcpy(slot.reply.rows.data(), reply.rows.data(), reply.rows.size());
    slot.reply.service_us = reply.service_us;
    slot.reply.queue_us = reply.queue_us;
    const absl::StatusOr<ParsedReply> duplicate = Deliver(slot.call, queue_us);
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
