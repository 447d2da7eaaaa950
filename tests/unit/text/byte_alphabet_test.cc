// Goal: GPT-2's spelling of bytes. Method: its definition, byte by byte; characters that stand for
// no byte.
#include "byte_alphabet.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "utf8.h"

namespace conclave::text {
namespace {

TEST(ByteAlphabetTest, PrintableLatin1StandsForItselfAndTheRestFollowsInOrder) {
  int32_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_own = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                        (byte >= 0xAE && byte <= 0xFF);
    EXPECT_EQ(CharacterOfByte(static_cast<uint8_t>(byte)), is_own ? byte : next++) << byte;
  }
  EXPECT_EQ(next, 0x100 + 68);
}

TEST(ByteAlphabetTest, KnownCharacters) {
  EXPECT_EQ(CharacterOfByte(' '), 0x120);
  EXPECT_EQ(CharacterOfByte('\n'), 0x10A);
  EXPECT_EQ(CharacterOfByte('!'), '!');
  EXPECT_EQ(CharacterOfByte(0xAD), 0x143);  // the last one
}

TEST(ByteAlphabetTest, EveryByteComesBackFromItsSpelling) {
  std::string spelled;
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) {
    AppendUtf8(CharacterOfByte(static_cast<uint8_t>(byte)), spelled);
    bytes.push_back(static_cast<char>(byte));
  }
  EXPECT_EQ(BytesOfSpelling(spelled), bytes);
  EXPECT_EQ(BytesOfSpelling(""), "");
}

TEST(ByteAlphabetTest, OtherCharactersStandForNone) {
  std::set<int32_t> known;
  for (int byte = 0; byte < 256; ++byte) known.insert(CharacterOfByte(static_cast<uint8_t>(byte)));
  ASSERT_EQ(known.size(), 256u);
  for (int32_t character = 0; character < 0x300; ++character) {
    std::string text = "a";
    AppendUtf8(character, text);
    EXPECT_EQ(BytesOfSpelling(text).has_value(), known.contains(character)) << character;
  }
  for (const int32_t character : {0x4E2D, 0xFFFD, 0x1F600, 0x10FFFF}) {
    std::string text;
    AppendUtf8(character, text);
    EXPECT_EQ(BytesOfSpelling(text), std::nullopt);
  }
}

TEST(ByteAlphabetTest, InvalidUtf8IsNoSpelling) {
  for (const std::string text : {"\xFF", "a\x80", "\xC4", "\xC0\xA0", "\xED\xA0\x80"})
    EXPECT_EQ(BytesOfSpelling(text), std::nullopt) << testing::PrintToString(text);
}

}  // namespace
}  // namespace conclave::text
