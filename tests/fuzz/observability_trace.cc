// What a caller says of its trace: traceparent, and behind the first line break tracestate.
//
// Promises: what is read of version 00 is what would be written for it, to the byte; no id is
// zeros; a tracestate that is carried on is as it came, and safe in a header.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "conclave/base/check.h"
#include "conclave/observability/trace_context.h"

namespace conclave::observability {
namespace {

void CheckParent(std::string_view text) {
  const std::optional<TraceContext> context = ParseTraceparent(text);
  if (!context.has_value()) {
    return;
  }
  CONCLAVE_CHECK(context->trace_id != TraceId{} && context->span_id != SpanId{});
  const std::string written = Hex(context->trace_id) + "-" + Hex(context->span_id) + "-";
  CONCLAVE_CHECK(text.substr(3, 50) == written && text.substr(0, 2) != "ff");
  CONCLAVE_CHECK(text.size() == 55 || (text.substr(0, 2) != "00" && text[55] == '-'));
}

void CheckState(std::string_view text) {
  const std::string state = CheckedTracestate(text);
  CONCLAVE_CHECK(state.empty() || state == text);
  CONCLAVE_CHECK(state.size() <= kTracestateBytesMax &&
                 state.find_first_of(std::string_view("\r\n\0", 3)) == std::string::npos);
}

}  // namespace
}  // namespace conclave::observability

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const size_t end = std::min(text.find('\n'), size);
  conclave::observability::CheckParent(text.substr(0, end));
  conclave::observability::CheckState(text.substr(std::min(end + 1, size)));
  return 0;
}
