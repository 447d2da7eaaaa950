#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "conclave/base/status.h"
#include "conclave/service/exit_codes.h"

namespace conclave::cli {

absl::Status WriteStdout(std::string_view text) {
  while (!text.empty()) {
    const ssize_t written = ::write(STDOUT_FILENO, text.data(), text.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written < 0 && errno == EPIPE) {
      return absl::CancelledError("stdout: the reader has gone");
    }
    if (written < 0) {
      return Error(
          absl::StatusCode::kUnavailable, "stdout",
          "cannot be written: " + std::error_code(errno, std::generic_category()).message());
    }
    text.remove_prefix(static_cast<size_t>(written));
  }
  return absl::OkStatus();
}

int PrintResult(std::string_view text) {
  const absl::Status status = WriteStdout(text);
  return status.ok() || absl::IsCancelled(status)
             ? static_cast<int>(service::ExitCode::kDone)
             : service::Fail(status, service::ExitCode::kInternal);
}

std::string TerminalSafe(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(text[i]);
    // U+0080..U+009F are control characters too.
    const bool is_c1 =
        c == 0xc2 && i + 1 < text.size() && static_cast<unsigned char>(text[i + 1]) < 0xa0;
    if (is_c1) {
      ++i;
      continue;
    }
    if ((c < 0x20 && c != '\n' && c != '\t') || c == 0x7f) {
      continue;
    }
    out += text[i];
  }
  return out;
}

}  // namespace conclave::cli
