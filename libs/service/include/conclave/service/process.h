// What every process does to itself before it works.
#pragma once

#include <cstdint>

#include "absl/status/status.h"

namespace conclave::service {

// Opens /dev/null on closed standard descriptors, so that no socket or file becomes stdin, stdout
// or stderr by accident; ignores SIGPIPE; lets nobody but the owner write what is created, whatever
// the umask was. First in main.
absl::Status PrepareProcess();

// Forbids core dumps and attaching debuggers: memory holds prompts, images and activations of
// users.
void ForbidDumps();

// Raises the soft limit of open files towards `wanted`, as far as the hard limit goes. Returns what
// it is now.
int64_t RaiseOpenFilesLimit(int64_t wanted);

}  // namespace conclave::service
