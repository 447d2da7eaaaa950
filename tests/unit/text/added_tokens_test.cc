// Goal: added tokens are found at their first place, the longest first, control strings only where
// the text may hold them. Method: small sets; random text against a search that tries every token
// everywhere.
#include "added_tokens.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace conclave::text {
namespace {

std::vector<AddedToken> Some() {
  return {{.id = 7, .content = "<s>", .is_special = true},
          {.id = 3, .content = "  "},
          {.id = 4, .content = "    "},
          {.id = 9, .content = "<s>x"},
          {.id = 5, .content = "\xE4\xB8\xAD", .strips_left = true}};
}

TEST(AddedTokensTest, FindsTheFirstFromAPlaceOn) {
  const AddedTokens tokens(Some());
  const std::string text = "ab<s>c<s>";
  const auto first = tokens.Next(text, 0, true);
  EXPECT_EQ(first.begin, 2u);
  ASSERT_NE(first.token, nullptr);
  EXPECT_EQ(first.token->id, 7);
  EXPECT_EQ(tokens.Next(text, 3, true).begin, 6u);
  const auto none = tokens.Next(text, 7, true);
  EXPECT_EQ(none.begin, text.size());
  EXPECT_EQ(none.token, nullptr);
}

TEST(AddedTokensTest, TheLongestThatBeginsAtAPlaceIsTaken) {
  const AddedTokens tokens(Some());
  EXPECT_EQ(tokens.Next("a    b", 0, false).token->id, 4);
  EXPECT_EQ(tokens.Next("a   b", 0, false).token->id, 3) << "three spaces hold only the shorter";
  EXPECT_EQ(tokens.Next("<s>x", 0, true).token->id, 9);
  EXPECT_EQ(tokens.Next("<s>y", 0, true).token->id, 7);
}

TEST(AddedTokensTest, ControlStringsAreTextWhereTheyMayNotStand) {
  const AddedTokens tokens(Some());
  EXPECT_EQ(tokens.Next("<s>", 0, false).token, nullptr);
  // The ordinary token that begins alike is still one.
  EXPECT_EQ(tokens.Next("<s><s>x", 0, false).begin, 3u);
}

TEST(AddedTokensTest, ATokenThatTheTextCutsOffIsNotThere) {
  const AddedTokens tokens(Some());
  for (const std::string text : {"", "<", "<s", " ", "\xE4\xB8"})
    EXPECT_EQ(tokens.Next(text, 0, true).token, nullptr) << text;
}

TEST(AddedTokensTest, AreFoundByIdAndContent) {
  const AddedTokens tokens(Some());
  EXPECT_EQ(tokens.all().size(), 5u);
  EXPECT_EQ(tokens.Find(5)->content, "\xE4\xB8\xAD");
  EXPECT_TRUE(tokens.Find(5)->strips_left);
  EXPECT_EQ(tokens.Find("    ")->id, 4);
  EXPECT_EQ(tokens.Find(6), nullptr);
  EXPECT_EQ(tokens.Find("<s"), nullptr);
  const AddedTokens none({});
  EXPECT_EQ(none.Next("text", 0, true).begin, 4u);
  EXPECT_EQ(none.Find(0), nullptr);
}

class AddedTokensSeedTest : public testing::TestWithParam<uint64_t> {};

TEST_P(AddedTokensSeedTest, AgreesWithTryingEveryTokenEverywhere) {
  std::mt19937_64 random(GetParam());
  const auto word = [&](size_t length_max) {
    std::string text(1 + random() % length_max, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    return text;
  };
  std::vector<AddedToken> list;
  for (int32_t id = 0; id < 12; ++id) {
    const std::string content = word(5);
    bool is_new = true;
    for (const AddedToken& token : list) is_new = is_new && token.content != content;
    if (is_new) list.push_back({.id = id, .content = content, .is_special = random() % 2 == 0});
  }
  const AddedTokens tokens(list);
  for (int i = 0; i < 200; ++i) {
    const std::string text = word(30);
    const bool with_specials = random() % 2 == 0;
    const size_t from = random() % text.size();
    size_t begin = text.size();
    const AddedToken* expected = nullptr;
    for (size_t at = from; at < text.size() && expected == nullptr; ++at) {
      for (const AddedToken& token : list) {
        if ((with_specials || !token.is_special) &&
            text.compare(at, token.content.size(), token.content) == 0 &&
            (expected == nullptr || token.content.size() > expected->content.size())) {
          expected = &token;
          begin = at;
        }
      }
    }
    const auto found = tokens.Next(text, from, with_specials);
    ASSERT_EQ(found.begin, begin) << text << " from " << from;
    ASSERT_EQ(found.token == nullptr ? -1 : found.token->id,
              expected == nullptr ? -1 : expected->id)
        << text;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, AddedTokensSeedTest, testing::Range<uint64_t>(1, 21));

}  // namespace
}  // namespace conclave::text
