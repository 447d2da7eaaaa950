#include "tracing.h"

#include <unistd.h>

#include <array>
#include <utility>
#include <vector>

#include "commands.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::cli {
namespace {

std::string HostName() {
  std::array<char, 256> host{};
  (void)::gethostname(host.data(), host.size() - 1);
  return observability::Printable(host.data(), host.size());
}

}  // namespace

void AddTraceOptions(service::OptionSet& set, TraceSettings& settings) {
  set.Add({.name = "otlp-endpoint",
           .help = "collector that gets spans of traced requests, http://HOST[:PORT][/PATH]",
           .group = "Tracing",
           .unset_means = "none, nothing is traced"},
          &settings.otlp_endpoint);
  set.Add({.name = "trace-sample",
           .help = "share of the requests that are traced; a caller's traceparent decides for its "
                   "own, either way",
           .group = "Tracing"},
          &settings.sample, {0.0, 1.0});
}

absl::Status CheckTraceSettings(TraceSettings& settings) {
  if (!settings.otlp_endpoint.empty()) {
    CONCLAVE_ASSIGN_OR_RETURN(settings.collector,
                              service::ParseOtlpEndpoint(settings.otlp_endpoint));
  }
  return absl::OkStatus();
}

Tracing::Tracing(const TraceSettings& settings, const std::string& role,
                 observability::Metrics& metrics) {
  if (settings.otlp_endpoint.empty()) {
    return;
  }
  observability::TracerOptions options;
  options.sample_ratio = settings.sample;
  tracer_ = std::make_unique<observability::Tracer>(options);
  metrics.AddCollector(
      "conclave_trace_spans_total", "Spans of traced requests, by what became of them.",
      observability::Metrics::Kind::kCounter, [tracer = tracer_.get()] {
        const observability::TraceCounts counts = tracer->Counts();
        const std::pair<const char*, uint64_t> values[] = {
            {"exported", counts.exported}, {"dropped", counts.dropped}, {"failed", counts.failed}};
        std::vector<observability::Metrics::Sample> samples;
        for (const auto& [what, value] : values) {
          samples.push_back({{{"result", what}}, static_cast<double>(value)});
        }
        return samples;
      });
  const std::string host = HostName();
  service::OtlpExporterOptions exporter;
  exporter.endpoint = settings.collector;
  exporter.version = Version();
  exporter.resource = {{"service.name", "conclave"},
                       {"service.version", Version()},
                       {"service.instance.id", host + "-" + std::to_string(::getpid())},
                       {"host.name", host},
                       {"conclave.role", role}};
  exporter_ = std::make_unique<service::OtlpExporter>(*tracer_, std::move(exporter));
}

}  // namespace conclave::cli
