// The metrics of a `conclave worker` (docs/metrics.md).
#pragma once

#include "conclave/expert_worker/worker_server.h"
#include "conclave/observability/metrics.h"

namespace conclave::cli {

// `server` outlives every scrape.
void AddWorkerMetrics(observability::Metrics& metrics, const expert_worker::WorkerServer& server);

}  // namespace conclave::cli
