#include "conclave/transport/chaos_channel.h"

#ifdef CONCLAVE_FAILPOINTS

#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "session_terms.h"

namespace conclave::transport {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

constexpr MonotonicTime kNever = MonotonicTime::max();

// One direction of the link.
struct Lane {
  MonotonicTime stalled_until;
  uint64_t num_passed = 0;  // frames that have gone on
};

// Something that is held back in a lane.
struct Hold {
  MonotonicTime until;
  uint64_t order = 0;            // of holding: what waits for the same moment goes on in it
  bool is_to_be_passed = false;  // by the next one
  uint64_t passed_before = 0;    // Lane::num_passed when it was held
};

class ChaosChannel final : public ExpertChannel, private Waitable {
 public:
  ChaosChannel(std::unique_ptr<ExpertChannel> channel, Doorbell& bell, const Clock& clock)
      : bell_(bell),
        clock_(clock),
        timer_(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
        inner_(std::move(channel)) {
    CONCLAVE_CHECK(timer_ >= 0);
    calls_.reserve(inner_->limits().num_slots);
  }
  ~ChaosChannel() override {
    bell_.Detach(this);
    inner_.reset();
    ::close(timer_);
  }

  const ChannelLimits& limits() const override { return inner_->limits(); }
  CallSlot* Acquire() override { return inner_->Acquire(); }
  absl::Status Dispatch(CallSlot* slot) override;
  std::optional<absl::Status> Poll(CallSlot* slot) override;
  absl::Status Await(CallSlot* slot) override;
  absl::Status LinkStatus() const override { return inner_->LinkStatus(); }
  void Cancel(CallSlot* slot) override;
  void Release(CallSlot* slot) override;
  void Ping() override { inner_->Ping(); }
  LinkSigns CheckOn() override { return inner_->CheckOn(); }
  MonotonicTime last_heard() const override { return inner_->last_heard(); }
  nanoseconds ping_round_trip() const override { return inner_->ping_round_trip(); }
  LinkCounters counters() const override { return inner_->counters(); }
  const char* name() const override { return inner_->name(); }
  const char* carrier() const override { return inner_->carrier(); }

 private:
  enum class Stage : uint8_t {
    kHeld,      // not sent yet
    kLost,      // it or its answer never arrives
    kSent,      // the channel below has it
    kAnswered,  // and has given its status, which is held
    kCancelled,
    kOver,  // the caller has the status
  };
  // Of a slot between Dispatch and Release.
  struct Call {
    CallSlot* slot = nullptr;
    Stage stage = Stage::kSent;
    MonotonicTime dispatched_at;
    Hold hold;                           // in kHeld and kAnswered
    std::optional<absl::Status> status;  // in kAnswered and kLost; in kHeld: sending it failed
  };

  // Waitable.
  bool Progress() override { return GoOn(); }
  bool Arm() override;
  int fd() const override { return timer_; }

  Call& Of(const CallSlot* slot);
  // When the hit holds something back, until when; nullopt: it goes on at once.
  std::optional<Hold> HoldFor(const FailpointHit& hit, Lane& lane);
  absl::Status Send(Call& call);
  void OnAnswer(Call& call, absl::Status status);
  // Notes that it goes on because another has passed it.
  static void CountPassed(const Call& call, const Lane& lane);
  bool IsDue(const Hold& hold, const Lane& lane) const;
  // Sends and shows what was held for long enough; whether there was anything.
  bool GoOn();
  MonotonicTime NextDue() const;

  Doorbell& bell_;
  const Clock& clock_;
  const int timer_;
  bool is_attached_ = false;
  uint64_t num_held_ = 0;
  Lane calls_lane_;
  Lane replies_lane_;
  std::vector<Call> calls_;
  std::unique_ptr<ExpertChannel> inner_;
};

ChaosChannel::Call& ChaosChannel::Of(const CallSlot* slot) {
  const auto it =
      std::find_if(calls_.begin(), calls_.end(), [slot](const Call& c) { return c.slot == slot; });
  CONCLAVE_CHECK(it != calls_.end());
  return *it;
}

std::optional<Hold> ChaosChannel::HoldFor(const FailpointHit& hit, Lane& lane) {
  const MonotonicTime now = clock_.Now();
  Hold hold;
  const MonotonicTime until = now + microseconds(hit.argument);
  switch (hit.action) {
    case FailpointAction::kStall:
      lane.stalled_until = std::max(lane.stalled_until, until);
      break;
    case FailpointAction::kReorder:
      hold.is_to_be_passed = true;
      hold.until = until;
      break;
    case FailpointAction::kDelay:
      hold.until = until;
      break;
    default:
      break;
  }
  hold.until = std::max(hold.until, lane.stalled_until);
  if (hold.until <= now) {
    return std::nullopt;
  }
  hold.order = ++num_held_;
  hold.passed_before = lane.num_passed;
  if (!is_attached_) {
    // Only now: a waitable makes its owner spin before it sleeps.
    is_attached_ = true;
    bell_.Attach(this);
  }
  return hold;
}

void ChaosChannel::CountPassed(const Call& call, const Lane& lane) {
  if (call.hold.is_to_be_passed && lane.num_passed > call.hold.passed_before) {
    (void)CONCLAVE_FAILPOINT("l.overtaken", (ContextOf(call.slot->call)));
  }
}

bool ChaosChannel::IsDue(const Hold& hold, const Lane& lane) const {
  const MonotonicTime now = clock_.Now();
  return hold.until <= now || (hold.is_to_be_passed && lane.num_passed > hold.passed_before &&
                               lane.stalled_until <= now);
}

absl::Status ChaosChannel::Send(Call& call) {
  absl::Status status = inner_->Dispatch(call.slot);
  if (status.ok()) {
    call.stage = Stage::kSent;
    ++calls_lane_.num_passed;
  }
  return status;
}

absl::Status ChaosChannel::Dispatch(CallSlot* slot) {
  GoOn();
  const FailpointHit hit = CONCLAVE_FAILPOINT("l.call", (ContextOf(slot->call)));
  CONCLAVE_RETURN_IF_ERROR(hit.status());
  Call call;
  call.slot = slot;
  call.dispatched_at = clock_.Now();
  if (hit.action == FailpointAction::kDrop) {
    call.stage = Stage::kLost;
  } else if (const std::optional<Hold> hold = HoldFor(hit, calls_lane_); hold.has_value()) {
    call.stage = Stage::kHeld;
    call.hold = *hold;
  } else {
    CONCLAVE_RETURN_IF_ERROR(Send(call));
  }
  if (call.stage != Stage::kSent) {
    CONCLAVE_RETURN_IF_ERROR(inner_->LinkStatus());
  }
  calls_.push_back(std::move(call));
  GoOn();  // what waited for this one to pass it
  return absl::OkStatus();
}

bool ChaosChannel::GoOn() {
  bool has_gone = false;
  while (true) {
    Call* next = nullptr;
    for (Call& call : calls_) {
      const bool is_held = call.stage == Stage::kHeld && !call.status.has_value();
      if (is_held && IsDue(call.hold, calls_lane_) &&
          (next == nullptr || call.hold.order < next->hold.order)) {
        next = &call;
      }
    }
    if (next == nullptr) {
      break;
    }
    CountPassed(*next, calls_lane_);
    if (absl::Status status = Send(*next); !status.ok()) {
      next->status = std::move(status);
    }
    has_gone = true;
  }
  // Answers are looked at by whoever polls.
  const bool has_answer = std::any_of(calls_.begin(), calls_.end(), [this](const Call& call) {
    return call.stage == Stage::kAnswered && IsDue(call.hold, replies_lane_);
  });
  if (has_gone || has_answer) {
    bell_.Ring();
  }
  return has_gone || has_answer;
}

void ChaosChannel::OnAnswer(Call& call, absl::Status status) {
  call.stage = Stage::kAnswered;
  call.status = std::move(status);
  call.hold = Hold();
  if (!call.status->ok() && !inner_->LinkStatus().ok()) {
    return;  // not an answer
  }
  const FailpointHit hit = CONCLAVE_FAILPOINT("l.reply", (ContextOf(call.slot->call)));
  if (hit.action == FailpointAction::kDrop) {
    call.stage = Stage::kLost;
  } else if (const std::optional<Hold> hold = HoldFor(hit, replies_lane_); hold.has_value()) {
    call.hold = *hold;
  }
}

std::optional<absl::Status> ChaosChannel::Poll(CallSlot* slot) {
  GoOn();
  Call& call = Of(slot);
  CONCLAVE_CHECK(call.stage != Stage::kOver);
  if (call.stage == Stage::kCancelled) {
    return Error(absl::StatusCode::kCancelled, "cancelled", "call: was cancelled");
  }
  if (call.stage == Stage::kSent) {
    std::optional<absl::Status> status = inner_->Poll(slot);
    if (!status.has_value()) {
      return std::nullopt;
    }
    OnAnswer(call, *std::move(status));
  }
  if (call.stage == Stage::kAnswered && IsDue(call.hold, replies_lane_)) {
    CountPassed(call, replies_lane_);
    ++replies_lane_.num_passed;
    call.stage = Stage::kOver;
    GoOn();  // what waited for this one to pass it
    return *std::exchange(call.status, std::nullopt);
  }
  // It could not be sent when its time had come, or it is gone with the link.
  absl::Status status = call.stage == Stage::kHeld && call.status.has_value()
                            ? *std::exchange(call.status, std::nullopt)
                            : inner_->LinkStatus();
  if (status.ok()) {
    return std::nullopt;
  }
  slot->reply.rows = {};
  call.stage = Stage::kOver;
  return status;
}

absl::Status ChaosChannel::Await(CallSlot* slot) {
  constexpr nanoseconds kTurn = std::chrono::milliseconds(100);
  while (true) {
    if (std::optional<absl::Status> status = Poll(slot); status.has_value()) {
      return *std::move(status);
    }
    const MonotonicTime now = clock_.Now();
    const uint32_t deadline_us = slot->call.deadline_us;
    const MonotonicTime until =
        deadline_us == 0 ? kNever : Of(slot).dispatched_at + microseconds(deadline_us);
    if (now >= until) {
      return Error(
          absl::StatusCode::kDeadlineExceeded, "deadline",
          "call: expected an answer within " + std::to_string(deadline_us) + " us, found none");
    }
    bell_.WaitUntil(std::min({until, now + kTurn, NextDue()}));
  }
}

void ChaosChannel::Cancel(CallSlot* slot) {
  // What was never sent is nothing to the channel below, and cancelling it there does nothing.
  inner_->Cancel(slot);
  const auto it =
      std::find_if(calls_.begin(), calls_.end(), [slot](const Call& c) { return c.slot == slot; });
  if (it != calls_.end() && it->stage != Stage::kOver) {
    it->stage = Stage::kCancelled;
  }
}

void ChaosChannel::Release(CallSlot* slot) {
  std::erase_if(calls_, [slot](const Call& c) { return c.slot == slot; });
  inner_->Release(slot);
}

MonotonicTime ChaosChannel::NextDue() const {
  MonotonicTime next = kNever;
  for (const Call& call : calls_) {
    if ((call.stage == Stage::kHeld && !call.status.has_value()) ||
        call.stage == Stage::kAnswered) {
      next = std::min(next, call.hold.until);
    }
  }
  return next;
}

bool ChaosChannel::Arm() {
  const MonotonicTime next = NextDue();
  itimerspec timer{};
  if (next != kNever) {
    const nanoseconds left = next - clock_.Now();
    if (left <= nanoseconds::zero()) {
      return false;
    }
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
    timer.it_value = {static_cast<time_t>(seconds.count()),
                      static_cast<long>((left - seconds).count())};
  }
  // Takes back what an earlier end has left to be read, too.
  CONCLAVE_CHECK(::timerfd_settime(timer_, 0, &timer, nullptr) == 0);
  return true;
}

}  // namespace

std::unique_ptr<ExpertChannel> WithChaos(std::unique_ptr<ExpertChannel> channel, Doorbell& bell,
                                         const Clock& clock) {
  return std::make_unique<ChaosChannel>(std::move(channel), bell, clock);
}

}  // namespace conclave::transport

#else

namespace conclave::transport {

std::unique_ptr<ExpertChannel> WithChaos(std::unique_ptr<ExpertChannel> channel, Doorbell& /*bell*/,
                                         const Clock& /*clock*/) {
  return channel;
}

}  // namespace conclave::transport

#endif
