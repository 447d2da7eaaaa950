// Goal: the linear merge gives what the plain loop over pairs gives, whatever the table and the
// piece. Method: random tables (also ones no training would make) and random pieces, against the
// definition of spec 6.2.
#include "bpe.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

namespace conclave::text {
namespace {

std::vector<std::string> SingleBytes() {
  std::vector<std::string> tokens;
  tokens.reserve(256);
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  return tokens;
}

std::vector<int32_t> Encode(const BpeTable& table, std::string_view piece) {
  BpeTable::Scratch scratch;
  std::vector<int32_t> ids;
  table.EncodePiece(piece, scratch, ids);
  return ids;
}

// The definition, word by word.
std::vector<int32_t> EncodePlainly(const std::map<std::string, int32_t>& ranks,
                                   const std::string& piece) {
  if (const auto whole = ranks.find(piece); whole != ranks.end()) return {whole->second};
  std::vector<std::string> parts;
  for (const char c : piece) parts.emplace_back(1, c);
  while (true) {
    size_t best = parts.size();
    int32_t best_rank = INT32_MAX;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = ranks.find(parts[i] + parts[i + 1]);
      if (found != ranks.end() && found->second < best_rank) {
        best = i;
        best_rank = found->second;
      }
    }
    if (best == parts.size()) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  ids.reserve(parts.size());
  for (const std::string& part : parts) ids.push_back(ranks.at(part));
  return ids;
}

std::string RandomLetters(std::mt19937_64& random, size_t length, int num_letters) {
  std::string text;
  for (size_t i = 0; i < length; ++i)
    text.push_back(static_cast<char>('a' + random() % static_cast<uint64_t>(num_letters)));
  return text;
}

class BpeSeedTest : public testing::TestWithParam<uint64_t> {};

// Tokens at random ranks: parts may have higher ranks than what they form, so merging steps back to
// lower ranks.
TEST_P(BpeSeedTest, AgreesWithThePlainLoop) {
  SCOPED_TRACE("seed " + std::to_string(GetParam()));
  std::mt19937_64 random(GetParam());
  std::set<std::string> words;
  const int num_letters = 2 + static_cast<int>(random() % 3);
  while (words.size() < 24) words.insert(RandomLetters(random, 2 + random() % 5, num_letters));
  std::vector<std::string> tokens = SingleBytes();
  tokens.insert(tokens.end(), words.begin(), words.end());
  std::shuffle(tokens.begin() + 256, tokens.end(), random);
  const BpeTable table(tokens);
  std::map<std::string, int32_t> ranks;
  for (size_t i = 0; i < tokens.size(); ++i) ranks[tokens[i]] = static_cast<int32_t>(i);
  for (const size_t length : {1u, 2u, 5u, 47u, 48u, 49u, 50u, 100u, 300u}) {
    const std::string piece = RandomLetters(random, length, num_letters);
    SCOPED_TRACE(piece);
    EXPECT_EQ(Encode(table, piece), EncodePlainly(ranks, piece));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, BpeSeedTest, testing::Range<uint64_t>(1, 41));

TEST(BpeTest, WholePieceInTheTableIsOneIdEvenIfMergesDoNotReachIt) {
  std::vector<std::string> tokens = SingleBytes();
  tokens.emplace_back("abc");
  const BpeTable table(tokens);
  EXPECT_EQ(Encode(table, "abc"), std::vector<int32_t>{256});
  EXPECT_EQ(Encode(table, "abcx"), (std::vector<int32_t>{'a', 'b', 'c', 'x'}));
}

TEST(BpeTest, LeftmostPairGoesFirstOnTies) {
  std::vector<std::string> tokens = SingleBytes();
  tokens.emplace_back("aa");
  const BpeTable table(tokens);
  EXPECT_EQ(Encode(table, "aaa"), (std::vector<int32_t>{256, 'a'}));
  std::vector<int32_t> expected(50, 256);
  expected.push_back('a');
  EXPECT_EQ(Encode(table, std::string(101, 'a')), expected);
}

TEST(BpeTest, ScratchCarriesNothingFromPieceToPiece) {
  std::vector<std::string> tokens = SingleBytes();
  tokens.emplace_back("aa");
  tokens.emplace_back("ab");
  const BpeTable table(tokens);
  BpeTable::Scratch scratch;
  for (const std::string& piece :
       {std::string(200, 'a'), std::string(60, 'b'), std::string(99, 'a') + "b"}) {
    std::vector<int32_t> ids;
    table.EncodePiece(piece, scratch, ids);
    EXPECT_EQ(ids, Encode(table, piece));
  }
}

}  // namespace
}  // namespace conclave::text
