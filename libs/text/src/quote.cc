#include "quote.h"

#include <cstddef>
#include <cstdint>

namespace conclave::text {
namespace {

constexpr size_t kQuotedBytesMax = 32;
constexpr std::string_view kHexDigits = "0123456789ABCDEF";

}  // namespace

std::string Quote(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text.substr(0, kQuotedBytesMax)) {
    if (c >= 0x20 && c < 0x7F && c != '"' && c != '\\') {
      quoted.push_back(c);
    } else {
      const auto byte = static_cast<uint8_t>(c);
      quoted.append("\\x");
      quoted.push_back(kHexDigits[byte >> 4]);
      quoted.push_back(kHexDigits[byte & 15]);
    }
  }
  quoted.append(text.size() > kQuotedBytesMax ? "...\"" : "\"");
  return quoted;
}

}  // namespace conclave::text
