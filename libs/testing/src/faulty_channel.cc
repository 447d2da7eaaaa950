#include "conclave/testing/faulty_channel.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::testing {

using transport::CallSlot;
using transport::CallView;

FaultyChannel::FaultyChannel(std::unique_ptr<transport::ExpertChannel> inner, const FaultPlan& plan,
                             FakeClock& clock)
    : inner_(std::move(inner)), plan_(plan), clock_(clock), random_(plan.seed) {
  CONCLAVE_CHECK(plan.drop_permille >= 0 && plan.corrupt_permille >= 0);
  CONCLAVE_CHECK(plan.delay_permille >= 0 && plan.max_delay_us >= 1);
  CONCLAVE_CHECK(plan.drop_permille + plan.corrupt_permille + plan.delay_permille <= 1000);
}

FaultyChannel::Fate FaultyChannel::Draw() {
  // Always the same number of draws per call, so that one chance does not shift the faults of the
  // next call.
  const int which = static_cast<int>(random_() % 1000);
  const bool hits_reply = random_() % 2 == 0;
  const uint32_t delay_us = 1 + static_cast<uint32_t>(random_() % plan_.max_delay_us);
  Fate fate;
  fate.is_duplicated = static_cast<int>(random_() % 1000) < plan_.duplicate_permille;
  if (which < plan_.drop_permille) {
    fate.fault = Fault::kDrop;
  } else if (which < plan_.drop_permille + plan_.corrupt_permille) {
    fate.fault = hits_reply ? Fault::kCorruptReply : Fault::kCorruptCall;
  } else if (which < plan_.drop_permille + plan_.corrupt_permille + plan_.delay_permille) {
    fate.fault = Fault::kDelay;
    fate.delay_us = delay_us;
  }
  return fate;
}

absl::Status FaultyChannel::Dispatch(CallSlot* slot) {
  CONCLAVE_RETURN_IF_ERROR(inner_->Dispatch(slot));
  ++counts_.calls;
  fates_[slot] = Draw();
  return absl::OkStatus();
}

absl::Status FaultyChannel::Lose(CallSlot* slot) {
  const uint32_t deadline_us = slot->call.deadline_us;
  clock_.Advance(
      std::chrono::microseconds(deadline_us != 0 ? deadline_us : kDropWithoutDeadlineUs));
  slot->reply.rows = {};
  return Error(absl::StatusCode::kDeadlineExceeded, "deadline",
               "call: no reply within its deadline");
}

void FaultyChannel::DeliverAgain(const CallSlot& slot) {
  CallSlot* twin = inner_->Acquire();
  if (twin == nullptr) {
    return;
  }
  const CallView& call = slot.call;
  CallView copy = call;
  std::copy(call.pair_weight.begin(), call.pair_weight.end(), twin->pair_weight.begin());
  std::copy(call.pair_row.begin(), call.pair_row.end(), twin->pair_row.begin());
  std::copy(call.pair_expert.begin(), call.pair_expert.end(), twin->pair_expert.begin());
  std::copy(call.rows.begin(), call.rows.end(), twin->rows.begin());
  copy.pair_weight = twin->pair_weight.first(call.pair_weight.size());
  copy.pair_row = twin->pair_row.first(call.pair_row.size());
  copy.pair_expert = twin->pair_expert.first(call.pair_expert.size());
  copy.rows = twin->rows.first(call.rows.size());
  twin->call = copy;
  const absl::Status dispatched = inner_->Dispatch(twin);
  if (dispatched.ok()) {
    ++counts_.duplicated;
    const bool is_same =
        inner_->Await(twin).ok() && twin->reply.rows.size() == slot.reply.rows.size() &&
        std::memcmp(twin->reply.rows.data(), slot.reply.rows.data(), slot.reply.rows.size()) == 0;
    counts_.duplicates_differing += is_same ? 0 : 1;
  }
  inner_->Release(twin);
}

absl::Status FaultyChannel::Await(CallSlot* slot) {
  const auto it = fates_.find(slot);
  CONCLAVE_CHECK(it != fates_.end());
  const Fate fate = it->second;
  fates_.erase(it);
  if (fate.is_cancelled) {
    return inner_->Await(slot);
  }
  const uint32_t deadline_us = slot->call.deadline_us;
  const bool is_late =
      fate.fault == Fault::kDelay && deadline_us != 0 && fate.delay_us >= deadline_us;
  switch (fate.fault) {
    case Fault::kDrop:
      ++counts_.dropped;
      inner_->Cancel(slot);
      return Lose(slot);
    case Fault::kCorruptCall:
      ++counts_.corrupted;
      inner_->Cancel(slot);
      return Error(absl::StatusCode::kDataLoss, "corrupt_payload", "call: damaged on its way");
    case Fault::kCorruptReply: {
      ++counts_.corrupted;
      CONCLAVE_RETURN_IF_ERROR(inner_->Await(slot));
      slot->reply.rows = {};
      return Error(absl::StatusCode::kDataLoss, "corrupt_payload", "reply: damaged on its way");
    }
    case Fault::kDelay:
      ++counts_.delayed;
      counts_.late += is_late ? 1 : 0;
      break;
    case Fault::kNone:
      break;
  }
  CONCLAVE_RETURN_IF_ERROR(inner_->Await(slot));
  if (is_late) {
    return Lose(slot);
  }
  if (fate.fault == Fault::kDelay) {
    clock_.Advance(std::chrono::microseconds(fate.delay_us));
  }
  if (fate.is_duplicated) {
    DeliverAgain(*slot);
  }
  return absl::OkStatus();
}

void FaultyChannel::Cancel(CallSlot* slot) {
  inner_->Cancel(slot);
  if (const auto it = fates_.find(slot); it != fates_.end()) {
    it->second.is_cancelled = true;
  }
}

void FaultyChannel::Release(CallSlot* slot) {
  fates_.erase(slot);
  inner_->Release(slot);
}

}  // namespace conclave::testing
