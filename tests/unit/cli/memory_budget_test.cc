// Goal: a model that does not fit is refused before memory is taken, with both figures. Method: the
// demo with more KV than any machine has, and with what it needs.
#include "memory_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>

#include "conclave/base/status.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/model/decoder.h"
#include "conclave/testing/temp_folder.h"

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

// config.json alone says how many positions there are: what they cost is counted before it is
// taken.
TEST_F(MemoryBudgetTest, TablesOfAllPositionsAreCounted) {
  checkpoint::ModelDesc desc = checkpoint_->desc();
  ASSERT_EQ(desc.attention.rope.rotary_dim, 8);
  desc.max_positions = 1 << 24;
  EXPECT_EQ(model::Decoder::TableBytes(desc), int64_t{512} << 20);
  // One more table with every doubling, and a factor per position.
  desc.attention.rope.ntk_length = 1 << 21;
  desc.attention.logn_length = 1 << 21;
  EXPECT_EQ(model::Decoder::TableBytes(desc), (int64_t{4} * 512 << 20) + (int64_t{64} << 20));

  const testing::TempFolder folder;
  for (const auto& file : std::filesystem::directory_iterator(checkpoint_->folder())) {
    if (file.is_regular_file()) {
      std::filesystem::copy(file.path(), folder.path());
    }
  }
  std::ifstream file(checkpoint_->folder() + "/config.json");
  std::string config(std::istreambuf_iterator<char>(file), {});
  const std::string key = "\"max_position_embeddings\": 512";
  ASSERT_NE(config.find(key), std::string::npos);
  config.replace(config.find(key), key.size(), "\"max_position_embeddings\": 16777216");
  folder.Write("config.json", config);
  const auto opened = checkpoint::Checkpoint::Open(folder.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto planned = PlanMemory(**opened, {.kv_bytes = int64_t{1} << 50, .max_model_len = 64});
  EXPECT_EQ(ReasonOf(planned.status()), "model_needs_memory");
  EXPECT_THAT(MessageOf(planned.status()), HasSubstr("needs 1048576.5 GiB"));
}

}  // namespace
}  // namespace conclave::cli
