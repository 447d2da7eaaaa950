// Spans as the JSON form of OTLP's ExportTraceServiceRequest (opentelemetry-proto, protobuf's JSON
// mapping with ids in hexadecimal), and what a collector answers.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "conclave/observability/trace.h"
#include "conclave/service/otlp_exporter.h"

namespace conclave::service {

// The body of one POST. Pure.
std::string OtlpJson(std::span<const OtlpResourceField> resource, std::string_view scope_version,
                     std::span<const observability::Span> spans);

// Spans that a collector took the request with but refused ("partialSuccess"); 0 when it says
// nothing that can be read.
uint64_t RejectedSpans(std::string_view body);

// Retry-After as seconds, at most an hour; a date, or what is none, is nullopt.
std::optional<std::chrono::seconds> ParseRetryAfter(std::string_view text);

}  // namespace conclave::service
