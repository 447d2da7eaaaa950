// Goal: a model that does not fit is refused before memory is taken, with both figures. Method: the
// demo with more KV than any machine has, and with what it needs.
#include "memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"

namespace conclave::cli {
namespace {

using ::testing::HasSubstr;

class MemoryBudgetTest : public ::testing::Test {
 protected:
  MemoryBudgetTest() {
    auto opened = checkpoint::Checkpoint::Open(std::string(CONCLAVE_SOURCE_DIR) + "/models/demo");
    EXPECT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
  }
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
};

TEST_F(MemoryBudgetTest, C24_more_than_there_is) {
  const auto planned = PlanMemory(*checkpoint_, {.kv_bytes = INT64_MAX / 4, .max_model_len = 64});
  EXPECT_EQ(ReasonOf(planned.status()), "model_needs_memory");
  EXPECT_THAT(MessageOf(planned.status()), HasSubstr("needs 2147483648.0 GiB, budget "));
  EXPECT_THAT(MessageOf(planned.status()), HasSubstr("models/demo"));
}

TEST_F(MemoryBudgetTest, ChosenKvHoldsOneSequenceAndNotMoreThanAll) {
  const auto one = PlanMemory(*checkpoint_, {.max_num_seqs = 1, .max_model_len = 64});
  const auto eight = PlanMemory(*checkpoint_, {.max_num_seqs = 8, .max_model_len = 64});
  ASSERT_TRUE(one.ok() && eight.ok()) << one.status() << eight.status();
  EXPECT_GT(*one, 0);
  EXPECT_EQ(*eight, 8 * *one);
}

}  // namespace
}  // namespace conclave::cli
