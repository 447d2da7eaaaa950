// The reader of a server's event stream.
//
// Promises: any way of cutting the stream gives the same events; no event holds what ends one; what
// an error event says is a reason in form and one printable line.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "sse.h"

namespace conclave::cli {
namespace {

void CheckStatus(const absl::Status& status) {
  CONCLAVE_CHECK(!ReasonOf(status).empty());
  const std::string message = MessageOf(status);
  CONCLAVE_CHECK(message.find('\n') == std::string::npos);
  CONCLAVE_CHECK(message.find('\x1b') == std::string::npos);
}

void Check(std::string_view stream) {
  SseReader whole;
  const absl::StatusOr<std::vector<std::string>> events = whole.Feed(stream);
  SseReader slow;
  std::vector<std::string> one_by_one;
  for (const char c : stream) {
    const absl::StatusOr<std::vector<std::string>> more = slow.Feed({&c, 1});
    CONCLAVE_CHECK(more.ok() || !events.ok());
    if (!more.ok()) {
      return;
    }
    one_by_one.insert(one_by_one.end(), more->begin(), more->end());
  }
  CONCLAVE_CHECK(events.ok() && *events == one_by_one);
  for (const std::string& event : *events) {
    CONCLAVE_CHECK(event.find('\r') == std::string::npos);
    const absl::StatusOr<ChatEvent> parsed = ParseChatEvent(event);
    if (!parsed.ok()) {
      CheckStatus(parsed.status());
    }
  }
  CheckStatus(ErrorOf(400, std::string(stream)));
}

}  // namespace
}  // namespace conclave::cli

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::cli::Check({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
