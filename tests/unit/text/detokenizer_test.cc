// Goal: streamed text is final, valid, never shows a part of a stop string, and equals the whole
// text decoded at once. Method: tokens of chosen bytes; rows T10 and T12; seeded random bytes and
// stops against a search in the whole text.
#include "conclave/text/detokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "text_test_support.h"

namespace conclave::text {
namespace {

constexpr char kReplacement[] = "\xEF\xBF\xBD";

// Its tokens are the given strings; the last id is special.
class ListTokenizer final : public Tokenizer {
 public:
  explicit ListTokenizer(std::vector<std::string> tokens) : tokens_(std::move(tokens)) {}
  std::vector<int32_t> Encode(std::string_view) const override { return {}; }
  std::vector<int32_t> EncodeWithSpecials(std::string_view) const override { return {}; }
  std::string_view TokenBytes(int32_t id, bool keep_special) const override {
    if (id < 0 || id > eos()) return {};
    if (id == eos()) return keep_special ? "<end>" : "";
    return tokens_[id];
  }
  int32_t size() const override { return eos() + 1; }
  bool IsSpecial(int32_t id) const override { return id == eos(); }
  int32_t SpecialId(std::string_view) const override { return -1; }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return static_cast<int32_t>(tokens_.size()); }

 private:
  const std::vector<std::string> tokens_;
};

struct Streamed {
  std::vector<std::string> deltas;  // one per token pushed, then what Finish gave
  bool hit_stop = false;
  std::string Joined() const {
    std::string text;
    for (const std::string& delta : deltas) text += delta;
    return text;
  }
};

// Pushes the tokens one by one, as long as no stop string is complete.
Streamed Stream(const std::vector<std::string>& tokens, const std::vector<std::string>& stops) {
  const ListTokenizer tokenizer(tokens);
  IncrementalDetokenizer detokenizer(tokenizer, stops);
  Streamed streamed;
  for (int32_t id = 0; id < tokenizer.eos() && !streamed.hit_stop; ++id) {
    IncrementalDetokenizer::Delta delta = detokenizer.Push(id);
    streamed.deltas.push_back(std::move(delta.text));
    streamed.hit_stop = delta.hit_stop;
  }
  streamed.deltas.push_back(detokenizer.Finish());
  return streamed;
}

using Texts = std::vector<std::string>;

TEST(DetokenizerTest, T10_CodePointSplitOverTokensIsHeldBack) {
  EXPECT_EQ(Stream({"a\xF0", "\x9F", "\x98", "\x80z"}, {}).deltas,
            (Texts{"a", "", "", "\xF0\x9F\x98\x80z", ""}));
}

TEST(DetokenizerTest, T10_InvalidBytesBecomeReplacementsOnceTheyAreCertain) {
  const std::string fffd = kReplacement;
  EXPECT_EQ(Stream({"\xE4\xB8", "a"}, {}).deltas, (Texts{"", fffd + "a", ""}));
  EXPECT_EQ(Stream({"\xFF", "\x80"}, {}).deltas, (Texts{fffd, fffd, ""}));
  EXPECT_EQ(Stream({"\xED", "\xA0", "\x80"}, {}).deltas, (Texts{"", fffd + fffd, fffd, ""}));
}

TEST(DetokenizerTest, T10_IncompleteCodePointAtTheEndBecomesOneReplacement) {
  EXPECT_EQ(Stream({"a", "\xF0\x9F\x98"}, {}).deltas, (Texts{"a", "", kReplacement}));
}

TEST(DetokenizerTest, T12_StopOverTokenBordersLeaksNothing) {
  const Streamed streamed = Stream({"Hello ", "#", "#", "# more"}, {"###"});
  EXPECT_EQ(streamed.deltas, (Texts{"Hello ", "", "", "", ""}));
  EXPECT_TRUE(streamed.hit_stop);
}

TEST(DetokenizerTest, T12_TextThatOnlyLookedLikeAStopComesOut) {
  EXPECT_EQ(Stream({"a##", "b", "#", "#"}, {"###"}).deltas, (Texts{"a", "##b", "", "", "##"}));
  // A shorter beginning of the stop remains held.
  EXPECT_EQ(Stream({"aab", "aa", "c"}, {"aabaad"}).deltas, (Texts{"", "", "aabaac", ""}));
  EXPECT_EQ(Stream({"ab", "ab", "c"}, {"abc"}).deltas, (Texts{"", "ab", "", ""}));
}

TEST(DetokenizerTest, T12_StopEqualToTheFirstTokenGivesNoText) {
  const Streamed streamed = Stream({"END", "x"}, {"END"});
  EXPECT_EQ(streamed.Joined(), "");
  EXPECT_TRUE(streamed.hit_stop);
  EXPECT_EQ(streamed.deltas.size(), 2u);
}

TEST(DetokenizerTest, T12_StopInsideATokenCutsIt) {
  const Streamed streamed = Stream({"one STOP two"}, {"STOP"});
  EXPECT_EQ(streamed.Joined(), "one ");
  EXPECT_TRUE(streamed.hit_stop);
}

TEST(DetokenizerTest, T12_OfOverlappingStopsTheFirstCompleteOneWins) {
  EXPECT_EQ(Stream({"xabcd"}, {"abcd", "bc"}).Joined(), "xa");
  EXPECT_EQ(Stream({"x", "a", "b", "c", "d"}, {"abcd", "bc"}).Joined(), "xa");
  // Complete at the same character: the longest.
  EXPECT_EQ(Stream({"xabc"}, {"c", "abc", "bc"}).Joined(), "x");
  // The order of the list plays no role.
  EXPECT_EQ(Stream({"one two"}, {"two", "one"}).Joined(), "");
}

TEST(DetokenizerTest, T12_NothingComesOutAfterAStop) {
  const ListTokenizer tokenizer({"a!", "b"});
  IncrementalDetokenizer detokenizer(tokenizer, {"!"});
  EXPECT_EQ(detokenizer.Push(0).text, "a");
  const IncrementalDetokenizer::Delta after = detokenizer.Push(1);
  EXPECT_EQ(after.text, "");
  EXPECT_TRUE(after.hit_stop);
  EXPECT_EQ(detokenizer.Finish(), "");
}

TEST(DetokenizerTest, T12_StopOfSeveralByteCharactersSplitInside) {
  const Streamed streamed = Stream({"\xE4\xB8\xAD\xE5", "\x9B", "\xBD!"}, {"\xE5\x9B\xBD"});
  EXPECT_EQ(streamed.Joined(), "\xE4\xB8\xAD");
  EXPECT_TRUE(streamed.hit_stop);
}

TEST(DetokenizerTest, T12_StopOfTheReplacementCharacterSeesTheEndToo) {
  EXPECT_EQ(Stream({"a", "\xF0\x9F"}, {kReplacement}).Joined(), "a");
}

TEST(DetokenizerTest, T12_EmptyAndInvalidStopsDoNoHarm) {
  EXPECT_EQ(Stream({"abc"}, {""}).Joined(), "abc");
  EXPECT_EQ(Stream({"\xC3\xA9t"}, {"\xA9"}).Joined(), "\xC3\xA9t");
}

TEST(DetokenizerTest, SpecialTokensShowOnlyWhenKept) {
  const ListTokenizer tokenizer({"a"});
  IncrementalDetokenizer hidden(tokenizer, {});
  std::string text;
  for (const int32_t id : {0, 1, -200}) text += hidden.Push(id).text;
  EXPECT_EQ(text + hidden.Finish(), "a");
  IncrementalDetokenizer kept(tokenizer, {"end>"}, /*keep_special=*/true);
  EXPECT_EQ(kept.Push(0).text, "a");
  const IncrementalDetokenizer::Delta delta = kept.Push(1);
  EXPECT_EQ(delta.text, "<");
  EXPECT_TRUE(delta.hit_stop);
}

// Where the text ends by the header's rule: before the stop that is complete first, the longest of
// several.
std::string CutAtStop(const std::string& text, const std::vector<std::string>& stops) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop))
        longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest);
  }
  return text;
}

class DetokenizerSeedTest : public testing::TestWithParam<uint64_t> {};

TEST_P(DetokenizerSeedTest, RandomTokensEqualTheWholeTextCutAtTheStop) {
  SCOPED_TRACE("seed " + std::to_string(GetParam()));
  std::mt19937_64 random(GetParam());
  const Texts atoms = {"a",        "b",        "ab",   "\xC3", "\xA9", "\xC3\xA9", "\xE4\xB8\xAD",
                       "\xF0\x9F", "\x98\x80", "\xFF", "#"};
  const auto random_string = [&](size_t num_atoms) {
    std::string text;
    for (size_t i = 0; i < num_atoms; ++i) text += atoms[random() % atoms.size()];
    return text;
  };
  for (int round = 0; round < 100; ++round) {
    Texts tokens;
    Texts stops;
    std::string bytes;
    for (size_t i = random() % 20; i > 0; --i)
      bytes += tokens.emplace_back(random_string(random() % 4));
    for (size_t i = random() % 4; i > 0; --i)
      stops.push_back(ReplaceInvalidUtf8(random_string(1 + random() % 4)));
    const std::string whole = ReplaceInvalidUtf8(bytes);
    const Streamed streamed = Stream(tokens, stops);
    const std::string expected = CutAtStop(whole, stops);
    ASSERT_EQ(streamed.Joined(), expected)
        << testing::PrintToString(tokens) << testing::PrintToString(stops);
    for (const std::string& delta : streamed.deltas) ASSERT_EQ(ReplaceInvalidUtf8(delta), delta);
    // A stop that only the replacement of an unfinished end completes is found by Finish.
    if (streamed.hit_stop) {
      ASSERT_LT(expected.size(), whole.size());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, DetokenizerSeedTest, testing::Range<uint64_t>(1, 21));

TEST(DetokenizerTest, DecodesWhatTheTokenizerEncoded) {
  const auto tokenizer = LoadArcade();
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const std::vector<int32_t> ids = tokenizer->Encode(RandomText(random, 100));
    IncrementalDetokenizer detokenizer(*tokenizer, {});
    std::string text;
    for (const int32_t id : ids) text += detokenizer.Push(id).text;
    text += detokenizer.Finish();
    EXPECT_EQ(text, tokenizer->Decode(ids));
  }
}

}  // namespace
}  // namespace conclave::text
