// Goal: an expert's many rows in prefill are divided over its replicas so that these are done
// together, few rows stay together, and the sums are those of one worker whoever computes them.
// Method: channels with a script on a fake clock, which take as long per row as they say.
#include <gtest/gtest.h>

#include <random>

#include "conclave/base/status.h"
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

class DispatcherPartsTest : public DispatcherFailoverTest {
 protected:
  // What a layer of so many rows sends to each of two workers.
  std::pair<int, int> RowsOfALayer(int num_rows, bool is_prefill) {
    const int before[] = {a_->num_rows, b_->num_rows};
    EXPECT_TRUE(Run(num_rows, is_prefill).ok());
    return {a_->num_rows - before[0], b_->num_rows - before[1]};
  }
  void StartTwo(const std::vector<std::vector<int32_t>>& holders) {
    a_ = &links_.Add(0);
    b_ = &links_.Add(1);
    links_.Place(PlacementOf(holders));
    Start();
  }

  ScriptedChannel* a_ = nullptr;
  ScriptedChannel* b_ = nullptr;
};

TEST_F(DispatcherPartsTest, ManyPrefillRowsAreSharedEvenlyAndTravelOnce) {
  options_.expert_us = 100;
  options_.row_us = 50;
  StartTwo(kBoth);
  const auto [a, b] = RowsOfALayer(64, true);
  // Each row is needed by two experts, which both workers hold.
  EXPECT_NEAR(a, b, 8);
  EXPECT_LE(a + b, 64 + 8);
}

TEST_F(DispatcherPartsTest, FewRowsOfAnExpertStayTogether) {
  options_.expert_us = 1000;
  options_.row_us = 10;
  StartTwo(kBoth);
  // Reading an expert's weights a second time costs more than half of these rows.
  for (const bool is_prefill : {false, true}) {
    const int before = a_->num_experts + b_->num_experts;
    RowsOfALayer(16, is_prefill);
    EXPECT_EQ(a_->num_experts + b_->num_experts - before, kExperts) << is_prefill;
  }
  // A decode row is answered by one worker, if one holds both of its experts.
  const auto [a, b] = RowsOfALayer(1, false);
  EXPECT_EQ(a + b, 1);
}

TEST_F(DispatcherPartsTest, ASlowWorkerGetsItsShareOnly) {
  options_.expert_us = 100;
  options_.row_us = 50;
  StartTwo(kBoth);
  // What it says of itself: three times as long for a row.
  a_->service_us_per_row = 150;
  b_->service_us_per_row = 50;
  for (int i = 0; i < 100; ++i) {
    RowsOfALayer(64, true);
  }
  const auto [a, b] = RowsOfALayer(64, true);
  EXPECT_LT(2 * a, b);
  EXPECT_GT(a, 0);
}

TEST_F(DispatcherPartsTest, AnExpertWithOneReplicaIsNotDivided) {
  options_.expert_us = 100;
  options_.row_us = 50;
  StartTwo({{0}, {0}, {1}, {1}});
  const auto [a, b] = RowsOfALayer(64, true);
  // Rows go to the experts r and r + 1 of four: three of four need worker 0, and three worker 1.
  EXPECT_EQ(a, 48);
  EXPECT_EQ(b, 48);
}

TEST_F(DispatcherPartsTest, AWorkerOutOfFavourGetsNoPart) {
  options_.expert_us = 100;
  options_.row_us = 50;
  options_.is_hedging = false;
  StartTwo(kBoth);
  a_->is_hung = true;
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(Run(64, true).ok());
  }
  const auto [a, b] = RowsOfALayer(64, true);
  EXPECT_EQ(a, 0);
  EXPECT_EQ(b, 64);
}

// Whatever the sizes, phases and placements, no row is lost or added twice (Run compares with
// arithmetic), also when a worker dies in the middle of its part.
TEST_F(DispatcherPartsTest, SumsAreExactForAnySizes) {
  options_.expert_us = 100;
  options_.row_us = 50;
  std::mt19937_64 random(7);
  StartTwo({{0, 1}, {1, 0}, {0}, {0, 1}});
  for (int i = 0; i < 300; ++i) {
    a_->service_us_per_row = static_cast<uint32_t>(10 + random() % 200);
    b_->service_us_per_row = static_cast<uint32_t>(10 + random() % 200);
    if (i == 150) {
      b_->dies_at = clock_.Now() + microseconds(100);
    }
    ASSERT_TRUE(Run(1 + static_cast<int>(random() % 64), random() % 3 != 0).ok()) << i;
  }
}

}  // namespace
}  // namespace conclave::frontend
