#include "conclave/observability/trace_context.h"

#include <algorithm>

namespace conclave::observability {
namespace {

// "00-" 32 digits "-" 16 digits "-" 2 digits
constexpr size_t kLength = 55;

// Lower case only: "A" to "F" are malformed by the specification.
std::optional<uint8_t> DigitOf(char c) {
  if (c >= '0' && c <= '9') {
    return static_cast<uint8_t>(c - '0');
  }
  if (c >= 'a' && c <= 'f') {
    return static_cast<uint8_t>(c - 'a' + 10);
  }
  return std::nullopt;
}

// `digits` has two for every byte of `out`.
bool ReadHex(std::string_view digits, std::span<uint8_t> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    const std::optional<uint8_t> high = DigitOf(digits[2 * i]);
    const std::optional<uint8_t> low = DigitOf(digits[2 * i + 1]);
    if (!high || !low) {
      return false;
    }
    out[i] = static_cast<uint8_t>(*high << 4 | *low);
  }
  return true;
}

bool IsZero(std::span<const uint8_t> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](uint8_t byte) { return byte == 0; });
}

}  // namespace

std::optional<TraceContext> ParseTraceparent(std::string_view text) {
  if (text.size() < kLength || text[2] != '-' || text[35] != '-' || text[52] != '-') {
    return std::nullopt;
  }
  std::array<uint8_t, 1> version{};
  std::array<uint8_t, 1> flags{};
  TraceContext context;
  if (!ReadHex(text.substr(0, 2), version) || !ReadHex(text.substr(3, 32), context.trace_id) ||
      !ReadHex(text.substr(36, 16), context.span_id) || !ReadHex(text.substr(53, 2), flags)) {
    return std::nullopt;
  }
  const bool is_known = version[0] == 0;
  const bool has_more = text.size() > kLength;
  if (version[0] == 0xff || (is_known && has_more) || (has_more && text[kLength] != '-') ||
      IsZero(context.trace_id) || IsZero(context.span_id)) {
    return std::nullopt;
  }
  context.is_sampled = (flags[0] & 1) != 0;
  return context;
}

std::string CheckedTracestate(std::string_view text) {
  const bool is_fine = text.size() <= kTracestateBytesMax &&
                       std::all_of(text.begin(), text.end(),
                                   [](char c) { return c == '\t' || (c >= ' ' && c <= '~'); });
  return is_fine ? std::string(text) : std::string();
}

std::string Hex(std::span<const uint8_t> bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  text.reserve(2 * bytes.size());
  for (const uint8_t byte : bytes) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

}  // namespace conclave::observability
