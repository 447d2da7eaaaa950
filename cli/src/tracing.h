// Tracing of a process that answers clients: its settings, and what sends the spans.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "conclave/observability/metrics.h"
#include "conclave/observability/trace.h"
#include "conclave/service/options.h"
#include "conclave/service/otlp_exporter.h"
#include "conclave/service/server_url.h"

namespace conclave::cli {

struct TraceSettings {
  std::string otlp_endpoint;  // empty: nothing is traced
  // Share of the requests that come without a caller's decision.
  double sample = 0.01;
  // Set by CheckTraceSettings from the text.
  service::ServerUrl collector;
};
void AddTraceOptions(service::OptionSet& set, TraceSettings& settings);

// "usage" for an endpoint that is none, naming the flag.
absl::Status CheckTraceSettings(TraceSettings& settings);

// Outlives everything that is traced: what is left is sent when it ends.
class Tracing {
 public:
  // `role`: of the process. Adds conclave_trace_spans_total to `metrics`, which nobody may read any
  // more when this ends.
  Tracing(const TraceSettings& settings, const std::string& role, observability::Metrics& metrics);

  // Null without --otlp-endpoint.
  observability::Tracer* tracer() const { return tracer_.get(); }

 private:
  std::unique_ptr<observability::Tracer> tracer_;
  std::unique_ptr<service::OtlpExporter> exporter_;  // ends first
};

}  // namespace conclave::cli
