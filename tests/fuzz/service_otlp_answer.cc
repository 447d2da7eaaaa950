// What a collector answers: the body, and behind the first zero byte Retry-After.
//
// Promises: a pause is never negative and at most an hour.
#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "conclave/base/check.h"
#include "otlp_json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(bytes), size);
  const size_t end = std::min(text.find('\0'), size);
  (void)conclave::service::RejectedSpans(text.substr(0, end));
  const std::optional<std::chrono::seconds> pause =
      conclave::service::ParseRetryAfter(text.substr(std::min(end + 1, size)));
  CONCLAVE_CHECK(!pause || (pause->count() >= 0 && *pause <= std::chrono::hours(1)));
  return 0;
}
