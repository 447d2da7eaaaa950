// An ExpertChannel that fails on purpose: wraps any channel and loses, delays, doubles or damages
// calls by a seed.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <unordered_map>

#include "conclave/testing/fake_clock.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::testing {

// Chances per call, in thousandths; at most one of drop, corrupt and delay strikes a call, in this
// order of precedence, and their sum is at most 1000. A duplicate may come on top of a delay.
struct FaultPlan {
  uint64_t seed = 1;
  // The call never arrives: Await lets the call's deadline pass on the clock, then
  // kDeadlineExceeded ("deadline").
  int drop_permille = 0;
  // Call or reply is damaged on its way, which its CRC shows: kDataLoss ("corrupt_payload"). In
  // half of these cases the handler has run, as when the reply is what was hit.
  int corrupt_permille = 0;
  // The reply comes 1 to max_delay_us later; after the call's deadline it is dropped, as after a
  // drop.
  int delay_permille = 0;
  uint32_t max_delay_us = 10'000;
  // The call arrives twice; the second reply is compared and dropped. Needs a free slot of the
  // inner channel.
  int duplicate_permille = 0;
};

struct FaultCounts {
  int64_t calls = 0;
  int64_t dropped = 0;
  int64_t corrupted = 0;
  int64_t delayed = 0;
  int64_t late = 0;  // delayed beyond the deadline
  int64_t duplicated = 0;
  int64_t duplicates_differing = 0;
};

// Faults depend on the seed and the order of the dispatches alone. One thread, as the inner
// channel. A call without a deadline that is dropped lets kDropWithoutDeadlineUs pass.
class FaultyChannel final : public transport::ExpertChannel {
 public:
  static constexpr uint32_t kDropWithoutDeadlineUs = 1'000'000;

  // `clock` outlives the channel and is the one the inner channel runs on.
  FaultyChannel(std::unique_ptr<transport::ExpertChannel> inner, const FaultPlan& plan,
                FakeClock& clock);

  const transport::ChannelLimits& limits() const override { return inner_->limits(); }
  transport::CallSlot* Acquire() override { return inner_->Acquire(); }
  absl::Status Dispatch(transport::CallSlot* slot) override;
  // Time is the clock's, so a call has always ended when it is asked for.
  std::optional<absl::Status> Poll(transport::CallSlot* slot) override { return Await(slot); }
  absl::Status Await(transport::CallSlot* slot) override;
  absl::Status LinkStatus() const override { return inner_->LinkStatus(); }
  void Cancel(transport::CallSlot* slot) override;
  void Release(transport::CallSlot* slot) override;

  const FaultCounts& counts() const { return counts_; }

 private:
  enum class Fault { kNone, kDrop, kCorruptCall, kCorruptReply, kDelay };
  struct Fate {
    Fault fault = Fault::kNone;
    uint32_t delay_us = 0;
    bool is_duplicated = false;
    bool is_cancelled = false;
  };

  Fate Draw();
  absl::Status Lose(transport::CallSlot* slot);
  void DeliverAgain(const transport::CallSlot& slot);

  std::unique_ptr<transport::ExpertChannel> inner_;
  const FaultPlan plan_;
  FakeClock& clock_;
  std::mt19937_64 random_;
  std::unordered_map<const transport::CallSlot*, Fate> fates_;  // of the calls in flight
  FaultCounts counts_;
};

}  // namespace conclave::testing
