#include "otlp_json.h"

#include <algorithm>
#include <boost/json.hpp>
#include <type_traits>
#include <utility>

#include "conclave/service/units.h"

namespace conclave::service {
namespace {

namespace json = boost::json;
using observability::Hex;
using observability::Span;
using observability::SpanAttribute;

constexpr int64_t kRetryAfterSecondsMax = 3600;
// W3C's flags in the low byte, which are "sampled" for all that is exported; then whether it is
// known that the parent is of another process, and whether it is.
constexpr int kFlagsSampled = 0x001;
constexpr int kFlagsKnowsRemote = 0x100;
constexpr int kFlagsIsRemote = 0x200;
constexpr int kStatusError = 2;

// boost::json takes its own string_view only.
json::string Text(std::string_view text) { return {json::string_view(text.data(), text.size())}; }

json::object ValueOf(const SpanAttribute::Value& value) {
  return std::visit(
      [](const auto& v) -> json::object {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>) {
          return {{"boolValue", v}};
        } else if constexpr (std::is_same_v<T, int64_t>) {
          return {{"intValue", Text(std::to_string(v))}};  // 64 bits are text in this mapping
        } else if constexpr (std::is_same_v<T, double>) {
          return {{"doubleValue", v}};
        } else if constexpr (std::is_same_v<T, std::string>) {
          return {{"stringValue", Text(v)}};
        } else {
          json::array values;
          for (const std::string& text : v) {
            values.push_back(json::object{{"stringValue", Text(text)}});
          }
          return {{"arrayValue", json::object{{"values", std::move(values)}}}};
        }
      },
      value);
}

json::array AttributesOf(std::span<const SpanAttribute> attributes) {
  json::array out;
  out.reserve(attributes.size());
  for (const SpanAttribute& attribute : attributes) {
    out.push_back(json::object{{"key", Text(attribute.key)}, {"value", ValueOf(attribute.value)}});
  }
  return out;
}

json::object SpanOf(const Span& span) {
  json::object out{{"traceId", Text(Hex(span.trace_id))}, {"spanId", Text(Hex(span.id))}};
  const bool has_parent = span.parent_id != observability::SpanId{};
  if (!span.trace_state.empty()) {
    out["traceState"] = Text(span.trace_state);
  }
  if (has_parent) {
    out["parentSpanId"] = Text(Hex(span.parent_id));
  }
  out["flags"] = kFlagsSampled | kFlagsKnowsRemote | (span.has_remote_parent ? kFlagsIsRemote : 0);
  out["name"] = Text(span.name);
  out["kind"] = static_cast<int>(span.kind);
  out["startTimeUnixNano"] = Text(std::to_string(span.start_ns));
  out["endTimeUnixNano"] = Text(std::to_string(span.end_ns));
  out["attributes"] = AttributesOf(span.attributes);
  if (!span.events.empty()) {
    json::array events;
    for (const observability::SpanEvent& event : span.events) {
      events.push_back(json::object{{"timeUnixNano", Text(std::to_string(event.time_ns))},
                                    {"name", Text(event.name)},
                                    {"attributes", AttributesOf(event.attributes)}});
    }
    out["events"] = std::move(events);
  }
  if (!span.links.empty()) {
    json::array links;
    for (const observability::SpanLink& link : span.links) {
      links.push_back(
          json::object{{"traceId", Text(Hex(link.trace_id))}, {"spanId", Text(Hex(link.span_id))}});
    }
    out["links"] = std::move(links);
  }
  if (span.is_error) {
    out["status"] = json::object{{"code", kStatusError}, {"message", Text(span.error)}};
  }
  return out;
}

}  // namespace

std::string OtlpJson(std::span<const OtlpResourceField> resource, std::string_view scope_version,
                     std::span<const Span> spans) {
  std::vector<SpanAttribute> fields;
  for (const OtlpResourceField& field : resource) {
    fields.emplace_back(field.key, field.value);
  }
  json::array all;
  all.reserve(spans.size());
  for (const Span& span : spans) {
    all.push_back(SpanOf(span));
  }
  json::object scope_spans{
      {"scope", json::object{{"name", "conclave"}, {"version", Text(scope_version)}}},
      {"spans", std::move(all)}};
  json::object resource_spans{{"resource", json::object{{"attributes", AttributesOf(fields)}}},
                              {"scopeSpans", json::array{std::move(scope_spans)}}};
  return json::serialize(json::object{{"resourceSpans", json::array{std::move(resource_spans)}}});
}

uint64_t RejectedSpans(std::string_view body) {
  boost::system::error_code error;
  const json::value answer = json::parse({body.data(), body.size()}, error);
  const json::value* rejected =
      error ? nullptr : answer.find_pointer("/partialSuccess/rejectedSpans", error);
  if (rejected == nullptr) {
    return 0;
  }
  int64_t count = 0;
  if (rejected->is_int64()) {
    count = rejected->get_int64();
  } else if (rejected->is_string()) {
    const json::string& text = rejected->get_string();
    count = ParseInt(std::string_view(text.data(), text.size())).value_or(0);
  }
  return static_cast<uint64_t>(std::max<int64_t>(count, 0));
}

std::optional<std::chrono::seconds> ParseRetryAfter(std::string_view text) {
  const absl::StatusOr<int64_t> seconds = ParseInt(text);
  if (!seconds.ok() || *seconds < 0) {
    return std::nullopt;
  }
  return std::chrono::seconds(std::min(*seconds, kRetryAfterSecondsMax));
}

}  // namespace conclave::service
