// Exit codes of every command, and the line on stderr that goes with them (docs/errors.md).
#pragma once

#include <string>

#include "absl/status/status.h"

namespace conclave::service {

enum class ExitCode : int {
  kDone = 0,
  kUsage = 2,     // flags and variables
  kConfig = 3,    // a config file
  kModel = 4,     // a checkpoint
  kNetwork = 5,   // bind, connect, an answer that is no answer
  kState = 6,     // a state folder
  kInternal = 70  // a bug of ours, the device, the system
};

// The code of an error by its reason where the reason alone decides ("usage", "config_syntax",
// "bind", ...), otherwise `otherwise`: what the phase in which it happened says.
ExitCode ExitCodeOf(const absl::Status& status, ExitCode otherwise);

// "error: <reason>: <message>" in one line, without the newline; the reason is "internal" when the
// status has none.
std::string ErrorLine(const absl::Status& status);

// Prints ErrorLine to stderr and returns the exit code as main's int.
int Fail(const absl::Status& status, ExitCode otherwise);

}  // namespace conclave::service
