// Goal: pre-tokens are those of the pattern of spec 6.1, with the Unicode 15 classes of the
// original. Method: hand-made texts for each alternative; every code point against utf8proc's
// categories.
#include "pre_tokenizer.h"

#include <gtest/gtest.h>
#include <utf8proc.h>

#include <random>
#include <string>
#include <vector>

#include "text_test_support.h"
#include "utf8.h"

namespace conclave::text {
namespace {

using Pieces = std::vector<std::string>;

Pieces Split(const PreTokenizer& pre_tokenizer, const std::string& text) {
  PreTokenizer::Cursor cursor(pre_tokenizer, text);
  Pieces pieces;
  for (std::string_view piece = cursor.Next(); !piece.empty(); piece = cursor.Next())
    pieces.emplace_back(piece);
  return pieces;
}

TEST(PreTokenizerTest, SplitsByThePattern) {
  const PreTokenizer pre_tokenizer(SplitPattern::kQwen);
  struct Case {
    std::string text;
    Pieces pieces;
  };
  const Case cases[] = {
      {"", {}},
      {"Hello world", {"Hello", " world"}},
      {"12345", {"1", "2", "3", "4", "5"}},
      {"I'm we'LL can't", {"I", "'m", " we", "'LL", " can", "'t"}},
      {"'\xC5\xBF", {"'\xC5\xBF"}},  // the long s folds to s
      {"a  b", {"a", " ", " b"}},
      {"a \n b", {"a", " \n", " b"}},
      {"a   ", {"a", "   "}},
      {"x==\n\n y", {"x", "==\n\n", " y"}},
      {"\xC2\xA0word", {"\xC2\xA0word"}},  // one non-letter before letters
      {"  \xE3\x80\x80"
       "a",
       {"  ",
        "\xE3\x80\x80"
        "a"}},
      {"\xE1\xA0\x8E"
       " ",
       {"\xE1\xA0\x8E", " "}},  // U+180E is no white space any more
      {std::string("a\0b", 3), {"a", std::string("\0b", 2)}},
  };
  for (const Case& c : cases)
    EXPECT_EQ(Split(pre_tokenizer, c.text), c.pieces) << testing::PrintToString(c.text);
}

TEST(PreTokenizerTest, SplitsByGpt2sPattern) {
  const PreTokenizer pre_tokenizer(SplitPattern::kGpt2);
  struct Case {
    std::string text;
    Pieces pieces;
  };
  const Case cases[] = {
      {"", {}},
      {"Hello world", {"Hello", " world"}},
      {"12345 678", {"12345", " 678"}},
      {"I'm we'LL can't", {"I", "'m", " we", "'", "LL", " can", "'t"}},
      {"a  b", {"a", " ", " b"}},
      {"a \n b", {"a", " \n", " b"}},
      {"a   ", {"a", "   "}},
      {"x==\n\n y", {"x", "==", "\n\n", " y"}},
      {"\xC2\xA0word", {"\xC2\xA0", "word"}},
  };
  for (const Case& c : cases)
    EXPECT_EQ(Split(pre_tokenizer, c.text), c.pieces) << testing::PrintToString(c.text);
}

bool IsWhiteSpace(int32_t code_point) {
  return (code_point >= 0x9 && code_point <= 0xD) || code_point == 0x20 || code_point == 0x85 ||
         code_point == 0xA0 || code_point == 0x1680 ||
         (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F ||
         code_point == 0x3000;
}

// The class shows in how "!", the code point and "x" fall into pieces.
TEST(PreTokenizerTest, EveryCodePointIsInItsUnicodeClass) {
  const PreTokenizer pre_tokenizer(SplitPattern::kQwen);
  for (int32_t code_point = 0; code_point < 0x110000; ++code_point) {
    if (code_point == 0xD800) code_point = 0xE000;
    std::string character;
    AppendUtf8(code_point, character);
    const utf8proc_category_t category = utf8proc_category(code_point);
    Pieces expected;
    if (category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO) {
      expected = {"!" + character + "x"};
    } else if (category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO) {
      expected = {"!", character, "x"};
    } else if (IsWhiteSpace(code_point) && code_point != '\r' && code_point != '\n') {
      expected = {"!", character + "x"};
    } else {
      expected = {"!" + character, "x"};
    }
    ASSERT_EQ(Split(pre_tokenizer, "!" + character + "x"), expected) << std::hex << code_point;
  }
}

TEST(PreTokenizerTest, PiecesAreTheWholeText) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const PreTokenizer pre_tokenizer(SplitPattern::kQwen);
    const std::string text = RandomText(random, 500);
    std::string joined;
    for (const std::string& piece : Split(pre_tokenizer, text)) joined += piece;
    EXPECT_EQ(joined, text);
  }
}

}  // namespace
}  // namespace conclave::text
