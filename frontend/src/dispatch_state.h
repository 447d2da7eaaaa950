// The parts of a running layer that dispatcher.cc, dispatch_calls.cc and dispatch_attempts.cc
// share.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/tensor/aligned_buffer.h"
#include "dispatch_ledger.h"
#include "link_table.h"

namespace conclave::frontend {

// One waits, one overtakes it.
constexpr int kLiveMax = 2;

struct Pair {
  uint16_t expert;
  uint16_t row;  // of the call
  float weight;
};

struct Attempt {
  size_t link = 0;
  transport::ExpertChannel* channel = nullptr;
  transport::CallSlot* slot = nullptr;  // null: not live
  MonotonicTime sent_at;
  MonotonicTime deadline;
  MonotonicTime hedge_at;
  std::chrono::nanoseconds serialized{0};  // copying its rows and handing them to the channel
  bool is_hedge = false;
};

enum class CallState : uint8_t {
  kToSend,    // has a link, waits for a slot of it
  kUnserved,  // no replica is up: waits for a link or a placement
  kSent,
  kDone,
};

struct Call {
  CallState state = CallState::kToSend;
  bool is_prefill = false;
  uint16_t image_rows = 0;
  uint16_t num_experts = 0;
  size_t first_row = 0;  // into MicroBatch::call_rows
  size_t num_rows = 0;
  size_t first_pair = 0;  // into MicroBatch::call_pairs
  size_t num_pairs = 0;
  size_t link = 0;  // to send to
  int num_attempts = 0;
  size_t first_link = 0;      // of the first attempt
  MonotonicTime not_before;   // of the next attempt
  MonotonicTime give_up_at;   // all attempts together
  MonotonicTime unserved_at;  // since when, in kUnserved
  MonotonicTime first_sent_at;
  bool is_resent = false;    // no attempt of it was left, once or more often
  bool needs_token = false;  // of the retry budget, for the next attempt
  Attempt live[kLiveMax];
  LinkSet tried;
  LinkSet refused;  // workers that do not hold an expert of it, under the placement of now

  int num_live() const {
    return (live[0].slot != nullptr ? 1 : 0) + (live[1].slot != nullptr ? 1 : 0);
  }
};

// A copy of a call to a worker that is not trusted: whether it answers is all that is wanted of it.
// It outlives the layer that it was sent for.
struct Probe {
  Attempt attempt;
  int num_rows = 0;
};

// What a failed attempt means for its call.
enum class Verdict : uint8_t {
  kFatal,      // the same everywhere: the step fails
  kElsewhere,  // proof that this worker will not answer it: free to send again
  kAgain,      // may have been chance: costs a token of the retry budget
};

// What belongs to one layer of one micro-batch; everything else is the dispatcher's and shared.
struct Dispatcher::MicroBatch {
  MicroBatch(State& state, uint8_t micro_batch) : s(state), index(micro_batch) {}

  State& s;
  const uint8_t index;
  bool is_running = false;    // between Begin and the status
  absl::Status early_status;  // what went wrong before Finish
  MonotonicTime awaited_at;   // as LayerRecord has it

  AlignedBuffer wire_rows;          // [max_rows, io_dim] in the wire dtype
  std::vector<int32_t> pair_link;   // [max_rows · top_k] index into table, of the layer's choice
  std::vector<int32_t> call_rows;   // rows of all calls of the layer, call after call
  std::vector<Pair> call_pairs;     // likewise
  std::vector<Call> calls;          // of the layer, oldest first
  std::vector<uint8_t> terms_seen;  // per row
  size_t num_open = 0;

  // Of the layer that runs.
  int32_t layer = 0;
  std::span<const model::StepRow> rows;
  const model::GateChoice* choice = nullptr;
  MatView<float> out;

  void Begin(int32_t moe_layer, MatView<const float> n, std::span<const model::StepRow> step_rows,
             const model::GateChoice& gate_choice, MatView<float> sums);
  void AssignPhase(bool is_prefill);
  int32_t LinkOfOther(size_t r, int32_t expert) const;
  // Sets pair_link of the rows of `expert`: all to `link`, or divided among `parts`.
  void AssignRows(int32_t expert, bool is_prefill, int32_t link);
  void BuildCalls(bool is_prefill);
  void AppendCall(size_t link, bool is_prefill, size_t first_row, size_t num_rows);
  // Everything that can be done now; calls are left open only when each of them waits for
  // something.
  absl::Status Serve();
  // Serve before Finish, as far as it has begun: what goes wrong is kept for that. `computes`: also
  // where calls lie at inline channels, which compute when they are polled.
  void ServeEarly(bool computes);
  // OK while a call without a worker may wait on. An empty retry budget delays it and says nothing
  // of its experts.
  absl::Status CheckPatience(const Call& call) const;
  // The first attempts of all calls, as far as slots are free.
  absl::Status SendFirst();
  absl::Status Advance(Call& call, bool& has_moved);
  absl::Status Send(Call& call, size_t link, bool is_hedge, bool& has_moved);
  void Fill(const Call& call, transport::CallSlot& slot);
  absl::Status PollAttempt(Call& call, Attempt& attempt, bool& has_moved);
  absl::Status OnTimeout(Call& call, Attempt& attempt, MonotonicTime now);
  void OnAnswer(Call& call, Attempt& attempt, MonotonicTime now);
  // Tells the observer of an attempt that ends now; its slot is still held.
  void Tell(const Call& call, const Attempt& attempt, AttemptEnd end, MonotonicTime now,
            absl::StatusCode code = absl::StatusCode::kOk) const;
  void CountAnswer(const Call& call, const Attempt& attempt, MonotonicTime now,
                   MonotonicTime combined_at);
  absl::Status OnFailure(Call& call, Attempt& attempt, FailoverReason reason,
                         const absl::Status& status);
  absl::Status SendElsewhere(Call& call, Verdict verdict, const absl::Status& why);
  struct ChosenLinks {
    size_t first_link = 0;
    bool is_whole = true;  // every expert has that link
  };
  std::optional<ChosenLinks> ChooseLinks(const Call& call, bool avoids_tried, MonotonicTime now);
  void Split(size_t call_index);
  void Divide(const Call& call);
  void Unserve(Call& call);
  // Loads what nobody serves of an unserved call, when it has waited long enough. Whether it did.
  bool Rescue(const Call& call);
  bool HoldsAll(const LinkEntry& entry, const Call& call) const;
  void MaybeHedge(Call& call, bool& has_moved);
  void MaybeProbe(const Call& call);
  void Combine(const Call& call, const transport::CallSlot& slot);
  bool IsInline() const;
  void AbandonAll();
};

struct Dispatcher::State {
  State(const DispatcherOptions& dispatcher_options, LinkSource& link_source)
      : options(dispatcher_options),
        source(link_source),
        table(options.link, options.expert_us, options.row_us, options.frontend),
        budget(options.retries, options.clock->Now()),
        micro_batches{MicroBatch(*this, 0), MicroBatch(*this, 1)} {}

  const DispatcherOptions options;
  std::unique_ptr<LinkSource> own_source;
  LinkSource& source;
  LinkSource::Update update;
  std::shared_ptr<const placement::Placement> placement;
  LinkTable table;
  RetryBudget budget;
  TimerLateness lateness;
  std::array<MicroBatch, model::kMicroBatches> micro_batches;

  std::vector<int32_t> link_of;        // [experts] of the phase being assigned, -1: not yet
  std::vector<int32_t> rows_of;        // [experts] rows of the phase
  std::vector<int32_t> order;          // experts of the phase, most rows first
  std::vector<int> rows_elsewhere;     // [links]
  std::vector<LinkTable::Part> parts;  // of the expert being assigned
  std::vector<Probe> probes;           // under way
  size_t row_bytes = 0;
  // The link to options.rescue, and what that holds: empty while workers serve everything.
  std::optional<size_t> rescue_link;
  std::vector<placement::ExpertUnit> rescued;
  absl::Status rescue_status;  // of the last load
  // The caller computes between two looks, so an answer may have lain there for a while.
  bool is_caller_away = false;

  Counter first_attempts, retries, hedges, hedges_won, timeouts, link_losses, refusals, waits,
      rescues, tokens, degraded_rows;
  DispatchLedger ledger;
  std::vector<WorkerLedger*> ledgers;  // by link
  DurationCounter recovery;

  MonotonicTime Now() const { return options.clock->Now(); }
  bool IsRunning() const {
    return std::any_of(micro_batches.begin(), micro_batches.end(),
                       [](const MicroBatch& batch) { return batch.is_running; });
  }
  void TakeUpdate();
  // Begins a layer's work: enters the source unless another micro-batch has.
  void Enter();
  std::optional<absl::Status> Advance(MicroBatch& batch);
  // How long the attempt that was answered now took.
  std::chrono::nanoseconds RoundTripOf(const Attempt& attempt, MonotonicTime now) const;
  // Whether a link is up to a worker that holds it; links of `excluded` do not count.
  bool IsServed(placement::ExpertUnit unit, const LinkSet& excluded) const;
  // Lets go of rescued experts that workers serve again. Between layers.
  void EndRescues();
  void PollProbes();
  bool SpendToken(MonotonicTime now);
  void Drop(Attempt& attempt);
  // What goes over this link counts there from now on.
  void CountLinkIn(size_t link, WorkerLedger& entry);
  void LoseLink(size_t link);
  MonotonicTime NextTimer() const;
  void Reserve(size_t links);
};

}  // namespace conclave::frontend
