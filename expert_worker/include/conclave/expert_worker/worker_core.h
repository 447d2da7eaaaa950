// The heart of an expert worker: a pure function of (weights, call). Knows nothing of requests,
// tokens or users.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/base/ids.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/held_expert.h"
#include "conclave/kernels/context.h"
#include "conclave/placement/placement.h"
#include "conclave/transport/expert_channel.h"
#include "conclave/transport/frame.h"

namespace conclave::expert_worker {

struct WorkerCoreOptions {
  // The numeric mode: kF32, kBf16 or kQ8. Its RowDtypeOf is the wire dtype that is accepted.
  DType dtype = DType::kBf16;
  kernels::Context compute;
  // Per call; the buffers are sized for them once. max_rows <= transport::kMaxRowsPerCall.
  uint16_t max_rows = 256;
  uint16_t max_pairs = 512;
  // Calls of one ExecuteMerged, and their rows together; fewer rows than max_rows mean max_rows.
  uint16_t max_merged_calls = 1;
  uint16_t max_merged_rows = 0;
  // Bytes that experts may take; 0: no limit.
  int64_t memory_bytes = 0;
};

// Rows computed, per expert unit and phase and modality; read by metrics at any time.
struct ExpertLoad {
  placement::ExpertUnit unit;
  uint64_t rows[2][2];  // [decode, prefill][text, image]
};

// One call of a batch and how it ended.
struct MergedCall {
  const transport::CallView* call = nullptr;
  transport::ReplyView* reply = nullptr;
  absl::Status status;
};

// Which experts are held changes while calls run: the set is an immutable snapshot, which a call
// copies the pointer of and keeps, so that what is retired meanwhile stays until the call has
// ended.
//
//   compute thread  Execute, ExecuteMerged: one thread at a time
//   loader thread   LoadExpert, RetireExperts, RunCanary: any thread, one at a time (they wait for
//                   each other); computes on the calling thread alone, so that calls keep the pool
//   any thread      the rest, at any time
class WorkerCore : public transport::CallHandler {
 public:
  // Holds nothing yet. `desc` is not kept.
  static std::unique_ptr<WorkerCore> Create(const checkpoint::ModelDesc& desc,
                                            const WorkerCoreOptions& options);

  // Create, then loads and packs the experts `units` (distinct, in any order; none is legal) from
  // the checkpoint on options.compute.pool, and no other tensor. For workers whose set stays: no
  // hash and no canary is computed, Held() has zeros there. `on_progress(done, total)` counts
  // units; it may be null. Beside the checkpoint's errors: kInvalidArgument
  // "placement_unknown_unit" for an expert that the model does not have, "placement_duplicate".
  static absl::StatusOr<std::unique_ptr<WorkerCore>> Load(
      const checkpoint::Checkpoint& checkpoint, std::vector<placement::ExpertUnit> units,
      const WorkerCoreOptions& options, const std::function<void(int64_t, int64_t)>& on_progress);

  ~WorkerCore() override;

  // Hashes, loads and tries one more expert, then holds it. One that is held already is what is
  // answered, if it is as expected. Nothing changes on an error: beside those of Load and of the
  // checkpoint kResourceExhausted ("worker_memory") beyond memory_bytes, kFailedPrecondition
  // ("wrong_weights", "canary_mismatch") when it is not what `expected` says. `checkpoint` is of
  // the model of Create and not kept.
  absl::StatusOr<HeldExpert> LoadExpert(const checkpoint::Checkpoint& checkpoint,
                                        placement::ExpertUnit unit, const ExpectedExpert& expected);

  // Holds them no more; those that are not held are passed over. Returns the bytes that are free
  // now: it waits for the call that may still use them.
  int64_t RetireExperts(std::span<const placement::ExpertUnit> units);

  // Computes the canary row of a held expert again: kFailedPrecondition ("canary_mismatch") when
  // the answer is another than at its load. OK for one that is not held.
  absl::Status RunCanary(placement::ExpertUnit unit);

  // Rows of the call in the wire dtype → partial sums in the wire dtype (ReplyView). reply.rows has
  // room for exactly the call's rows. Every check of transport::ValidateCall is made here too, so a
  // call needs no parser before it; then "no_such_layer" for a dense layer, "not_held",
  // "nonfinite_input". Nothing is written before all checks have passed, and a refused call leaves
  // the worker as it was. No allocation, unless it is the status of a refused call.
  //
  // Each term is rounded to the wire dtype before it is added, whether or not the row's other term
  // is computed here: so the bits do not depend on how a row's experts are spread over workers
  // (data-plane.md section 4).
  absl::Status Execute(const transport::CallView& call, transport::ReplyView& reply) override;

  // The same for several calls of one layer at once: every expert runs once over the rows of all of
  // them, with the bits that each call has alone. Fills `status` of each; one that is refused does
  // not touch the others. At most max_merged_calls and max_merged_rows.
  void ExecuteMerged(std::span<MergedCall> calls);

  bool Holds(placement::ExpertUnit unit) const;

  // What is held now, in ascending order of units.
  std::vector<HeldExpert> Held() const;

  // Cumulative counts since the start, in ascending order of units: of all that are held or were
  // used. A call that comes twice in a row, by its (frontend, slot, seq), is counted once; seq 0
  // marks a call of no channel, which always counts.
  std::vector<ExpertLoad> Loads() const;

  // Bytes of all held experts, and of any one.
  size_t weight_bytes() const;
  size_t expert_bytes() const;

  // What a call must keep to; for the parsers before it.
  const transport::FrameLimits& limits() const;

 private:
  struct State;
  explicit WorkerCore(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::expert_worker
