// Dispatch and combine: rows of one MoE layer go to the workers of their experts and come back
// summed.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/ids.h"
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
};

// Groups a layer's rows into calls (one per worker, phase and at most limits().max_rows rows),
// keeps up to a channel's number of slots in flight, and adds the answers in an order that cannot
// be seen in the bits. Used by one thread, the engine's. No allocation in Run().
class Dispatcher : public model::MoeExecutor {
 public:
  struct Link {
    WorkerId worker;
    transport::ExpertChannel* channel = nullptr;  // outlives the dispatcher
  };

  Dispatcher(const DispatcherOptions& options,
             std::shared_ptr<const placement::Placement> placement, std::vector<Link> links);
  ~Dispatcher() override;

  absl::Status Run(int32_t layer, MatView<const float> n, std::span<const model::StepRow> rows,
                   const model::GateChoice& choice, MatView<float> out) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::frontend
