// Included before anything of Asio.
#pragma once

// clang 14 has the coroutines of C++20 but not the macro by which Asio and libstdc++ recognise
// them.
#if defined(__clang__) && !defined(__cpp_impl_coroutine)
#define __cpp_impl_coroutine 201902L  // NOLINT(bugprone-reserved-identifier)
#endif
