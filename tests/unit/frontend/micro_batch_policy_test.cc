// Goal: steps are divided where that was measured to be faster, not where it cannot be, and trials
// of the slower way stay rarer than one step in a hundred.
// Method: a model of a machine on which a divided step takes `ratio` of an undivided one.
#include "micro_batch_policy.h"

#include <gtest/gtest.h>

namespace conclave::frontend {
namespace {

using std::chrono::microseconds;

// Divided steps among `steps` of `rows` rows.
int DividedOf(MicroBatchPolicy& policy, int steps, int32_t rows, double ratio) {
  int divided = 0;
  for (int i = 0; i < steps; ++i) {
    const int32_t first = policy.Choose(rows);
    EXPECT_TRUE(first == 0 || first == rows / 2);
    divided += first > 0 ? 1 : 0;
    policy.Observe(rows, first > 0,
                   microseconds(static_cast<int64_t>(rows * 100 * (first > 0 ? ratio : 1.0))));
  }
  return divided;
}

TEST(MicroBatchPolicyTest, TakesTheFasterWay) {
  MicroBatchPolicy slower(MicroBatching::kAuto, 4, 2);
  EXPECT_LE(DividedOf(slower, 1000, 64, 1.3), 4 + 4);
  MicroBatchPolicy faster(MicroBatching::kAuto, 4, 2);
  EXPECT_GE(DividedOf(faster, 1000, 64, 0.7), 1000 - 4 - 4);
}

TEST(MicroBatchPolicyTest, AGainWithinChanceIsNone) {
  MicroBatchPolicy policy(MicroBatching::kAuto, 4, 2);
  EXPECT_LE(DividedOf(policy, 1000, 64, 0.99), 4 + 4);
}

TEST(MicroBatchPolicyTest, FollowsAMachineThatChanges) {
  MicroBatchPolicy policy(MicroBatching::kAuto, 4, 2);
  DividedOf(policy, 100, 64, 1.3);
  // Trials are rare, and each counts a fifth.
  DividedOf(policy, 256 * 6, 64, 0.5);
  EXPECT_GE(DividedOf(policy, 100, 64, 0.5), 99);
}

TEST(MicroBatchPolicyTest, SizesAreLearnedApart) {
  MicroBatchPolicy policy(MicroBatching::kAuto, 4, 2);
  DividedOf(policy, 100, 512, 0.6);
  DividedOf(policy, 100, 16, 1.4);
  EXPECT_EQ(policy.Choose(512), 256);
  EXPECT_EQ(policy.Choose(16), 0);
}

TEST(MicroBatchPolicyTest, FewRowsPerExpertAreNeverDivided) {
  MicroBatchPolicy policy(MicroBatching::kAuto, 4, 2);
  EXPECT_EQ(DividedOf(policy, 1000, 7, 0.1), 0);
  EXPECT_GT(DividedOf(policy, 1000, 8, 0.1), 0);
}

TEST(MicroBatchPolicyTest, OneStallIsNotTheWaysFault) {
  MicroBatchPolicy policy(MicroBatching::kAuto, 4, 2);
  DividedOf(policy, 100, 64, 0.8);
  policy.Observe(64, true, microseconds(10'000'000));
  DividedOf(policy, 2, 64, 0.8);
  DividedOf(policy, 256 * 3, 64, 0.8);
  EXPECT_EQ(policy.Choose(64), 32);
}

TEST(MicroBatchPolicyTest, ModesAreObeyed) {
  MicroBatchPolicy one(MicroBatching::kOne, 4, 2);
  EXPECT_EQ(DividedOf(one, 100, 512, 0.1), 0);
  MicroBatchPolicy two(MicroBatching::kTwo, 4, 2);
  EXPECT_EQ(DividedOf(two, 100, 2, 3.0), 100);
  EXPECT_EQ(two.Choose(1), 0);
}

}  // namespace
}  // namespace conclave::frontend
