// Counts every operator new of a program. Include it in one source file of a test program: it
// replaces the operators.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace conclave::testing {

inline std::atomic<int64_t> num_allocations{0};

}  // namespace conclave::testing

// Not inlined: g++ would see malloc and free without their operators and call them mismatched.
[[gnu::noinline]] void* operator new(size_t size) {
  conclave::testing::num_allocations.fetch_add(1);
  void* memory = std::malloc(size);
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
