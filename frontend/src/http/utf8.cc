#include "http/utf8.h"

#include <cstdint>
#include <cstring>

#include "conclave/base/utf8.h"

namespace conclave::frontend {
namespace {

constexpr size_t kExcerptBytes = 64;

}  // namespace

size_t FindInvalidUtf8(std::string_view bytes) {
  constexpr uint64_t kHighBits = 0x8080808080808080u;
  size_t at = 0;
  while (at < bytes.size()) {
    // Bodies are mostly base64 and English: eight ASCII bytes at a time.
    uint64_t word = 0;
    while (at + sizeof(word) <= bytes.size()) {
      std::memcpy(&word, bytes.data() + at, sizeof(word));
      if ((word & kHighBits) != 0) {
        break;
      }
      at += sizeof(word);
    }
    if (at == bytes.size()) {
      break;
    }
    const size_t length = Utf8SequenceBytes(bytes.substr(at));
    if (length == 0) {
      return at;
    }
    at += length;
  }
  return std::string_view::npos;
}

std::string Excerpt(std::string_view value) {
  constexpr char kHex[] = "0123456789abcdef";
  std::string out;
  for (size_t at = 0; at < value.size();) {
    const size_t length = Utf8SequenceBytes(value.substr(at));
    const auto byte = static_cast<uint8_t>(value[at]);
    std::string piece;
    if (length == 0 || byte < 0x20 || byte == 0x7F) {
      piece = {'\\', 'x', kHex[byte >> 4], kHex[byte & 15]};
    } else if (byte == '"' || byte == '\\') {
      piece = {'\\', value[at]};
    } else {
      piece = std::string(value.substr(at, length));
    }
    if (out.size() + piece.size() > kExcerptBytes) {
      return out + "...";
    }
    out += piece;
    at += length == 0 ? 1 : length;
  }
  return out;
}

}  // namespace conclave::frontend
