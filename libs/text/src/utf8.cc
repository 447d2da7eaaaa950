#include "utf8.h"

#include <cstring>

namespace conclave::text {
namespace {

struct LeadByte {
  size_t num_trailing;
  // Bounds of the second byte: they exclude overlong forms, surrogates and values above U+10FFFF.
  uint8_t second_min;
  uint8_t second_max;
};

// num_trailing 0 for a byte that begins no multi-byte sequence.
LeadByte ClassifyLead(uint8_t lead) {
  if (lead < 0xC2 || lead > 0xF4) return {0, 0, 0};
  if (lead < 0xE0) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead < 0xF0) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {3, 0x80, 0xBF};
}

}  // namespace

Utf8Unit DecodeUtf8(std::string_view bytes, size_t pos) {
  const auto lead = static_cast<uint8_t>(bytes[pos]);
  if (lead < 0x80) return {Utf8Kind::kValid, 1, lead};
  const LeadByte form = ClassifyLead(lead);
  if (form.num_trailing == 0) return {Utf8Kind::kInvalid, 1, 0};
  int32_t code_point = lead & (0x3F >> form.num_trailing);
  for (size_t i = 1; i <= form.num_trailing; ++i) {
    if (pos + i == bytes.size()) return {Utf8Kind::kIncomplete, i, 0};
    const auto byte = static_cast<uint8_t>(bytes[pos + i]);
    const uint8_t low = i == 1 ? form.second_min : 0x80;
    const uint8_t high = i == 1 ? form.second_max : 0xBF;
    if (byte < low || byte > high) return {Utf8Kind::kInvalid, i, 0};
    code_point = code_point << 6 | (byte & 0x3F);
  }
  return {Utf8Kind::kValid, form.num_trailing + 1, code_point};
}

size_t ValidUtf8Prefix(std::string_view bytes) {
  size_t pos = 0;
  while (pos < bytes.size()) {
    uint64_t word = 0;
    if (pos + sizeof(word) <= bytes.size()) {
      std::memcpy(&word, bytes.data() + pos, sizeof(word));
      if ((word & 0x8080808080808080u) == 0) {
        pos += sizeof(word);
        continue;
      }
    }
    const Utf8Unit unit = DecodeUtf8(bytes, pos);
    if (unit.kind != Utf8Kind::kValid) break;
    pos += unit.num_bytes;
  }
  return pos;
}

void AppendUtf8(int32_t code_point, std::string& out) {
  const auto trailing = [&](int shift) {
    out.push_back(static_cast<char>(0x80 | (code_point >> shift & 0x3F)));
  };
  if (code_point < 0x80) {
    out.push_back(static_cast<char>(code_point));
  } else if (code_point < 0x800) {
    out.push_back(static_cast<char>(0xC0 | code_point >> 6));
    trailing(0);
  } else if (code_point < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | code_point >> 12));
    trailing(6);
    trailing(0);
  } else {
    out.push_back(static_cast<char>(0xF0 | code_point >> 18));
    trailing(12);
    trailing(6);
    trailing(0);
  }
}

}  // namespace conclave::text
