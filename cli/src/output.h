// Results on stdout. Everything else that a command says goes to stderr.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"

namespace conclave::cli {

// Writes all of `text` at once, unbuffered. kCancelled when the reader has gone (a closed pipe),
// which is no mistake of anybody; kUnavailable ("stdout") for a full disk and the like.
absl::Status WriteStdout(std::string_view text);

// Writes `text` and gives the command's exit code: 0, also when the reader has gone, 70 with an
// error line otherwise.
int PrintResult(std::string_view text);

// `text` without what could steer a terminal: control characters except newline and tab. Cheap and
// per piece: a sequence that is split over pieces loses its escape character and with it its power.
std::string TerminalSafe(std::string_view text);

}  // namespace conclave::cli
