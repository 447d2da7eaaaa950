#include "conclave/frontend/dispatcher.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/planted_bug.h"
#include "conclave/base/status.h"
#include "conclave/kernels/elementwise.h"
#include "conclave/tensor/aligned_buffer.h"
#include "conclave/transport/rows.h"
#include "dispatch_state.h"

namespace conclave::frontend {

void LinkSource::Update::Clear() {
  placement.reset();
  added.clear();
  removed.clear();
  suspects.clear();
  has_suspects = false;
}

namespace {

// Between looks at links that have nothing to say, when no timer is nearer.
constexpr std::chrono::milliseconds kLongestSleep{100};

using model::GateChoice;
using model::StepRow;
using transport::CallSlot;
using transport::ExpertChannel;
using transport::WireDtype;

// The embedded mode: inline links that were there from the start.
class StaticLinks final : public LinkSource {
 public:
  StaticLinks(std::shared_ptr<const placement::Placement> placement,
              std::vector<Dispatcher::Link> links)
      : placement_(std::move(placement)), links_(std::move(links)) {}

  void Enter() override {}
  void Leave() override {}
  bool has_update() const override { return placement_ != nullptr; }
  void Take(Update& update) override {
    update.placement = std::exchange(placement_, nullptr);
    for (const Dispatcher::Link& link : links_) {
      update.added.push_back({link.worker, 1, link.channel, true});
    }
  }
  void Release(ExpertChannel* /*channel*/) override {}
  void Report(WorkerId /*worker*/, uint64_t /*incarnation*/, PeerSighting /*what*/) override {}
  // Inline channels have always answered.
  bool WaitUntil(MonotonicTime /*until*/) override { return true; }

 private:
  std::shared_ptr<const placement::Placement> placement_;
  const std::vector<Dispatcher::Link> links_;
};

}  // namespace

Dispatcher::Dispatcher(const DispatcherOptions& options, LinkSource& source)
    : state_(std::make_unique<State>(options, source)) {
  Prepare();
}

Dispatcher::Dispatcher(const DispatcherOptions& options, std::unique_ptr<LinkSource> source)
    : state_(std::make_unique<State>(options, *source)) {
  state_->own_source = std::move(source);
  Prepare();
}

void Dispatcher::Prepare() {
  const DispatcherOptions& options = state_->options;
  CONCLAVE_CHECK(options.top_k == 1 || options.top_k == 2);
  State& s = *state_;
  s.row_bytes = static_cast<size_t>(options.io_dim) * transport::SizeOf(options.wire);
  const auto max_pairs = static_cast<size_t>(options.max_rows) * static_cast<size_t>(options.top_k);
  for (MicroBatch& batch : s.micro_batches) {
    batch.wire_rows = AlignedBuffer(s.row_bytes * static_cast<size_t>(options.max_rows));
    batch.pair_link.resize(max_pairs);
    batch.call_rows.reserve(max_pairs);
    batch.call_pairs.reserve(max_pairs);
    batch.terms_seen.resize(static_cast<size_t>(options.max_rows));
  }
  if (options.rescue != nullptr) {
    s.rescue_link = s.table.AddUnlisted({WorkerId(-1), 0, &options.rescue->channel(), true});
    s.CountLinkIn(*s.rescue_link, s.ledger.unlisted());
    s.Reserve(s.table.size());
  }
}

Dispatcher::Dispatcher(const DispatcherOptions& options,
                       std::shared_ptr<const placement::Placement> placement,
                       std::vector<Link> links)
    : Dispatcher(options, std::make_unique<StaticLinks>(std::move(placement), std::move(links))) {}

Dispatcher::~Dispatcher() = default;

DispatchStats Dispatcher::Stats() const {
  const State& s = *state_;
  return {s.first_attempts.get(), s.retries.get(),     s.hedges.get(),       s.hedges_won.get(),
          s.timeouts.get(),       s.link_losses.get(), s.refusals.get(),     s.waits.get(),
          s.rescues.get(),        s.tokens.get(),      s.degraded_rows.get()};
}

std::vector<WorkerDispatch> Dispatcher::Workers() const { return state_->ledger.Read(); }

BucketCounts Dispatcher::Recovery() const { return state_->recovery.Read(); }

void Dispatcher::State::CountLinkIn(size_t link, WorkerLedger& entry) {
  ledgers.resize(std::max(ledgers.size(), link + 1));
  ledgers[link] = &entry;
  entry.is_up.store(true, std::memory_order_relaxed);
}

uint64_t Dispatcher::num_resent() const { return state_->retries.get() + state_->rescues.get(); }

void Dispatcher::State::Reserve(size_t links) {
  // Per link and phase the calls of all rows, cut at a channel's rows, of which 1 is the least.
  rows_elsewhere.resize(links);
  parts.reserve(links);
  for (MicroBatch& batch : micro_batches) {
    batch.calls.reserve(2 * links + static_cast<size_t>(options.max_rows));
  }
}

void Dispatcher::State::TakeUpdate() {
  if (!source.has_update()) {
    return;
  }
  update.Clear();
  source.Take(update);
  if (update.placement != nullptr) {
    placement = std::move(update.placement);
    int32_t most = 0;
    for (const placement::ExpertUnit unit : placement->units()) {
      most = std::max(most, unit.expert.value() + 1);
    }
    link_of.resize(static_cast<size_t>(most));
    rows_of.resize(static_cast<size_t>(most));
    order.reserve(static_cast<size_t>(most));
    // What a worker refused under the old placement it may hold under this one.
    for (MicroBatch& batch : micro_batches) {
      for (Call& call : batch.calls) {
        call.refused.reset();
      }
    }
  }
  for (const WorkerId worker : update.removed) {
    if (const std::optional<size_t> index = table.Find(worker); index && table[*index].is_up()) {
      LoseLink(*index);
    }
  }
  for (const WorkerLink& link : update.added) {
    CONCLAVE_CHECK(link.channel->limits().row_width == options.io_dim);
    CONCLAVE_CHECK(link.channel->limits().max_pairs >=
                   link.channel->limits().max_rows * options.top_k);
    if (const std::optional<size_t> index = table.Find(link.worker);
        index && table[*index].is_up()) {
      LoseLink(*index);
    }
    if (ExpertChannel* refused = table.Add(link); refused != nullptr) {
      source.Release(refused);
    }
    if (const std::optional<size_t> index = table.Find(link.worker)) {
      CountLinkIn(*index, ledger.EntryOf(link.worker, link.channel->carrier()));
    }
  }
  if (update.has_suspects) {
    table.SetSuspects(update.suspects);
  }
  Reserve(table.size());
}

MonotonicTime Dispatcher::State::NextTimer() const {
  const MonotonicTime now = Now();
  MonotonicTime next = now + kLongestSleep;
  for (const MicroBatch& batch : micro_batches) {
    for (const Call& call : batch.calls) {
      if (call.state == CallState::kToSend && call.not_before > now) {
        next = std::min(next, call.not_before);
      }
      if (call.state == CallState::kUnserved) {
        next = std::min(next, std::max(call.not_before, now + std::chrono::milliseconds(1)));
      }
      for (const Attempt& attempt : call.live) {
        if (call.state == CallState::kSent && attempt.slot != nullptr) {
          next = std::min(next, attempt.deadline);
          if (attempt.hedge_at > now) {
            next = std::min(next, attempt.hedge_at);
          }
        }
      }
    }
  }
  return next;
}

absl::Status Dispatcher::MicroBatch::CheckPatience(const Call& call) const {
  const MonotonicTime now = s.Now();
  if (call.needs_token && !CONCLAVE_PLANTED_BUG("empty_budget_fails_calls")) {
    return now < call.give_up_at
               ? absl::OkStatus()
               : Error(absl::StatusCode::kDeadlineExceeded, "call_deadline",
                       "layer " + std::to_string(layer) + ": no worker answered in time");
  }
  return now - call.unserved_at < s.options.expert_wait
             ? absl::OkStatus()
             : Error(absl::StatusCode::kUnavailable, "expert_unserved",
                     "layer " + std::to_string(layer) + ": an expert has had no worker for " +
                         std::to_string(s.options.expert_wait.count()) +
                         " ms; expected at least one replica" +
                         (s.rescue_status.ok() ? "" : "; " + MessageOf(s.rescue_status)));
}

absl::Status Dispatcher::MicroBatch::Serve() {
  bool has_moved = true;
  while (has_moved && num_open > 0) {
    has_moved = false;
    for (size_t i = 0; i < calls.size(); ++i) {
      if (calls[i].state == CallState::kUnserved && s.Now() >= calls[i].not_before) {
        Split(i);
        if (calls[i].state == CallState::kUnserved && Rescue(calls[i])) {
          Split(i);
        }
        has_moved = has_moved || calls[i].state != CallState::kUnserved;
        if (calls[i].state == CallState::kUnserved) {
          CONCLAVE_RETURN_IF_ERROR(CheckPatience(calls[i]));
        }
      }
      CONCLAVE_RETURN_IF_ERROR(Advance(calls[i], has_moved));
    }
  }
  return absl::OkStatus();
}

void Dispatcher::MicroBatch::AbandonAll() {
  for (Call& call : calls) {
    for (Attempt& attempt : call.live) {
      if (attempt.slot != nullptr) {
        Tell(call, attempt, AttemptEnd::kAbandoned, s.Now());
        s.Drop(attempt);
      }
    }
  }
  calls.clear();
  num_open = 0;
}

absl::Status Dispatcher::MicroBatch::SendFirst() {
  for (size_t i = 0; i < calls.size(); ++i) {
    if (calls[i].state == CallState::kToSend) {
      bool has_moved = false;
      CONCLAVE_RETURN_IF_ERROR(Advance(calls[i], has_moved));
    }
  }
  return absl::OkStatus();
}

void Dispatcher::MicroBatch::ServeEarly(bool computes) {
  if (is_running && early_status.ok() && s.placement != nullptr && num_open > 0 &&
      (computes || !IsInline())) {
    early_status = Serve();
  }
}

bool Dispatcher::MicroBatch::IsInline() const {
  return std::any_of(calls.begin(), calls.end(), [&](const Call& call) {
    return call.state == CallState::kSent && call.num_live() > 0 &&
           s.table[call.live[call.live[0].slot != nullptr ? 0 : 1].link].link.is_inline;
  });
}

void Dispatcher::Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
                       std::span<const StepRow> rows, const GateChoice& choice,
                       MatView<float> out) {
  State& s = *state_;
  MicroBatch& batch = s.micro_batches[static_cast<size_t>(micro_batch)];
  batch.Begin(layer, n, rows, choice, out);
  batch.early_status = batch.SendFirst();
  s.is_caller_away = true;
}

void Dispatcher::Poll() {
  CONCLAVE_CHECK(state_->IsRunning());
  for (MicroBatch& batch : state_->micro_batches) {
    // Inline channels would compute here, which is no use before Finish and delays the caller.
    batch.ServeEarly(false);
  }
}

absl::Status Dispatcher::Finish(int32_t micro_batch) {
  State& s = *state_;
  MicroBatch& batch = s.micro_batches[static_cast<size_t>(micro_batch)];
  MicroBatch& other = s.micro_batches[static_cast<size_t>(1 - micro_batch)];
  batch.awaited_at = s.Now();
  std::optional<absl::Status> status = s.Advance(batch);
  other.ServeEarly(false);
  s.is_caller_away = false;
  if (!status) {
    status = s.Advance(batch);  // what came late meanwhile is judged now, before any sleep
  }
  while (!status) {
    const MonotonicTime until = NextTimer();
    const bool is_rung = s.source.WaitUntil(until);
    OnWoken(until, is_rung);
    status = s.Advance(batch);
    // It may hold the slots that this one waits for.
    other.ServeEarly(!status);
  }
  // The caller goes on with its own work, which the other's answers may wait for.
  s.is_caller_away = other.is_running;
  return *std::move(status);
}

void Dispatcher::Begin(int32_t layer, MatView<const float> n, std::span<const StepRow> rows,
                       const GateChoice& choice, MatView<float> out) {
  state_->micro_batches[0].Begin(layer, n, rows, choice, out);
}

void Dispatcher::State::Enter() {
  if (!IsRunning()) {
    source.Enter();
  }
  TakeUpdate();
  if (!probes.empty()) {
    PollProbes();
  }
  // What a rescued call is under way for stays.
  if (!rescued.empty() && !IsRunning()) {
    EndRescues();
  }
}

void Dispatcher::MicroBatch::Begin(int32_t moe_layer, MatView<const float> n,
                                   std::span<const StepRow> step_rows,
                                   const GateChoice& gate_choice, MatView<float> sums) {
  const auto num_rows = static_cast<int64_t>(step_rows.size());
  CONCLAVE_CHECK(!is_running && num_rows <= s.options.max_rows && n.rows == num_rows &&
                 n.cols == s.options.io_dim);
  s.Enter();
  is_running = true;
  early_status = absl::OkStatus();
  awaited_at = s.Now();
  layer = moe_layer;
  if (s.placement == nullptr) {
    return;
  }
  if (s.options.wire == WireDtype::kBf16) {
    kernels::RoundToBf16(s.options.compute, n,
                         MatView<Bf16>(wire_rows.As<Bf16>(), num_rows, n.cols, n.cols));
  } else {
    for (int64_t r = 0; r < num_rows; ++r) {
      std::copy_n(n.Row(r), n.cols, wire_rows.As<float>() + r * n.cols);
    }
  }
  std::fill_n(terms_seen.begin(), step_rows.size(), uint8_t{0});
  rows = step_rows;
  choice = &gate_choice;
  out = sums;
  call_rows.clear();
  call_pairs.clear();
  // Decode calls first: they are short and somebody waits for each of their rows.
  for (const bool is_prefill : {false, true}) {
    AssignPhase(is_prefill);
    BuildCalls(is_prefill);
  }
  (void)CONCLAVE_FAILPOINT("f.routed", {.layer = layer});
}

std::optional<absl::Status> Dispatcher::Advance() {
  return state_->Advance(state_->micro_batches[0]);
}

std::optional<absl::Status> Dispatcher::State::Advance(MicroBatch& batch) {
  absl::Status status = batch.early_status;
  if (status.ok()) {
    status = placement == nullptr ? Error(absl::StatusCode::kUnavailable, "expert_unserved",
                                          "no placement is known yet; expected one from the router")
                                  : batch.Serve();
  }
  if (status.ok() && batch.num_open > 0) {
    return std::nullopt;
  }
  (void)CONCLAVE_FAILPOINT("f.after_combine", {.layer = batch.layer});
  batch.AbandonAll();
  if (options.observer != nullptr) {
    options.observer->OnLayer({batch.layer, batch.index, status.ok(), batch.awaited_at, Now()});
  }
  batch.is_running = false;
  if (!IsRunning()) {
    source.Leave();
  }
  return status;
}

MonotonicTime Dispatcher::NextTimer() const { return state_->NextTimer(); }

void Dispatcher::OnWoken(MonotonicTime until, bool is_rung) {
  State& s = *state_;
  if (!is_rung) {
    s.lateness.Observe(std::chrono::duration_cast<Microseconds>(s.Now() - until));
  }
  s.TakeUpdate();
  s.PollProbes();
}

}  // namespace conclave::frontend
