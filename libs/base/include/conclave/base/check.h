// A broken invariant aborts in every build: going on would corrupt a token, which is worse than a
// restart.
#pragma once

namespace conclave {

// Prints where and what, then aborts. Never returns.
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition);

}  // namespace conclave

#define CONCLAVE_CHECK(condition)                              \
  do {                                                         \
    if (!(condition)) [[unlikely]] {                           \
      ::conclave::CheckFailed(__FILE__, __LINE__, #condition); \
    }                                                          \
  } while (false)
