// The checks of a chat request.
//
// Promises: whatever body is accepted, every field is within its documented range; a refusal has a
// reason and a message without control characters.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "chat_promises.h"
#include "http/chat_request.h"

namespace conclave::frontend {
namespace {

void Check(std::string_view body) {
  const HttpLimits limits = SmallLimits();
  const absl::StatusOr<ParsedChat> parsed = ParseChatRequest(body, limits, Card());
  if (!parsed.ok()) {
    CheckRefusal(parsed.status());
    return;
  }
  CheckAccepted(parsed->request, limits);
}

}  // namespace
}  // namespace conclave::frontend

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::frontend::Check({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
