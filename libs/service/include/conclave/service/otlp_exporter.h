// Sends a tracer's spans to a collector: OTLP over HTTP with JSON (POST .../v1/traces).
//
// One thread of its own. A collector that is slow or away costs its spans and nothing else: what
// waits is bounded, and nobody but this thread waits for it. An answer of 429, 502, 503 or 504, and
// a connection that does not come about or breaks, mean "later": the batch is sent again, after
// Retry-After or after ever longer pauses. Every other refusal drops the batch at once.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/observability/trace.h"
#include "conclave/service/server_url.h"

namespace conclave::service {

// What says where spans come from: "service.name" and the like.
struct OtlpResourceField {
  std::string key;
  std::string value;
};

struct OtlpExporterOptions {
  ServerUrl endpoint;  // of ParseOtlpEndpoint
  std::vector<OtlpResourceField> resource;
  std::string version;  // of this program

  size_t batch_spans_max = 512;
  // Spans wait at most as long for others to go with them.
  std::chrono::milliseconds batch_time{5'000};
  // For one POST, from connecting to the answer.
  std::chrono::milliseconds post_timeout{10'000};
  // Pauses between two tries of a batch, doubled each time; a longer Retry-After wins.
  std::chrono::milliseconds backoff_min{1'000};
  std::chrono::milliseconds backoff_max{30'000};
  // A batch that the collector has not taken by then is given up.
  std::chrono::milliseconds patience{60'000};
  // For all that is left when the exporter ends, one try each.
  std::chrono::milliseconds flush_timeout{2'000};
};

// "http://HOST[:PORT][/PATH]": port 4318 where it names none, and "/v1/traces" behind a path that
// does not end so. kInvalidArgument ("usage") for anything else; https is refused with a word of
// what to do instead.
absl::StatusOr<ServerUrl> ParseOtlpEndpoint(std::string_view text);

class OtlpExporter {
 public:
  // Starts the thread. `tracer` outlives the exporter.
  OtlpExporter(observability::Tracer& tracer, OtlpExporterOptions options);
  // Sends what is left, for flush_timeout at most.
  ~OtlpExporter();
  OtlpExporter(const OtlpExporter&) = delete;
  OtlpExporter& operator=(const OtlpExporter&) = delete;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::service
