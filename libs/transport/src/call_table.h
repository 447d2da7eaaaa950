// The calls that one frontend has under way on one link, whatever carries their frames: slots and
// their states, the matching of answers, PINGs and counters.
//
// No lock of its own: where answers arrive on another thread, the channel's lock guards everything
// but limits(), frame_limits() and Parse; a slot that is not dispatched is its caller's.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "conclave/base/clock.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/frame.h"
#include "damage_window.h"

namespace conclave::transport {

// kUnavailable ("link_lost").
absl::Status LinkLost(const std::string& why);

class CallTable {
 public:
  enum class SlotState : uint8_t { kFree, kFilled, kDispatched, kDone, kCancelled };
  struct Slot : CallSlot {
    SlotState state = SlotState::kFree;
    // The network still reads or writes the slot's memory: it is not acquired again before the
    // channel says that this is over.
    bool is_busy = false;
    uint32_t index = 0;
    uint64_t seq = 0;
    MonotonicTime dispatched_at;
    absl::Status status;  // of kDone
    uint16_t num_holders = 0;
    std::array<WorkerId, kMaxNackHolders> holder_ids;
  };

  // `clock` outlives the table. The channel points the slots' views at their memory.
  CallTable(const ChannelLimits& limits, const FrameLimits& frame_limits, uint32_t frontend,
            const Clock& clock);

  const ChannelLimits& limits() const { return limits_; }
  const FrameLimits& frame_limits() const { return frame_limits_; }
  std::span<Slot> slots() { return slots_; }

  // Aborts for a slot of another channel.
  Slot& Own(CallSlot* slot);

  // As ExpertChannel has them.
  CallSlot* Acquire();
  std::optional<absl::Status> StatusOf(const Slot& slot) const;
  void Release(Slot& slot);

  // Before a call is sent: stamps it and checks what its caller put there.
  absl::Status Prepare(Slot& slot);
  void MarkDispatched(Slot& slot);
  // It could not be sent after all.
  void TakeBack(Slot& slot) { slot.state = SlotState::kFilled; }
  // What to tell the worker; nothing when the call has ended.
  std::optional<ControlFrame> Cancel(Slot& slot);
  // What to send; nothing while the last PING is unanswered.
  std::optional<ControlFrame> Ping();
  void ForgetPing() { pinged_at_.reset(); }

  // Until the call's deadline, at most a second; kDeadlineExceeded ("deadline").
  absl::StatusOr<std::chrono::nanoseconds> TimeLeft(const Slot& slot) const;

  // OK, or why no call can be sent any more.
  const absl::Status& lost() const { return lost_; }
  // Ends all calls; false when the link was lost before.
  bool Lose(const std::string& why);

  // A frame from the worker. Views into it.
  struct Reply {
    ParsedReply reply;
    bool is_finite = false;
  };
  // A reply whose rows changed on their way, while its header says for sure whose they were.
  struct DamagedReply {
    uint32_t frontend = 0;
    uint32_t slot = 0;
    uint64_t seq = 0;
    absl::Status why;
  };
  struct Received {
    std::variant<Reply, DamagedReply, ParsedNack, ControlFrame> frame;
    bool has_come_twice = false;  // a failpoint
  };
  // Any thread, without the lock. The errors of the parsers, and "type" for what only a frontend
  // sends; after one, CountMalformed. Failpoints damage the frame.
  absl::StatusOr<Received> Parse(std::span<std::byte> frame) const;
  // Whether a call has ended by it. Rows that do not lie in the slot's reply_rows are copied there.
  bool Apply(const Received& received);

  // The dispatched call that an answer names; null: it is late.
  Slot* Find(uint32_t frontend, uint32_t slot, uint64_t seq);

  void Heard() { last_heard_ = clock_.Now(); }
  MonotonicTime last_heard() const { return last_heard_; }
  std::chrono::nanoseconds round_trip() const { return round_trip_; }
  LinkCounters& counters() { return counters_; }
  // A frame that Parse refused, or that is none at first sight: it is dropped.
  void CountMalformed();
  // Of somebody who is not known to be the worker.
  void CountStray() { ++counters_.malformed; }
  // Too many frames came damaged, those whose calls Apply has ended included: the link is to be
  // lost, for the reason below.
  bool is_damaging() const { return is_damaging_; }
  static constexpr const char* kTooMuchDamage = "three damaged frames came within 10 s";
  // An answer that nobody waits for.
  void CountLate();
  const LinkCounters& counters() const { return counters_; }

 private:
  void Finish(Slot& slot, absl::Status status);
  void NoteDamage() { is_damaging_ = damage_.Add(clock_.Now()) || is_damaging_; }
  bool Take(const Received& received);
  bool TakeReply(const Reply& received);
  bool TakeDamaged(const DamagedReply& damaged);
  bool TakeNack(const ParsedNack& nack);
  void TakeControl(const ControlFrame& control);

  const ChannelLimits limits_;
  const FrameLimits frame_limits_;
  const uint32_t frontend_;
  const Clock& clock_;
  std::vector<Slot> slots_;
  absl::Status lost_;  // OK: the link is good
  LinkCounters counters_;
  DamageWindow damage_;
  bool is_damaging_ = false;
  MonotonicTime last_heard_;
  uint64_t ping_seq_ = 0;
  std::optional<MonotonicTime> pinged_at_;  // of a PING without an answer
  std::chrono::nanoseconds round_trip_{0};
};

}  // namespace conclave::transport
