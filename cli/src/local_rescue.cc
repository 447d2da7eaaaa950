#include "local_rescue.h"

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::cli {

LocalRescue::LocalRescue(const checkpoint::Checkpoint& checkpoint,
                         const expert_worker::WorkerCoreOptions& worker,
                         const transport::InprocOptions& channel)
    : checkpoint_(checkpoint),
      memory_bytes_(worker.memory_bytes),
      core_(expert_worker::WorkerCore::Create(checkpoint.desc(), worker)),
      channel_(transport::MakeInprocChannel(*core_, channel)) {}

absl::Status LocalRescue::Load(placement::ExpertUnit unit) {
  if (core_->Holds(unit)) {
    return absl::OkStatus();
  }
  absl::Status status = core_->LoadExpert(checkpoint_, unit, {}).status();
  if (status.ok()) {
    observability::LogWarning("no worker serves an expert: computed here until one does",
                              {{"layer", unit.layer.value()}, {"expert", unit.expert.value()}});
    return status;
  }
  observability::LogError(
      "no worker serves an expert, and it cannot be loaded here",
      {{"layer", unit.layer.value()}, {"expert", unit.expert.value()}, {"why", MessageOf(status)}});
  if (ReasonOf(status) == "worker_memory") {
    return Error(absl::StatusCode::kResourceExhausted, "rescue_memory",
                 "rescue-memory: expected room for one more expert within " +
                     std::to_string(memory_bytes_) + " bytes, found none");
  }
  return status;
}

void LocalRescue::Retire(std::span<const placement::ExpertUnit> units) {
  const int64_t freed = core_->RetireExperts(units);
  observability::LogInfo("workers serve experts again that were computed here",
                         {{"experts", units.size()}, {"freed_bytes", freed}});
}

}  // namespace conclave::cli
