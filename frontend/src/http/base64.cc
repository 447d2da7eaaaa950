#include "http/base64.h"

#include <array>
#include <cstddef>
#include <cstdint>

namespace conclave::frontend {
namespace {

constexpr char kAlphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
constexpr uint32_t kBad = 1u << 31;

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t& entry : table) {
    entry = kBad;
  }
  for (uint32_t i = 0; i < 64; ++i) {
    table[static_cast<uint8_t>(kAlphabet[i])] = i;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kTable = MakeTable();

uint32_t Value(char c) { return kTable[static_cast<uint8_t>(c)]; }

// The last quadruple, which may be padded. False if it is not canonical.
bool DecodeLast(std::string_view last, std::string& out) {
  const int num_pads = last[3] != '=' ? 0 : last[2] != '=' ? 1 : 2;
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t value = i < 4 - num_pads ? Value(last[static_cast<size_t>(i)]) : 0;
    if (value == kBad) {
      return false;
    }
    bits = bits << 6 | value;
  }
  for (int i = 0; i < 3; ++i) {
    const auto byte = static_cast<char>(bits >> (16 - 8 * i) & 0xFF);
    if (i < 3 - num_pads) {
      out.push_back(byte);
    } else if (byte != 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::optional<std::string> DecodeBase64(std::string_view text) {
  if (text.size() % 4 != 0) {
    return std::nullopt;
  }
  std::string out;
  if (text.empty()) {
    return out;
  }
  const size_t num_whole = text.size() / 4 - 1;
  out.reserve(num_whole * 3 + 3);
  out.resize(num_whole * 3);
  uint32_t bad = 0;
  for (size_t i = 0; i < num_whole; ++i) {
    const char* in = text.data() + 4 * i;
    const uint32_t a = Value(in[0]);
    const uint32_t b = Value(in[1]);
    const uint32_t c = Value(in[2]);
    const uint32_t d = Value(in[3]);
    bad |= a | b | c | d;
    const uint32_t bits = a << 18 | b << 12 | c << 6 | d;
    out[3 * i] = static_cast<char>(bits >> 16);
    out[3 * i + 1] = static_cast<char>(bits >> 8);
    out[3 * i + 2] = static_cast<char>(bits);
  }
  // Checked once at the end: a branch per quadruple would halve the speed.
  if ((bad & kBad) != 0 || !DecodeLast(text.substr(4 * num_whole), out)) {
    return std::nullopt;
  }
  return out;
}

std::string EncodeBase64(std::string_view bytes) {
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t n = bytes.size() - i < 3 ? bytes.size() - i : 3;
    uint32_t bits = 0;
    for (size_t j = 0; j < 3; ++j) {
      bits = bits << 8 | (j < n ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    }
    for (size_t j = 0; j < 4; ++j) {
      out.push_back(j <= n ? kAlphabet[bits >> (18 - 6 * j) & 63] : '=');
    }
  }
  return out;
}

}  // namespace conclave::frontend
