// Goal: the tables that loops over every character ask. Method: random entries against the standard
// library's containers.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <utility>

#include "code_point_map.h"
#include "symbol_pairs.h"

namespace conclave::text {
namespace {

TEST(CodePointMapTest, AgreesWithAMapForEveryCodePoint) {
  std::mt19937_64 random(1);
  CodePointMap table;
  std::map<int32_t, int32_t> expected;
  for (int i = 0; i < 2000; ++i) {
    const auto code_point = static_cast<int32_t>(random() % (i % 2 == 0 ? 0x3000 : 0x110000));
    expected[code_point] = i;
    table.Set(code_point, i);
  }
  for (int32_t code_point = 0; code_point < 0x110000; ++code_point) {
    const auto found = expected.find(code_point);
    ASSERT_EQ(table.Find(code_point), found == expected.end() ? -1 : found->second) << code_point;
  }
  EXPECT_EQ(CodePointMap().Find(0x10FFFF), -1);
}

TEST(SymbolPairsTest, AgreesWithASet) {
  std::mt19937_64 random(1);
  const auto symbol = [&] { return static_cast<int32_t>(random() % 200); };
  SymbolPairs table;
  std::set<std::pair<int32_t, int32_t>> expected;
  EXPECT_FALSE(table.Contains(0, 0));
  for (int i = 0; i < 5000; ++i) {
    const int32_t left = symbol();
    const int32_t right = symbol();
    table.Insert(left, right);
    expected.emplace(left, right);
  }
  for (int32_t left = 0; left < 200; ++left) {
    for (int32_t right = 0; right < 200; ++right)
      ASSERT_EQ(table.Contains(left, right), expected.contains({left, right}));
  }
}

}  // namespace
}  // namespace conclave::text
