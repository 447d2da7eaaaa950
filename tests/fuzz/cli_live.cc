// The live picture of `conclave top`: a line with a snapshot, then lines with deltas.
//
// Promises: an update is taken, or refused as "live_update" or "live_gap" in one line; what was
// taken is shown in exactly the lines of the window, none wider, without control characters.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "live_state.h"
#include "top_frame.h"

namespace conclave::cli {
namespace {

void CheckFrame(const LiveState& state) {
  constexpr int32_t kWidth = 70;
  constexpr int32_t kHeight = 20;
  const std::string frame = Frame(state, kWidth, kHeight, {});
  CONCLAVE_CHECK(std::count(frame.begin(), frame.end(), '\n') == kHeight - 1);
  size_t column = 0;
  for (const char c : frame) {
    column = c == '\n' ? 0 : column + 1;
    CONCLAVE_CHECK(column <= kWidth);
    CONCLAVE_CHECK(c == '\n' || (c >= ' ' && c < 0x7f));
  }
}

void Check(std::string_view updates) {
  LiveState state;
  bool is_first = true;
  while (!updates.empty()) {
    const size_t end = std::min(updates.find('\n'), updates.size());
    const absl::Status status =
        state.Apply(is_first ? "snapshot" : "delta", std::string(updates.substr(0, end)));
    updates.remove_prefix(std::min(updates.size(), end + 1));
    if (!status.ok()) {
      const std::string reason = ReasonOf(status);
      CONCLAVE_CHECK(reason == "live_update" || reason == "live_gap");
      CONCLAVE_CHECK(MessageOf(status).find('\n') == std::string::npos);
      return;
    }
    is_first = false;
    CheckFrame(state);
  }
}

}  // namespace
}  // namespace conclave::cli

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  conclave::cli::Check({reinterpret_cast<const char*>(bytes), size});
  return 0;
}
