// Attempts of calls: sent, answered, failed, overtaken.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/rows.h"
#include "dispatch_state.h"

namespace conclave::frontend {

using model::GateChoice;
using model::StepRow;
using transport::CallSlot;
using transport::ExpertChannel;
using transport::WireDtype;

namespace {

constexpr std::chrono::milliseconds kBackoffMin{5};
constexpr std::chrono::milliseconds kBackoffMax{200};

Verdict VerdictOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kNotFound:
      return Verdict::kElsewhere;
    case absl::StatusCode::kDeadlineExceeded:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kDataLoss:
    case absl::StatusCode::kInternal:
    case absl::StatusCode::kCancelled:
      return Verdict::kAgain;
    default:
      return Verdict::kFatal;
  }
}

}  // namespace

absl::Status Dispatcher::MicroBatch::Send(Call& call, size_t link, bool is_hedge, bool& has_moved) {
  LinkEntry& entry = s.table[link];
  ExpertChannel& channel = *entry.link.channel;
  CallSlot* slot = channel.Acquire();
  if (slot == nullptr) {
    return absl::OkStatus();  // another call ends first
  }
  has_moved = true;
  // Copying belongs to what sending costs, but not to what the worker's answer takes.
  const MonotonicTime begin = s.options.is_timing ? s.Now() : MonotonicTime();
  Fill(call, *slot);
  Attempt& attempt = call.live[call.live[0].slot == nullptr ? 0 : 1];
  const MonotonicTime now = s.Now();
  entry.NoteLateAnswers(now);
  const auto num_rows = static_cast<int>(call.num_rows);
  attempt.link = link;
  attempt.channel = &channel;
  attempt.sent_at = now;
  attempt.is_hedge = is_hedge;
  if (entry.link.is_inline) {
    attempt.deadline = MonotonicTime::max();
    attempt.hedge_at = MonotonicTime::max();
  } else {
    const bool is_last = call.num_attempts + 1 >= s.options.attempts_max;
    const Microseconds deadline =
        entry.health.DeadlineFor(num_rows, call.num_experts, s.lateness.factor());
    attempt.deadline = is_last ? call.give_up_at : std::min(call.give_up_at, now + deadline);
    attempt.hedge_at =
        now + entry.health.HedgeDelayFor(num_rows, call.num_experts, s.lateness.factor());
    const auto left = std::chrono::duration_cast<Microseconds>(attempt.deadline - now).count();
    slot->call.deadline_us = static_cast<uint32_t>(std::clamp<int64_t>(left, 1, UINT32_MAX));
  }
  attempt.slot = slot;
  if (s.rescue_link && link == *s.rescue_link) {
    ++s.rescues;
  }
  entry.health.OnSent(num_rows, now);
  call.state = CallState::kSent;
  call.tried.set(link);
  WorkerLedger& ledger = *s.ledgers[link];
  ++ledger.calls;
  ledger.rows.Add(call.num_rows);
  if (call.num_attempts++ == 0) {
    call.first_link = link;
    call.first_sent_at = now;
    ++s.first_attempts;
    s.budget.OnFirstAttempt();
  } else if (!is_hedge) {
    ++s.retries;
  }
  if (const absl::Status status = channel.Dispatch(slot); !status.ok()) {
    Tell(call, attempt, AttemptEnd::kLinkLost, now, status.code());
    channel.Release(slot);
    attempt.slot = nullptr;
    entry.health.OnWithdrawn(num_rows);
    ++s.link_losses;
    ++ledger.link_losses;
    return OnFailure(call, attempt, FailoverReason::kLinkLost, status);
  }
  // The worker may compute already: only the frontend's own part ends here.
  attempt.serialized = s.options.is_timing ? s.Now() - begin : std::chrono::nanoseconds(0);
  const uint64_t row_bytes = call.num_rows * s.row_bytes;
  ledger.bytes_dispatched.Add(transport::CallFrameBytes(call.num_pairs, row_bytes));
  ledger.bytes_least.Add(row_bytes);
  if (is_hedge) {
    (void)CONCLAVE_FAILPOINT("f.sent_hedge", {.layer = layer});
  } else {
    (void)CONCLAVE_FAILPOINT("f.sent_first", {.layer = layer});
  }
  return absl::OkStatus();
}

bool Dispatcher::State::SpendToken(MonotonicTime now) {
  if (!budget.Take(now) && !CONCLAVE_PLANTED_BUG("retry_without_budget")) {
    return false;
  }
  ++tokens;
  return true;
}

// Ends an attempt that nobody asks any more.
void Dispatcher::State::Drop(Attempt& attempt) {
  attempt.channel->Cancel(attempt.slot);
  attempt.channel->Release(attempt.slot);
  table[attempt.link].health.OnWithdrawn(attempt.slot->call.num_rows);
  attempt.slot = nullptr;
}

// Gives the link back after every slot of it; its calls find themselves without an attempt.
void Dispatcher::State::LoseLink(size_t index) {
  LinkEntry& entry = table[index];
  for (MicroBatch& batch : micro_batches) {
    for (Call& call : batch.calls) {
      for (Attempt& attempt : call.live) {
        if (attempt.slot != nullptr && attempt.channel == entry.link.channel) {
          batch.Tell(call, attempt, AttemptEnd::kLinkLost, Now());
          Drop(attempt);
          ++link_losses;
          ++ledgers[index]->link_losses;
          if (call.num_live() == 0) {
            ledgers[index]->CountResent(FailoverReason::kLinkLost, call.num_rows);
          }
        }
      }
    }
  }
  for (Probe& probe : probes) {
    if (probe.attempt.channel == entry.link.channel) {
      Drop(probe.attempt);
    }
  }
  std::erase_if(probes, [](const Probe& probe) { return probe.attempt.slot == nullptr; });
  ledgers[index]->is_up.store(false, std::memory_order_relaxed);
  source.Release(std::exchange(entry.link.channel, nullptr));
}

std::chrono::nanoseconds Dispatcher::State::RoundTripOf(const Attempt& attempt,
                                                        MonotonicTime now) const {
  const std::chrono::nanoseconds seen = now - attempt.sent_at;
  if (!is_caller_away) {
    return seen;
  }
  // What this frontend did meanwhile says nothing of the worker: deadlines and hedges would come as
  // late as its attention takes.
  const transport::ReplyView& reply = attempt.slot->reply;
  const std::chrono::nanoseconds at_worker =
      Microseconds(int64_t{reply.queue_us} + reply.service_us);
  return std::min(seen, at_worker + attempt.channel->ping_round_trip());
}

void Dispatcher::MicroBatch::Tell(const Call& call, const Attempt& attempt, AttemptEnd end,
                                  MonotonicTime now, absl::StatusCode code) const {
  if (s.options.observer == nullptr) {
    return;
  }
  const WorkerLink& link = s.table[attempt.link].link;
  AttemptRecord record;
  record.worker = link.worker;
  record.link = attempt.link;
  record.layer = layer;
  record.micro_batch = index;
  record.is_prefill = call.is_prefill;
  record.is_inline = link.is_inline;
  record.is_hedge = attempt.is_hedge;
  record.number = attempt.slot->call.attempt;
  record.rows = static_cast<int32_t>(call.num_rows);
  record.image_rows = call.image_rows;
  record.end = end;
  record.code = code;
  record.sent_at = attempt.sent_at;
  record.ended_at = now;
  if (end == AttemptEnd::kAnswered) {
    // A worker's word: its parts are never more than the whole.
    const auto whole = std::chrono::duration_cast<Microseconds>(s.RoundTripOf(attempt, now));
    record.service = std::min(whole, Microseconds(attempt.slot->reply.service_us));
    record.queue = std::min(whole - record.service, Microseconds(attempt.slot->reply.queue_us));
    record.network = link.is_inline ? Microseconds(0) : whole - record.queue - record.service;
  }
  record.first_worker = s.table[call.first_link].link.worker;
  record.first_link = call.first_link;
  record.first_sent_at = call.first_sent_at;
  s.options.observer->OnAttempt(record);
}

absl::Status Dispatcher::MicroBatch::PollAttempt(Call& call, Attempt& attempt, bool& has_moved) {
  const std::optional<absl::Status> status = attempt.channel->Poll(attempt.slot);
  LinkHealth& health = s.table[attempt.link].health;
  const auto num_rows = static_cast<int>(call.num_rows);
  const MonotonicTime now = s.Now();
  if (!status) {
    // At the first look after the caller was away an answer may have come that the channel has yet
    // to fetch: only the next look judges.
    if (now < attempt.deadline || s.is_caller_away) {
      return absl::OkStatus();
    }
    has_moved = true;
    return OnTimeout(call, attempt, now);
  }
  has_moved = true;
  if (status->ok()) {
    OnAnswer(call, attempt, now);
    return absl::OkStatus();
  }
  const bool is_link_lost = !attempt.channel->LinkStatus().ok();
  Tell(call, attempt, is_link_lost ? AttemptEnd::kLinkLost : AttemptEnd::kRefused, now,
       status->code());
  if (is_link_lost) {
    health.OnWithdrawn(num_rows);
    ++s.link_losses;
    ++s.ledgers[attempt.link]->link_losses;
  } else {
    ++s.refusals;
    ++s.ledgers[attempt.link]->refusals;
    health.OnError(num_rows, now);
    if (status->code() == absl::StatusCode::kInternal) {
      const LinkEntry& entry = s.table[attempt.link];
      s.source.Report(entry.link.worker, entry.link.incarnation, PeerSighting::kBadReply);
    }
  }
  attempt.channel->Release(attempt.slot);
  attempt.slot = nullptr;
  return OnFailure(call, attempt,
                   is_link_lost ? FailoverReason::kLinkLost : FailoverReason::kRefused, *status);
}

absl::Status Dispatcher::MicroBatch::OnTimeout(Call& call, Attempt& attempt, MonotonicTime now) {
  ++s.timeouts;
  Tell(call, attempt, AttemptEnd::kTimeout, now);
  ++s.ledgers[attempt.link]->timeouts;
  s.table[attempt.link].health.OnTimeout(static_cast<int>(call.num_rows), now);
  s.table[attempt.link].OnGivenUp(now);
  attempt.channel->Cancel(attempt.slot);
  if (!CONCLAVE_PLANTED_BUG("slot_leaked_on_timeout")) {
    attempt.channel->Release(attempt.slot);
  }
  attempt.slot = nullptr;
  const LinkEntry& entry = s.table[attempt.link];
  s.source.Report(entry.link.worker, entry.link.incarnation, PeerSighting::kTimeout);
  return OnFailure(call, attempt, FailoverReason::kTimeout,
                   Error(absl::StatusCode::kDeadlineExceeded, "call_deadline",
                         "the worker did not answer in time"));
}

void Dispatcher::MicroBatch::OnAnswer(Call& call, Attempt& attempt, MonotonicTime now) {
  LinkHealth& health = s.table[attempt.link].health;
  const auto num_rows = static_cast<int>(call.num_rows);
  const bool was_trusted = health.is_trusted();
  health.OnAnswer(num_rows, std::chrono::duration_cast<Microseconds>(s.RoundTripOf(attempt, now)),
                  attempt.slot->reply.queue_us, attempt.slot->reply.service_us, now);
  if (!was_trusted && health.is_trusted()) {
    const LinkEntry& entry = s.table[attempt.link];
    s.source.Report(entry.link.worker, entry.link.incarnation, PeerSighting::kRecovered);
  }
  (void)CONCLAVE_FAILPOINT("f.before_combine", {.layer = layer});
  Combine(call, *attempt.slot);
  Tell(call, attempt, AttemptEnd::kAnswered, now);
  CountAnswer(call, attempt, now, s.options.is_timing ? s.Now() : now);
  attempt.channel->Release(attempt.slot);
  attempt.slot = nullptr;
  for (Attempt& other : call.live) {
    if (other.slot == nullptr) {
      continue;
    }
    if (CONCLAVE_PLANTED_BUG("both_hedged_replies_combined")) {
      return;
    }
    Tell(call, other, AttemptEnd::kOvertaken, now);
    // The one that was sent first and overtaken is slow; the other one never had a chance.
    other.channel->Cancel(other.slot);
    other.channel->Release(other.slot);
    other.slot = nullptr;
    if (attempt.is_hedge) {
      ++s.hedges_won;
      s.table[other.link].health.OnLostHedge(num_rows, now);
    } else {
      s.table[other.link].health.OnWithdrawn(num_rows);
    }
  }
  call.state = CallState::kDone;
  --num_open;
  if (num_open > 0) {
    (void)CONCLAVE_FAILPOINT("f.one_of_k", {.layer = layer});
  }
}

void Dispatcher::MicroBatch::CountAnswer(const Call& call, const Attempt& attempt,
                                         MonotonicTime now, MonotonicTime combined_at) {
  if (call.is_resent) {
    s.recovery.Observe(now - call.first_sent_at);
  }
  if (s.rescue_link && attempt.link == *s.rescue_link) {
    s.degraded_rows.Add(call.num_rows);
  }
  WorkerLedger& ledger = *s.ledgers[attempt.link];
  const uint64_t row_bytes = call.num_rows * s.row_bytes;
  ledger.rows_answered.Add(call.num_rows);
  ledger.bytes_combined.Add(transport::ReplyFrameBytes(row_bytes));
  ledger.bytes_least.Add(row_bytes);
  if (!s.options.is_timing) {
    return;
  }
  const std::chrono::nanoseconds round_trip = s.RoundTripOf(attempt, now);
  // A worker's word: its parts are never more than the whole.
  const std::chrono::nanoseconds compute =
      std::min<std::chrono::nanoseconds>(round_trip, Microseconds(attempt.slot->reply.service_us));
  const std::chrono::nanoseconds queue = std::min<std::chrono::nanoseconds>(
      round_trip - compute, Microseconds(attempt.slot->reply.queue_us));
  ledger.round_trip.Observe(round_trip);
  ledger.Observe(DispatchStage::kSerialize, attempt.serialized);
  ledger.Observe(DispatchStage::kNetwork, round_trip - compute - queue);
  ledger.Observe(DispatchStage::kQueue, queue);
  ledger.Observe(DispatchStage::kCompute, compute);
  ledger.Observe(DispatchStage::kCombine, combined_at - now);
}

absl::Status Dispatcher::MicroBatch::OnFailure(Call& call, Attempt& attempt, FailoverReason reason,
                                               const absl::Status& status) {
  LinkEntry& entry = s.table[attempt.link];
  const WorkerId worker = entry.link.worker;
  if (entry.is_up() && entry.link.channel == attempt.channel &&
      !entry.link.channel->LinkStatus().ok()) {
    s.source.Report(worker, entry.link.incarnation, PeerSighting::kLinkLost);
    s.LoseLink(attempt.link);
  }
  const Verdict verdict = VerdictOf(status);
  const bool is_embedded = entry.link.is_inline;
  if (verdict == Verdict::kFatal || is_embedded) {
    return Annotate(
        status, "layer " + std::to_string(layer) + " on worker " + std::to_string(worker.value()));
  }
  if (status.code() == absl::StatusCode::kNotFound) {
    // This worker alone: others that were tried may only have been slow.
    call.refused.set(attempt.link);
  }
  if (call.num_live() > 0) {
    return absl::OkStatus();
  }
  CONCLAVE_RETURN_IF_ERROR(SendElsewhere(call, verdict, status));
  s.ledgers[attempt.link]->CountResent(reason, call.num_rows);
  return absl::OkStatus();
}

// Another attempt for a call without one: now, later, or never.
absl::Status Dispatcher::MicroBatch::SendElsewhere(Call& call, Verdict verdict,
                                                   const absl::Status& why) {
  const MonotonicTime now = s.Now();
  if (now >= call.give_up_at && !CONCLAVE_PLANTED_BUG("call_deadline_ignored")) {
    return Annotate(Error(absl::StatusCode::kDeadlineExceeded, "call_deadline",
                          "no worker answered in time; last: " + MessageOf(why)),
                    "layer " + std::to_string(layer));
  }
  if (verdict == Verdict::kAgain) {
    // The first retry goes at once, since it goes elsewhere; later ones wait ever longer.
    if (call.num_attempts > 1) {
      const int doublings = std::min(call.num_attempts - 2, 6);
      call.not_before =
          now + std::min<std::chrono::milliseconds>(kBackoffMax, kBackoffMin * (1 << doublings));
    }
    call.needs_token = true;
  }
  call.is_resent = true;
  // Where it goes is settled by Split, in Serve: calls must not grow under its loop.
  call.state = CallState::kUnserved;
  call.unserved_at = now;
  return absl::OkStatus();
}

bool Dispatcher::MicroBatch::HoldsAll(const LinkEntry& entry, const Call& call) const {
  const auto begin = call_pairs.begin() + static_cast<std::ptrdiff_t>(call.first_pair);
  return std::all_of(
      begin, begin + static_cast<std::ptrdiff_t>(call.num_pairs), [&](const Pair& pair) {
        const auto workers = s.placement->WorkersOf({LayerId(layer), ExpertId(pair.expert)});
        return std::find(workers.begin(), workers.end(), entry.link.worker) != workers.end();
      });
}

// Sends a slow call to a second worker that holds all of its experts and has nothing to do.
void Dispatcher::MicroBatch::MaybeHedge(Call& call, bool& has_moved) {
  const MonotonicTime now = s.Now();
  const Attempt& first = call.live[0].slot != nullptr ? call.live[0] : call.live[1];
  if (!s.options.is_hedging || call.num_live() != 1 || now < first.hedge_at ||
      call.num_attempts >= s.options.attempts_max) {
    return;
  }
  for (size_t link = 0; link < s.table.size(); ++link) {
    LinkEntry& entry = s.table[link];
    if (!entry.is_up() || entry.link.is_inline ||
        (call.tried.test(link) && !CONCLAVE_PLANTED_BUG("hedge_to_same_worker")) ||
        (entry.health.outstanding_calls() > 0 && !CONCLAVE_PLANTED_BUG("hedge_to_same_worker")) ||
        entry.health.TrustAt(now) != LinkHealth::Trust::kFull ||
        call.num_rows > entry.link.channel->limits().max_rows) {
      continue;
    }
    if (!HoldsAll(entry, call)) {
      continue;
    }
    if (!s.SpendToken(now)) {
      return;
    }
    ++s.hedges;
    ++s.ledgers[first.link]->hedges;
    // A hedge that cannot be sent leaves the call as it was.
    (void)Send(call, link, true, has_moved);
    return;
  }
}

// Gives a worker that is out of favour the chance to show that it answers again: without that, one
// whose experts others hold too would never get another call.
void Dispatcher::MicroBatch::MaybeProbe(const Call& call) {
  constexpr size_t kProbeRowsMax = 16;
  if (call.num_rows > kProbeRowsMax) {
    return;
  }
  const MonotonicTime now = s.Now();
  for (size_t link = 0; link < s.table.size(); ++link) {
    LinkEntry& entry = s.table[link];
    if (!entry.is_up() || entry.health.TrustAt(now) != LinkHealth::Trust::kProbe ||
        !HoldsAll(entry, call) || !s.SpendToken(now)) {
      continue;
    }
    CallSlot* slot = entry.link.channel->Acquire();
    if (slot == nullptr) {
      continue;
    }
    Fill(call, *slot);
    Probe probe;
    probe.num_rows = static_cast<int>(call.num_rows);
    probe.attempt.link = link;
    probe.attempt.channel = entry.link.channel;
    probe.attempt.sent_at = now;
    probe.attempt.deadline = now + s.options.link.eject_min;
    probe.attempt.slot = slot;
    if (!entry.link.channel->Dispatch(slot).ok()) {
      entry.link.channel->Release(slot);
      continue;
    }
    entry.health.OnSent(probe.num_rows, now);
    s.probes.push_back(probe);
  }
}

void Dispatcher::State::PollProbes() {
  const MonotonicTime now = Now();
  for (Probe& probe : probes) {
    Attempt& attempt = probe.attempt;
    LinkEntry& entry = table[attempt.link];
    const std::optional<absl::Status> status = attempt.channel->Poll(attempt.slot);
    if (!status && now < attempt.deadline) {
      continue;
    }
    if (!status) {
      entry.health.OnTimeout(probe.num_rows, now);
      attempt.channel->Cancel(attempt.slot);
    } else if (status->ok()) {
      const bool was_trusted = entry.health.is_trusted();
      entry.health.OnAnswer(probe.num_rows,
                            std::chrono::duration_cast<Microseconds>(now - attempt.sent_at),
                            attempt.slot->reply.queue_us, attempt.slot->reply.service_us, now);
      if (!was_trusted && entry.health.is_trusted()) {
        source.Report(entry.link.worker, entry.link.incarnation, PeerSighting::kRecovered);
      }
    } else {
      entry.health.OnError(probe.num_rows, now);
    }
    attempt.channel->Release(attempt.slot);
    attempt.slot = nullptr;
  }
  std::erase_if(probes, [](const Probe& probe) { return probe.attempt.slot == nullptr; });
}

absl::Status Dispatcher::MicroBatch::Advance(Call& call, bool& has_moved) {
  if (call.state == CallState::kToSend) {
    if (!s.table[call.link].is_up()) {
      Unserve(call);
      has_moved = true;
      return absl::OkStatus();
    }
    if (s.Now() >= call.not_before) {
      const bool is_first = call.num_attempts == 0;
      CONCLAVE_RETURN_IF_ERROR(Send(call, call.link, false, has_moved));
      if (is_first && call.state == CallState::kSent && !s.table[call.link].link.is_inline) {
        MaybeProbe(call);
      }
    }
    return absl::OkStatus();
  }
  if (call.state != CallState::kSent) {
    return absl::OkStatus();
  }
  for (Attempt& attempt : call.live) {
    if (attempt.slot != nullptr) {
      CONCLAVE_RETURN_IF_ERROR(PollAttempt(call, attempt, has_moved));
      if (call.state != CallState::kSent) {
        return absl::OkStatus();
      }
    }
  }
  if (call.num_live() == 0) {
    // Its link was lost while another call was looked at.
    has_moved = true;
    return SendElsewhere(call, Verdict::kElsewhere,
                         Error(absl::StatusCode::kUnavailable, "link_lost", "the link is gone"));
  }
  if (!s.is_caller_away) {
    MaybeHedge(call, has_moved);
  }
  return absl::OkStatus();
}

}  // namespace conclave::frontend
