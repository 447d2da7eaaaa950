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
#include "conclave/kernels/context.h"
#include "conclave/placement/placement.h"
#include "conclave/transport/expert_channel.h"

namespace conclave::expert_worker {

struct WorkerCoreOptions {
  // kF32 or kBf16: the numeric mode; also the wire dtype it accepts.
  DType dtype = DType::kBf16;
  kernels::Context compute;
  // Per call; the buffers are sized for them once. max_rows <= transport::kMaxRowsPerCall.
  uint16_t max_rows = 256;
  uint16_t max_pairs = 512;
};

// Rows computed, per expert unit and phase and modality; read by metrics at any time.
struct ExpertLoad {
  placement::ExpertUnit unit;
  uint64_t rows[2][2];  // [decode, prefill][text, image]
};

// Execute() on one thread at a time; Loads() and weight_bytes() any thread, also while a call runs.
class WorkerCore : public transport::CallHandler {
 public:
  // Loads and packs the experts `units` (distinct, in any order; none is legal) from the
  // checkpoint, and no other tensor. `on_progress(done, total)` counts units; it may be null.
  // Beside the checkpoint's errors: kInvalidArgument "placement_unknown_unit" for an expert that
  // the model does not have, "placement_duplicate".
  static absl::StatusOr<std::unique_ptr<WorkerCore>> Load(
      const checkpoint::Checkpoint& checkpoint, std::vector<placement::ExpertUnit> units,
      const WorkerCoreOptions& options, const std::function<void(int64_t, int64_t)>& on_progress);

  ~WorkerCore() override;

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

  // Cumulative counts since the start, in ascending order of units. A call that comes twice in a
  // row, by its (frontend, slot, seq), is counted once; seq 0 marks a call of no channel, which
  // always counts.
  std::vector<ExpertLoad> Loads() const;

  size_t weight_bytes() const;

 private:
  struct State;
  explicit WorkerCore(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::expert_worker
