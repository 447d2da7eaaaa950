// Goal: the third damaged frame within 10 s ends a link; the same three over a longer time do not
// (failure-model.md, F27).
#include "damage_window.h"

#include <vector>

#include "gtest/gtest.h"

namespace conclave::transport {
namespace {

using std::chrono::milliseconds;

// What each of these moments, in ms, was answered with.
std::vector<bool> Added(const std::vector<int>& moments) {
  DamageWindow window;
  std::vector<bool> ends;
  for (const int at : moments) {
    ends.push_back(window.Add(MonotonicTime(milliseconds(at))));
  }
  return ends;
}

TEST(DamageWindowTest, TheThirdWithinTenSecondsEndsTheLink) {
  EXPECT_EQ(Added({0, 0, 0}), (std::vector<bool>{false, false, true}));
  EXPECT_EQ(Added({0, 5'000, 10'000}), (std::vector<bool>{false, false, true}));
}

TEST(DamageWindowTest, RareOnesNeverDo) {
  EXPECT_EQ(Added({0, 5'000, 10'001, 15'001, 20'002}), std::vector<bool>(5, false));
}

TEST(DamageWindowTest, AnyThreeInARowCount) {
  EXPECT_EQ(Added({0, 20'000, 40'000, 41'000, 49'000, 51'001}),
            (std::vector<bool>{false, false, false, false, true, false}));
}

}  // namespace
}  // namespace conclave::transport
