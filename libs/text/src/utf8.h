// Decoding of UTF-8 that may be broken, one code point or one maximal invalid subpart at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace conclave::text {

enum class Utf8Kind {
  kValid,
  kInvalid,     // a maximal subpart of an ill-formed sequence (Unicode 15, section 3.9)
  kIncomplete,  // the bytes end inside a sequence that is well-formed so far
};

struct Utf8Unit {
  Utf8Kind kind;
  size_t num_bytes;    // at least 1
  int32_t code_point;  // of a valid unit
};

// The unit at `pos`, which is inside `bytes`.
Utf8Unit DecodeUtf8(std::string_view bytes, size_t pos);

// Bytes at the front of `bytes` that are valid UTF-8.
size_t ValidUtf8Prefix(std::string_view bytes);

// Appends `code_point`, which is no surrogate and at most U+10FFFF.
void AppendUtf8(int32_t code_point, std::string& out);

// UTF-8 of U+FFFD.
inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace conclave::text
