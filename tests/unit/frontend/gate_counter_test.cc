// Goal: GateCounter counts every row once per choice, by layer, expert, modality, phase and rank,
// with the gate's weights, and changes nothing of what passes through it.
#include "conclave/frontend/gate_counter.h"

#include <vector>

#include "fake_executor.h"
#include "gtest/gtest.h"

namespace conclave::frontend {
namespace {

constexpr checkpoint::MoeLayerSpec kLayers[] = {{1, 4}, {3, 2}};

GateCounter::Load Find(const GateCounter& counter, int32_t layer, int32_t expert, bool is_image,
                       bool is_prefill, int32_t rank) {
  for (const GateCounter::Load& load : counter.Loads()) {
    if (load.layer == layer && load.expert == expert && load.is_image == is_image &&
        load.is_prefill == is_prefill && load.rank == rank) {
      return load;
    }
  }
  ADD_FAILURE() << "no such load";
  return {};
}

TEST(GateCounterTest, CountsRowsAndWeightsByWhatTheyAre) {
  FakeExecutor next;
  GateCounter counter(next, kLayers, 2);
  std::vector<model::StepRow> rows(3);
  rows[0].is_image = true;
  rows[0].is_prefill = true;
  rows[1].is_image = true;
  rows[1].is_prefill = true;
  const std::vector<int32_t> experts = {2, 0, 2, 3, 0, 2};
  const std::vector<float> weights = {0.75f, 0.25f, 0.5f, 0.5f, 1.0f, 0.125f};
  const model::GateChoice choice{{experts.data(), 3, 2}, {weights.data(), 3, 2}};
  counter.Start(0, 1, {}, rows, choice, {});
  counter.Start(1, 1, {}, std::span(rows).first(1), choice, {});

  EXPECT_EQ(Find(counter, 1, 2, true, true, 0).rows, 3u);
  EXPECT_EQ(Find(counter, 1, 2, true, true, 0).weights, 0.75 + 0.5 + 0.75);
  EXPECT_EQ(Find(counter, 1, 0, true, true, 1).rows, 2u);
  EXPECT_EQ(Find(counter, 1, 3, true, true, 1).weights, 0.5);
  EXPECT_EQ(Find(counter, 1, 0, false, false, 0).rows, 1u);
  EXPECT_EQ(Find(counter, 1, 2, false, false, 1).weights, 0.125);
  uint64_t sum = 0;
  for (const GateCounter::Load& load : counter.Loads()) {
    sum += load.rows;
    EXPECT_TRUE(load.layer == 1 || load.rows == 0) << load.layer;
  }
  EXPECT_EQ(sum, 2u * (3 + 1));
  EXPECT_EQ(counter.Loads().size(), size_t{4 + 2} * 2 * 2 * 2);
}

TEST(GateCounterTest, ProbabilitiesAddUpOverAllRowsOfALayer) {
  FakeExecutor next;
  GateCounter counter(next, kLayers, 1);
  const std::vector<model::StepRow> rows(2);
  const std::vector<int32_t> experts = {1, 0};
  const std::vector<float> weights = {0.75f, 0.5f};
  // Of rows that lie apart, as the decoder's do.
  const std::vector<float> probabilities = {0.25f, 0.75f, -1, 0.5f, 0.5f, -1};
  const model::GateChoice choice{
      {experts.data(), 2, 1}, {weights.data(), 2, 1}, {probabilities.data(), 2, 2, 3}};
  counter.Start(0, 3, {}, rows, choice, {});
  counter.Start(1, 3, {}, rows, choice, {});
  EXPECT_EQ(counter.Probabilities(), (std::vector<double>{0, 0, 0, 0, 1.5, 2.5}));
}

TEST(GateCounterTest, TopOneHasOneRank) {
  FakeExecutor next;
  GateCounter counter(next, kLayers, 1);
  const std::vector<model::StepRow> rows(2);
  const std::vector<int32_t> experts = {1, 1};
  const std::vector<float> weights = {0.5f, 0.25f};
  counter.Start(0, 3, {}, rows, {{experts.data(), 2, 1}, {weights.data(), 2, 1}}, {});
  EXPECT_EQ(counter.Loads().size(), size_t{4 + 2} * 2 * 2);
  EXPECT_EQ(Find(counter, 3, 1, false, false, 0).rows, 2u);
  EXPECT_EQ(Find(counter, 3, 1, false, false, 0).weights, 0.75);
}

TEST(GateCounterTest, PassesEverythingOn) {
  FakeExecutor next;
  GateCounter counter(next, kLayers, 1);
  ExpectPassesEverythingOn(counter, next, 3);
}

}  // namespace
}  // namespace conclave::frontend
