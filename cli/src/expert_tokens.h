// What a worker counts, as its metrics want it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "conclave/expert_worker/worker_core.h"
#include "conclave/observability/engine_metrics.h"

namespace conclave::cli {

// One sample per phase and modality of every load, with the label `worker` unless that is below 0.
void AppendExpertTokens(std::span<const expert_worker::ExpertLoad> loads, int32_t worker,
                        std::vector<observability::ExpertTokens>* out);

}  // namespace conclave::cli
