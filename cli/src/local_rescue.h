// Experts that a frontend of a cluster computes itself while no worker serves them.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/worker_core.h"
#include "conclave/frontend/expert_rescue.h"
#include "conclave/transport/inproc_channel.h"

namespace conclave::cli {

class LocalRescue final : public frontend::ExpertRescue {
 public:
  // `checkpoint` outlives it. `worker.memory_bytes` bounds what is held at once.
  LocalRescue(const checkpoint::Checkpoint& checkpoint,
              const expert_worker::WorkerCoreOptions& worker,
              const transport::InprocOptions& channel);

  transport::ExpertChannel& channel() override { return *channel_; }
  bool Holds(placement::ExpertUnit unit) const override { return core_->Holds(unit); }
  absl::Status Load(placement::ExpertUnit unit) override;
  void Retire(std::span<const placement::ExpertUnit> units) override;

 private:
  const checkpoint::Checkpoint& checkpoint_;
  const int64_t memory_bytes_;
  const std::unique_ptr<expert_worker::WorkerCore> core_;
  const std::unique_ptr<transport::ExpertChannel> channel_;
};

}  // namespace conclave::cli
