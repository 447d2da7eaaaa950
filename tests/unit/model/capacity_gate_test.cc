// Goal: the original's capacity rules. Method: the worked examples of spec 4.4 and rows small
// enough to follow by hand.
#include "conclave/model/capacity_gate.h"

#include <gtest/gtest.h>

#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"

namespace conclave::model {
namespace {

TEST(CapacityGateTest, CapacityIsTheTableOfTheSpecification) {
  struct Row {
    int64_t rows, published, class_default, factor_1_5, factor_1;
  };
  const Row table[] = {{1, 1, 4, 1, 1}, {2, 2, 4, 2, 1},           {3, 3, 4, 3, 2},
                       {5, 5, 4, 4, 3}, {630, 630, 315, 473, 315}, {778, 778, 389, 584, 389}};
  for (const Row& row : table) {
    EXPECT_EQ(ExpertCapacity({2, 2.0, 0}, row.rows, 4), row.published) << row.rows;
    EXPECT_EQ(ExpertCapacity({2, 1.0, 4}, row.rows, 4), row.class_default) << row.rows;
    EXPECT_EQ(ExpertCapacity({2, 1.5, 0}, row.rows, 4), row.factor_1_5) << row.rows;
    EXPECT_EQ(ExpertCapacity({2, 1.0, 0}, row.rows, 4), row.factor_1) << row.rows;
  }
}

class CapacityGateChoice : public ::testing::Test {
 protected:
  absl::StatusOr<std::vector<ExpertSlot>> Choose(const CapacityRule& rule,
                                                 std::vector<float> logits, int64_t experts) {
    const auto rows = static_cast<int64_t>(logits.size()) / experts;
    return ChooseWithCapacity(context_, rule, {logits.data(), rows, experts});
  }

  ThreadPool pool_{1};
  kernels::Context context_{kernels::Isa::kScalar, pool_};
};

TEST_F(CapacityGateChoice, SecondChoicesStandBehindAllFirstOnes) {
  // Both rows want expert 0; the first as its second choice. Two slots: the second row, asking
  // first, gets slot 0.
  const auto slots = Choose({2, 2.0, 0}, {1, 2, -9, -9, 3, 1, -9, -9}, 4);
  ASSERT_TRUE(slots.ok()) << slots.status();
  EXPECT_EQ((*slots)[1].expert, 0);
  EXPECT_EQ((*slots)[1].slot, 1);
  EXPECT_EQ((*slots)[2].expert, 0);
  EXPECT_EQ((*slots)[2].slot, 0);
}

TEST_F(CapacityGateChoice, WhatIsLeftOfARowWeighsOne) {
  // One slot per expert. Row 0 takes 0 and 1; row 1 wants the same two and gets none; row 2 keeps
  // only expert 3.
  const auto slots = Choose({2, 2.0 / 3, 0}, {3, 2, 0, 0, 3, 2, 0, 0, 2, 0, 0, 3}, 4);
  ASSERT_TRUE(slots.ok()) << slots.status();
  EXPECT_NEAR((*slots)[0].weight + (*slots)[1].weight, 1.0f, 1e-6f);
  EXPECT_EQ((*slots)[2].expert, -1);
  EXPECT_EQ((*slots)[3].expert, -1);
  EXPECT_EQ((*slots)[3].weight, 0.0f);
  EXPECT_EQ((*slots)[4].expert, 3);
  EXPECT_EQ((*slots)[4].weight, 1.0f);
  EXPECT_EQ((*slots)[5].expert, -1);
}

TEST_F(CapacityGateChoice, OneExpertPerTokenKeepsItsProbability) {
  const auto slots = Choose({1, 8.0, 0}, {0, 0, 1, 0}, 2);
  ASSERT_TRUE(slots.ok()) << slots.status();
  EXPECT_NEAR((*slots)[0].weight, 0.5f, 1e-6f);
  EXPECT_NEAR((*slots)[1].weight, 0.7310586f, 1e-6f);
}

TEST_F(CapacityGateChoice, RandomDropsAreRefused) {
  const auto slots = Choose({1, 1.0, 0}, {5, 0, 5, 0}, 2);
  ASSERT_FALSE(slots.ok());
  EXPECT_EQ(ReasonOf(slots.status()), "gate_random");
}

}  // namespace
}  // namespace conclave::model
