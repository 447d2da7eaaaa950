// GPT-2's printable spelling of bytes, in which byte-level vocabularies are stored: every byte is
// one character.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace conclave::text {

// The character that stands for `byte`: itself where it is printable Latin-1, else one from U+0100
// on, in order.
int32_t CharacterOfByte(uint8_t byte);

// The bytes that `spelled` stands for; nullopt when a character stands for none.
std::optional<std::string> BytesOfSpelling(std::string_view spelled);

}  // namespace conclave::text
