// What a server needs of the cluster that computes its experts.
#pragma once

#include "absl/status/status.h"
#include "conclave/observability/metrics.h"
#include "embedded_cluster.h"

namespace conclave::cli {

// The cluster that holds the experts of a server which does not compute them itself.
class ClusterSide {
 public:
  virtual ~ClusterSide() = default;
  // Before the model is loaded: joins the cluster and puts its links into `options`.
  virtual absl::Status Join(EmbeddedOptions& options, observability::Metrics& metrics) = 0;
  // After it: waits until there is a placement.
  virtual absl::Status WaitForPlacement() = 0;
  // From now on the router is told what this server has counted; null ends it.
  virtual void Report(std::function<live::FrontendFigures()> figures) = 0;
};

}  // namespace conclave::cli
