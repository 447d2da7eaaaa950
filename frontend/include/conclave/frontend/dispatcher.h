// Dispatch and combine: rows of one MoE layer go to the workers of their experts and come back
// summed, whatever happens to a worker meanwhile.
//
// A call is all rows of one layer and phase that go to one worker. It is combined exactly once: by
// the first of its attempts that is answered. A call whose link is lost, whose worker refuses it or
// whose deadline passes goes to other replicas, split if need be; a slow one is sent a second time
// (hedge), and the loser is cancelled. Rounding each term to the wire's type makes all of that
// invisible in the bits (data-plane.md sections 4, 10 and 11).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/base/ids.h"
#include "conclave/frontend/dispatch_counts.h"
#include "conclave/frontend/dispatch_observer.h"
#include "conclave/frontend/expert_rescue.h"
#include "conclave/frontend/link_health.h"
#include "conclave/frontend/link_source.h"
#include "conclave/kernels/context.h"
#include "conclave/model/decoder.h"
#include "conclave/placement/placement.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::frontend {

struct DispatcherOptions {
  kernels::Context compute;
  transport::WireDtype wire = transport::WireDtype::kBf16;
  int32_t io_dim = 0;
  int32_t top_k = 2;     // 1 or 2: the sum of two rounded terms is exact in either order
  int32_t max_rows = 0;  // of one step
  // Breaks ties between replicas, so that frontends do not all pick the same.
  uint32_t frontend = 0;

  LinkSettings link = {};
  RetryBudget::Settings retries = {};
  int attempts_max = 4;  // per call; the last one has the call's own deadline
  // A call, all attempts together.
  std::chrono::milliseconds call_deadline{5'000};
  // How long a row waits for an expert that nobody serves, before the step fails
  // ("expert_unserved").
  std::chrono::milliseconds expert_wait{2'000};
  // Before a link has answered: microseconds to read one expert's weights, and per row.
  double expert_us = 1'000;
  double row_us = 100;
  bool is_hedging = true;
  // Computes what nobody serves; null: nobody. Outlives the dispatcher. Asked when an expert has
  // had no worker for rescue_after; then, until workers serve all that it holds, at once.
  ExpertRescue* rescue = nullptr;
  std::chrono::milliseconds rescue_after{300};
  const Clock* clock = &Clock::Real();
  // Whether the times of calls are counted by stage: three more looks at the clock per call. Off to
  // measure what that costs.
  bool is_timing = true;
  // Told of every attempt and layer; null: nobody. Outlives the dispatcher.
  DispatchObserver* observer = nullptr;
};

// Cumulative, any thread.
struct DispatchStats {
  uint64_t calls = 0;  // first attempts
  uint64_t retries = 0;
  uint64_t hedges = 0;
  uint64_t hedges_won = 0;
  uint64_t timeouts = 0;
  uint64_t link_losses = 0;    // calls that a lost link took with it
  uint64_t refusals = 0;       // NACKs that led to another attempt
  uint64_t waits = 0;          // calls that had to wait for a replica
  uint64_t rescues = 0;        // calls that the frontend computed itself
  uint64_t tokens = 0;         // of the retry budget, spent on retries, hedges and probes
  uint64_t degraded_rows = 0;  // answered by the frontend itself, as no worker served their expert
};

// Used by one thread, the engine's; Stats, Workers and Recovery by any. No allocation in a layer
// while nothing fails.
class Dispatcher : public model::MoeExecutor {
 public:
  struct Link {
    WorkerId worker;
    transport::ExpertChannel* channel = nullptr;  // outlives the dispatcher
  };

  // Inline links that stay as they are: the embedded mode.
  Dispatcher(const DispatcherOptions& options,
             std::shared_ptr<const placement::Placement> placement, std::vector<Link> links);
  // Links that come and go. `source` outlives the dispatcher.
  Dispatcher(const DispatcherOptions& options, LinkSource& source);
  ~Dispatcher() override;

  // Beside a worker's refusals: kUnavailable "expert_unserved" when an expert had no worker for
  // expert_wait and could not be rescued, kDeadlineExceeded "call_deadline" when a call was not
  // answered in time by anybody.
  // What Start and Poll run into is said by Finish. Inline channels compute in Finish.
  void Start(int32_t micro_batch, int32_t layer, MatView<const float> n,
             std::span<const model::StepRow> rows, const model::GateChoice& choice,
             MatView<float> out) override;
  void Poll() override;
  absl::Status Finish(int32_t micro_batch) override;
  uint64_t num_resent() const override;

  // Micro-batch 0 in smaller pieces, for a caller that must not be blocked (a simulation has many
  // dispatchers on one thread). Begin; then Advance until it gives the layer's status. Where it
  // gives none, the caller waits until NextTimer, an update of the source or an answer, and says
  // with OnWoken which it was before it advances again. What Begin is given must live until the
  // status.
  void Begin(int32_t layer, MatView<const float> n, std::span<const model::StepRow> rows,
             const model::GateChoice& choice, MatView<float> out);
  std::optional<absl::Status> Advance();
  MonotonicTime NextTimer() const;
  // `until` is what NextTimer gave; `is_rung`: something other than the time has come.
  void OnWoken(MonotonicTime until, bool is_rung);

  DispatchStats Stats() const;
  // By worker and carrier, in the order in which the workers were met, those that are gone too.
  std::vector<WorkerDispatch> Workers() const;
  // Calls of which no attempt was left at least once, by the time from their first sending to their
  // answer. A call that a hedge alone answered is none.
  BucketCounts Recovery() const;

 private:
  struct MicroBatch;
  struct State;
  Dispatcher(const DispatcherOptions& options, std::unique_ptr<LinkSource> source);
  void Prepare();
  std::unique_ptr<State> state_;
};

}  // namespace conclave::frontend
