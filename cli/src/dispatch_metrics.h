// What a dispatcher counts, as metrics (docs/metrics.md).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "conclave/frontend/cluster_view.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/observability/metrics.h"

namespace conclave::cli {

// Workers whose time is shown one by one; that of all others is summed as worker="other", so that a
// page stays small. The first ones met, so that no counter ever falls.
inline constexpr size_t kDispatchWorkersMax = 32;

// Both counts of one moment.
struct DispatchReading {
  frontend::DispatchStats stats;
  std::vector<frontend::WorkerDispatch> workers;
  frontend::BucketCounts recovery;
};

// `frontend`: what bytes to workers come from, the label src. `read` is called at a scrape, once
// per family; what it refers to outlives `metrics`.
void AddDispatchMetrics(observability::Metrics& metrics, const std::string& frontend,
                        const std::function<DispatchReading()>& read);

// Adds moe_worker_info{worker,name,host,channel} 1: names beside ids. `links` as `read`.
void AddWorkerInfo(observability::Metrics& metrics,
                   const std::function<std::vector<frontend::MemberLink>()>& links);

}  // namespace conclave::cli
