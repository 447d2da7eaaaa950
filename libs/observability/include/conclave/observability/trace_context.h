// W3C Trace Context (level 1): how a caller says which trace a request belongs to, in the headers
// `traceparent` and `tracestate` of HTTP or the metadata of gRPC. Pure; no allocation but for
// results that are text.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace conclave::observability {

// Big-endian, as they are written. All zeros: none.
using TraceId = std::array<uint8_t, 16>;
using SpanId = std::array<uint8_t, 8>;

// A span seen from outside: which trace, which span, and whether the trace is recorded.
struct TraceContext {
  TraceId trace_id{};
  SpanId span_id{};
  bool is_sampled = false;
  friend bool operator==(const TraceContext&, const TraceContext&) = default;
};

// "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01". Strict: lower-case hexadecimal digits,
// no id of zeros, nothing behind version 00. Of a later version what version 00 knows is read, and
// what stands behind it after a '-' passed over. nullopt for everything else: the request then
// begins a trace of its own, as the specification says.
std::optional<TraceContext> ParseTraceparent(std::string_view text);

// Longer tracestates are dropped, which the specification allows; every tracer has to take these.
inline constexpr size_t kTracestateBytesMax = 512;

// `text` as it is handed on, or "" when it is too long or holds what no header may.
std::string CheckedTracestate(std::string_view text);

// Lower-case, two digits per byte.
std::string Hex(std::span<const uint8_t> bytes);

}  // namespace conclave::observability
