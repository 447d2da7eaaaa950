// The heart of an expert worker: a pure function of (weights, call). Knows nothing of requests, tokens or users.
#pragma once

#include <atomic>
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
  uint16_t max_rows = 256;   // per call
  uint16_t max_pairs = 512;  // per call
};

// Rows computed, per expert unit and phase and modality; read by metrics at any time.
struct ExpertLoad {
  placement::ExpertUnit unit;
  uint64_t rows[2][2];  // [decode, prefill][text, image]
};

// Execute() on one thread at a time; Load() is done before the first call; TakeLoads() any thread.
class WorkerCore : public transport::CallHandler {
 public:
  // Loads and packs the experts `units` from the checkpoint, and no other tensor. `on_progress(done, total)` counts units.
  static absl::StatusOr<std::unique_ptr<WorkerCore>> Load(
      const checkpoint::Checkpoint& checkpoint, std::vector<placement::ExpertUnit> units,
      const WorkerCoreOptions& options, const std::function<void(int64_t, int64_t)>& on_progress);

  ~WorkerCore() override;

  // Rows of the call in the wire dtype → partial sums in the wire dtype (ReplyView). No allocation.
  absl::Status Execute(const transport::CallView& call, transport::ReplyView& reply) override;

  // Cumulative counts since the start.
  std::vector<ExpertLoad> Loads() const;

  size_t weight_bytes() const;

 private:
  struct State;
  explicit WorkerCore(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace conclave::expert_worker
