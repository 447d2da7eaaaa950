// UTF-8 as the HTTP layer needs it: is it well formed, and how a client's own words are quoted in
// messages.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace conclave::frontend {

// Offset of the first byte that is not part of well-formed UTF-8, or npos.
size_t FindInvalidUtf8(std::string_view bytes);

// `value` as it may appear in a message or a log line: at most 64 bytes and "..." if cut, valid
// UTF-8, control characters, quotes and backslashes escaped.
std::string Excerpt(std::string_view value);

}  // namespace conclave::frontend
