#include "byte_alphabet.h"

#include <array>

#include "utf8.h"

namespace conclave::text {
namespace {

constexpr int32_t kFirstStandIn = 0x100;

constexpr bool IsPrintable(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr std::array<int32_t, 256> MakeCharacters() {
  std::array<int32_t, 256> characters{};
  int32_t next = kFirstStandIn;
  for (int byte = 0; byte < 256; ++byte)
    characters[static_cast<size_t>(byte)] = IsPrintable(byte) ? byte : next++;
  return characters;
}

constexpr std::array<int32_t, 256> kCharacters = MakeCharacters();

// By character: its byte, or -1.
constexpr std::array<int16_t, 512> MakeBytes() {
  std::array<int16_t, 512> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (int byte = 0; byte < 256; ++byte)
    bytes[static_cast<size_t>(kCharacters[static_cast<size_t>(byte)])] = static_cast<int16_t>(byte);
  return bytes;
}

constexpr std::array<int16_t, 512> kBytes = MakeBytes();

}  // namespace

int32_t CharacterOfByte(uint8_t byte) { return kCharacters[byte]; }

std::optional<std::string> BytesOfSpelling(std::string_view spelled) {
  std::string bytes;
  for (size_t pos = 0; pos < spelled.size();) {
    const Utf8Unit unit = DecodeUtf8(spelled, pos);
    if (unit.kind != Utf8Kind::kValid || unit.code_point >= static_cast<int32_t>(kBytes.size()) ||
        kBytes[static_cast<size_t>(unit.code_point)] < 0) {
      return std::nullopt;
    }
    bytes.push_back(static_cast<char>(kBytes[static_cast<size_t>(unit.code_point)]));
    pos += unit.num_bytes;
  }
  return bytes;
}

}  // namespace conclave::text
