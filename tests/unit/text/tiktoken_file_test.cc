// Goal: a broken tokenizer file is refused with its place, and nothing is built from it.
// Method: files written for each row of the catalogue of bad inputs (T13, T14), next to good ones
// that look odd.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ostream>
#include <set>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "text_test_support.h"

namespace conclave::text {
namespace {

using testing::HasSubstr;

std::string Line(std::string_view token, std::string_view rank) {
  return EncodeBase64(token) + " " + std::string(rank) + "\n";
}

struct BadFile {
  const char* name;  // begins with the row of the catalogue
  std::string content;
  std::string place;  // ":<line>: " and the beginning of the reason
};

void PrintTo(const BadFile& param, std::ostream* out) { *out << param.name; }

class BadTiktokenFileTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadTiktokenFileTest, IsRefusedWithItsLine) {
  const TempFolder folder;
  const std::string file = folder.Write("arcade100k.tiktoken", GetParam().content);
  for (const TiktokenFlavor flavor : {TiktokenFlavor::kArcade100k, TiktokenFlavor::kQwen}) {
    const auto tokenizer = LoadTiktoken(file, flavor);
    ASSERT_FALSE(tokenizer.ok());
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(ReasonOf(tokenizer.status()), "tokenizer_invalid");
    const std::string message = MessageOf(tokenizer.status());
    EXPECT_THAT(message, HasSubstr(file + GetParam().place));
    EXPECT_LT(message.size(), file.size() + 200);
    for (const char c : message) EXPECT_TRUE(c >= 0x20 && c < 0x7F) << message;
  }
}

std::vector<BadFile> BadFiles() {
  const std::string good = RankFile({"ab", "abc"});
  std::string no_byte_65 = good;
  no_byte_65.replace(no_byte_65.find(Line("A", "65")), Line("A", "65").size(), Line("zz", "65"));
  std::string hole = good;
  hole.erase(hole.find(Line("A", "65")), Line("A", "65").size());
  return {
      {"T13_Empty", "", ":1: file has no token"},
      {"T13_OnlyBlankLines", "\n\r\n\n", ":1: file has no token"},
      {"T13_WrongMagicZip", std::string("PK\x03\x04\x14\x00\x00\x00\x08\x00", 10),
       ":1: no space in the line"},
      {"T13_WrongMagicJson", "{ \"version\": \"1.0\" }", ":1: token is no base64"},
      {"T13_TruncatedInToken", good + "YWJ", ":259: no space in the line"},
      {"T13_TruncatedBeforeRank", good + "YWJjZA== ", ":259: rank is no number"},
      {"T13_TruncatedInRank", good.substr(0, good.size() - 2), ":258: rank 25 is there twice"},
      {"T13_TruncatedAtLineEnd", good.substr(0, good.find(Line("\xFE", "254"))),
       ":254: no token of the single byte 254"},
      {"T13_RankMissing", hole, ":257: a rank is missing"},
      {"T13_RankTwice", good + Line("abcd", "7"), ":259: rank 7 is there twice"},
      {"T13_TokenTwice", good + Line("ab", "258"), ":259: token is there twice"},
      {"T13_NegativeRank", good + Line("abcd", "-258"), ":259: rank is no number"},
      {"T13_SignedRank", good + Line("abcd", "+258"), ":259: rank is no number"},
      {"T13_FractionalRank", good + Line("abcd", "258.0"), ":259: rank is no number"},
      {"T13_HexRank", good + Line("abcd", "0x102"), ":259: rank is no number"},
      {"T13_HugeRank", good + Line("abcd", "99999999"), ":259: a rank is missing"},
      {"T13_RankBeyond64Bits", good + Line("abcd", "18446744073709551874"),
       ":259: rank is no number"},
      {"T13_TwoSpaces", good + "YWJjZA==  258\n", ":259: rank is no number"},
      {"T13_Tab", good + "YWJjZA==\t258\n", ":259: no space in the line"},
      {"T13_TrailingSpace", good + "YWJjZA== 258 \n", ":259: rank is no number"},
      {"T13_EmptyToken", good + " 258\n", ":259: token is no base64"},
      {"T13_OnlyPadding", good + "==== 258\n", ":259: token is no base64"},
      {"T13_NoPadding", good + "YWJjZA 258\n", ":259: token is no base64"},
      {"T13_PaddingInside", good + "YW==YWJj 258\n", ":259: token is no base64"},
      {"T13_BitsAfterTheEnd", good + "YWJjZB== 258\n", ":259: token is no base64"},
      {"T13_UrlAlphabet", good + "_-8= 258\n", ":259: token is no base64"},
      {"T13_NotAscii", good + "\xC3\xA9\xC3\xA9 258\n", ":259: token is no base64"},
      {"T13_NulByte", good + std::string("YW\0j 258\n", 9), ":259: token is no base64"},
      {"T13_ControlCharactersInMessage", good + "\x1b[31mred\r 258\n", ":259: token is no base64"},
      {"T13_TokenOf1MiB", good + Line(std::string(1 << 20, 'x'), "258"), ":259: token is too long"},
      {"T13_LineOf1MiB", good + std::string(1 << 20, 'x') + "\n", ":259: no space in the line"},
      {"T13_SingleByteMissing", no_byte_65, ":258: no token of the single byte 65"},
  };
}

INSTANTIATE_TEST_SUITE_P(Catalogue, BadTiktokenFileTest, testing::ValuesIn(BadFiles()),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(BadTiktokenFileTest, T13_FileAboveTheLimitIsRefusedUnread) {
  const TempFolder folder;
  const std::string file = folder.Write("arcade100k.tiktoken", std::string((32 << 20) + 1, '\n'));
  const auto tokenizer = LoadTiktoken(file, TiktokenFlavor::kQwen);
  EXPECT_EQ(ReasonOf(tokenizer.status()), "tokenizer_invalid");
  EXPECT_THAT(MessageOf(tokenizer.status()),
              HasSubstr(":1: file is too large; expected at most 33554432 bytes"));
}

TEST(BadTiktokenFileTest, T13_MissingFileAndFolderAreNotFound) {
  const TempFolder folder;
  for (const std::string& file : {folder.path() + "/none.tiktoken", folder.path(), std::string()}) {
    const auto tokenizer = LoadTiktoken(file, TiktokenFlavor::kQwen);
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kNotFound) << file;
    EXPECT_EQ(ReasonOf(tokenizer.status()), "tokenizer_missing") << file;
  }
}

TEST(BadTiktokenFileTest, T13_VocabularyOfAnotherModelIsRefused) {
  const auto tokenizer = LoadArcade();
  EXPECT_TRUE(CheckTokenizer(*tokenizer, 3033, 3001).ok());
  EXPECT_TRUE(CheckTokenizer(*tokenizer, 4000, -1).ok());
  const absl::Status too_few_rows = CheckTokenizer(*tokenizer, 3032, 3001);
  EXPECT_EQ(ReasonOf(too_few_rows), "tokenizer_invalid");
  EXPECT_THAT(MessageOf(too_few_rows), HasSubstr("expected at most 3032, found 3033"));
}

TEST(BadTiktokenFileTest, T13_FileCutAtALineEndIsFoundByItsEndOfText) {
  const TempFolder folder;
  const std::string whole = RankFile({"ab", "abc", "abcd"});
  const std::string cut = whole.substr(0, whole.find(Line("abcd", "258")));
  const auto tokenizer =
      LoadTiktoken(folder.Write("arcade100k.tiktoken", cut), TiktokenFlavor::kArcade100k);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const absl::Status status = CheckTokenizer(**tokenizer, 1000, 260);
  EXPECT_EQ(ReasonOf(status), "tokenizer_invalid");
  EXPECT_THAT(MessageOf(status), HasSubstr("expected 260, found 259"));
}

// Special tokens do not come from a file that could lack them: they follow the ranks, each with an
// id of its own.
TEST(BadTiktokenFileTest, T14_SpecialTokensAreCompleteAndDistinct) {
  const TempFolder folder;
  const std::string file = folder.Write("any.tiktoken", RankFile({}));
  struct Expected {
    TiktokenFlavor flavor;
    int32_t first;
    int32_t size;
    std::string last;
  };
  for (const Expected& expected : {Expected{TiktokenFlavor::kArcade100k, 257, 289, "<|extra0|>"},
                                   Expected{TiktokenFlavor::kQwen, 256, 464, "<|extra_204|>"}}) {
    const auto tokenizer = LoadTiktoken(file, expected.flavor);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_EQ((*tokenizer)->eos(), expected.first);
    EXPECT_EQ((*tokenizer)->size(), expected.size);
    EXPECT_EQ((*tokenizer)->SpecialId(expected.last), expected.size - 1);
    EXPECT_FALSE((*tokenizer)->IsSpecial(expected.first - 1));
    EXPECT_FALSE((*tokenizer)->IsSpecial(expected.size));
    std::set<std::string_view> strings;
    for (int32_t id = expected.first; id < expected.size; ++id) {
      EXPECT_EQ((*tokenizer)->SpecialId((*tokenizer)->TokenBytes(id, /*keep_special=*/true)), id);
      EXPECT_TRUE(strings.insert((*tokenizer)->TokenBytes(id, /*keep_special=*/true)).second);
    }
  }
}

TEST(TiktokenFileTest, TakesLinesInAnyOrderCrlfAndBlankLines) {
  const TempFolder folder;
  std::string content = "\r\n" + Line("ab", "256");
  content += RankFile({}) + "\n\n";
  content.insert(content.find('\n', content.size() / 2), "\r");
  const auto tokenizer = LoadTiktoken(folder.Write("x.tiktoken", content), TiktokenFlavor::kQwen);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("ab"), std::vector<int32_t>{256});
}

TEST(LoadTokenizerFromFolderTest, ChoosesTheSpecialTokensByTheFileName) {
  const TempFolder folder;
  folder.Write("arcade100k.tiktoken", RankFile({}));
  folder.Write("qwen.tiktoken", RankFile({}));
  const auto arcade = LoadTokenizerFromFolder(folder.path(), "arcade100k.tiktoken");
  const auto qwen = LoadTokenizerFromFolder(folder.path(), "qwen.tiktoken");
  ASSERT_TRUE(arcade.ok() && qwen.ok());
  EXPECT_EQ((*arcade)->eos(), 257);
  EXPECT_EQ((*qwen)->eos(), 256);
}

TEST(LoadTokenizerFromFolderTest, RefusesOtherKindsAndNamesTheSupportedOnes) {
  const TempFolder folder;
  folder.Write("cl100k_base.tiktoken", RankFile({}));
  for (const std::string_view file :
       {"spiece.model", "merges.txt", "cl100k_base.tiktoken", "Qwen.tiktoken",
        "../arcade100k.tiktoken", "../vocab.json", "", "x\n\x1b[31m"}) {
    const auto tokenizer = LoadTokenizerFromFolder(folder.path(), file);
    EXPECT_EQ(ReasonOf(tokenizer.status()), "tokenizer_unsupported") << file;
    EXPECT_THAT(MessageOf(tokenizer.status()),
                HasSubstr("expected arcade100k.tiktoken, qwen.tiktoken, vocab.json"))
        << file;
    EXPECT_THAT(MessageOf(tokenizer.status()), testing::Not(HasSubstr("\n"))) << file;
  }
}

TEST(LoadTokenizerFromFolderTest, NamesTheFileThatIsMissing) {
  const TempFolder folder;
  for (const std::string_view file : {"arcade100k.tiktoken", "qwen.tiktoken", "vocab.json",
                                      "tokenizer.model", "tokenizer.json"}) {
    const auto tokenizer = LoadTokenizerFromFolder(folder.path(), file);
    EXPECT_EQ(ReasonOf(tokenizer.status()), "tokenizer_missing") << file;
    EXPECT_THAT(MessageOf(tokenizer.status()), HasSubstr(std::string(file))) << file;
  }
}

}  // namespace
}  // namespace conclave::text
