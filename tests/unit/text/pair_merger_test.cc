// Goal: pairs that share a rank are merged from left to right, also those that a merge of that rank
// makes, in less than quadratic time.
// Method: random tables with few ranks against the definition, word by word; one long piece.
#include "pair_merger.h"

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <random>
#include <string>
#include <vector>

namespace conclave::text {
namespace {

// Tokens over a few letters with a rank each, and all ways to cut them, as of a SentencePiece
// model.
struct Table {
  std::vector<std::string> tokens;
  std::vector<int32_t> ranks;
  std::map<std::string, int32_t> id_of;

  void Add(const std::string& token, int32_t rank) {
    if (!id_of.emplace(token, static_cast<int32_t>(tokens.size())).second) return;
    tokens.push_back(token);
    ranks.push_back(rank);
  }
  PairMerger Build() const {
    std::vector<uint32_t> lengths;
    std::vector<PairMerger::Pair> pairs;
    for (size_t id = 0; id < tokens.size(); ++id) {
      lengths.push_back(static_cast<uint32_t>(tokens[id].size()));
      for (size_t cut = 1; cut < tokens[id].size(); ++cut) {
        const auto left = id_of.find(tokens[id].substr(0, cut));
        const auto right = id_of.find(tokens[id].substr(cut));
        if (left != id_of.end() && right != id_of.end())
          pairs.push_back({left->second, right->second, ranks[id], static_cast<int32_t>(id)});
      }
    }
    return {lengths, pairs};
  }
};

std::vector<int32_t> Start(const Table& table, const std::string& text) {
  std::vector<int32_t> start;
  for (const char c : text) start.push_back(table.id_of.at(std::string(1, c)));
  return start;
}

std::vector<int32_t> MergePlainly(const Table& table, std::vector<int32_t> parts) {
  while (true) {
    size_t best = parts.size();
    int32_t best_id = -1;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = table.id_of.find(table.tokens[parts[i]] + table.tokens[parts[i + 1]]);
      if (found == table.id_of.end()) continue;
      if (best_id >= 0 && table.ranks[found->second] >= table.ranks[best_id]) continue;
      best = i;
      best_id = found->second;
    }
    if (best_id < 0) return parts;
    parts[best] = best_id;
    parts.erase(parts.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
}

TEST(PairMergerTest, EqualRanksAgreeWithThePlainLoop) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    Table table;
    for (const char* letter : {"a", "b", "c"}) table.Add(letter, 0);
    const uint64_t num_ranks = 1 + random() % 4;
    for (int i = 0; i < 20; ++i) {
      std::string token;
      const size_t length = 2 + random() % 4;
      while (token.size() < length) token.push_back(static_cast<char>('a' + random() % 3));
      table.Add(token, static_cast<int32_t>(random() % num_ranks));
    }
    const PairMerger merger = table.Build();
    PairMerger::Scratch scratch;
    for (const size_t length : {1u, 7u, 48u, 49u, 200u}) {
      std::string text;
      while (text.size() < length) text.push_back(static_cast<char>('a' + random() % 3));
      std::vector<int32_t> merged;
      merger.Merge(Start(table, text), scratch, merged);
      EXPECT_EQ(merged, MergePlainly(table, Start(table, text))) << text;
    }
  }
}

// Few tokens over many letters: texts with places where no merge joins two letters, in which long
// pieces are cut, and parts of letters that no merge reaches.
TEST(PairMergerTest, PiecesThatMayBeCutAgreeWithThePlainLoop) {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937_64 random(seed);
    const auto letter = [&] { return static_cast<char>('a' + random() % 8); };
    Table table;
    std::array<int32_t, 256> unit_of_byte{};
    for (char c = 'a'; c <= 'h'; ++c) {
      unit_of_byte[static_cast<uint8_t>(c)] = static_cast<int32_t>(table.tokens.size());
      table.Add(std::string(1, c), 0);
    }
    for (int i = 0; i < 30; ++i) {
      std::string token;
      for (uint64_t length = 2 + random() % 3; length > 0; --length) token.push_back(letter());
      table.Add(token, i);
    }
    const PairMerger merger = table.Build();
    PairMerger::Scratch scratch;
    for (const size_t length : {0u, 1u, 48u, 49u, 300u}) {
      std::string text;
      while (text.size() < length) text.push_back(letter());
      const std::vector<int32_t> expected = MergePlainly(table, Start(table, text));
      std::vector<int32_t> merged;
      merger.Merge(Start(table, text), scratch, merged);
      EXPECT_EQ(merged, expected) << text;
      merged.clear();
      merger.MergeBytes(text, unit_of_byte, scratch, merged);
      EXPECT_EQ(merged, expected) << text;
    }
  }
}

TEST(PairMergerTest, JoinsOnlyWhatSomeTokenHoldsSideBySide) {
  Table table;
  for (const char* letter : {"a", "b", "c"}) table.Add(letter, 0);
  table.Add("ab", 0);
  table.Add("abc", 1);
  const PairMerger merger = table.Build();
  EXPECT_TRUE(merger.Joins(0, 1));
  EXPECT_TRUE(merger.Joins(1, 2));
  EXPECT_FALSE(merger.Joins(1, 0));
  EXPECT_FALSE(merger.Joins(0, 2));
  EXPECT_FALSE(merger.Joins(0, 0));
}

// Sorting the rest of the piece at every merge would take hours.
TEST(PairMergerTest, OneRankForAllIsNotQuadratic) {
  Table table;
  for (size_t length = 1; length <= 16; ++length) table.Add(std::string(length, 'a'), 0);
  const std::vector<int32_t> start(1 << 21, 0);
  PairMerger::Scratch scratch;
  std::vector<int32_t> merged;
  table.Build().Merge(start, scratch, merged);
  EXPECT_EQ(merged, std::vector<int32_t>(start.size() / 16, 15));
}

}  // namespace
}  // namespace conclave::text
