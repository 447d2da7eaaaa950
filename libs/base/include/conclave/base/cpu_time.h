// The processor time of the calling thread: what a piece of work costs, however busy the machine.
#pragma once

#include <chrono>

namespace conclave {

// Since the thread began, user and system. A system call; any thread, no error.
std::chrono::nanoseconds ThreadCpuTime();

}  // namespace conclave
