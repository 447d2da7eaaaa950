// Goal: PathCounter counts every row's sequence of first choices, exactly, in a table of bounded
// size, and changes nothing of what passes through it. Method: random steps in one and two
// micro-batches beside a count that does it the slow way.
#include "conclave/frontend/path_counter.h"

#include <algorithm>
#include <map>
#include <random>
#include <vector>

#include "fake_executor.h"
#include "gmock/gmock.h"

namespace conclave::frontend {
namespace {

using ::testing::ElementsAre;
using Paths = std::map<std::vector<int32_t>, uint64_t>;

constexpr checkpoint::MoeLayerSpec kLayers[] = {{1, 4}, {3, 2}, {4, 400}};
constexpr size_t kNumLayers = std::size(kLayers);

// One micro-batch of a step: each row with its experts, [layer][row][top_k].
struct MicroBatch {
  std::vector<model::StepRow> rows;
  std::vector<std::vector<int32_t>> experts{kNumLayers};

  // A row whose first choices are `path`; the second ones do not matter.
  void Add(const std::vector<int32_t>& path, bool is_image) {
    rows.emplace_back().is_image = is_image;
    for (size_t l = 0; l < kNumLayers; ++l) {
      experts[l].insert(experts[l].end(), {path[l], path[l] ^ 1});
    }
  }
  void Start(PathCounter& counter, int32_t micro_batch, size_t layer) const {
    const auto num_rows = static_cast<int64_t>(rows.size());
    const model::GateChoice choice{{experts[layer].data(), num_rows, 2}, {}};
    counter.Start(micro_batch, kLayers[layer].layer, {}, rows, choice, {});
    (void)counter.Finish(micro_batch);
  }
};

void RunStep(PathCounter& counter, const std::vector<MicroBatch>& step) {
  for (size_t layer = 0; layer < kNumLayers; ++layer) {
    for (size_t m = 0; m < step.size(); ++m) {
      step[m].Start(counter, static_cast<int32_t>(m), layer);
    }
  }
}

// The most frequent of them, ties by experts.
std::vector<live::Path> Top(const Paths& paths) {
  std::vector<live::Path> top;
  for (const auto& [experts, rows] : paths) {
    top.push_back({experts, rows});
  }
  std::stable_sort(top.begin(), top.end(),
                   [](const auto& a, const auto& b) { return a.rows > b.rows; });
  top.resize(std::min(top.size(), live::kTopPaths));
  return top;
}

TEST(PathCounterTest, EqualsACountOfEveryRowOverRandomSteps) {
  constexpr uint32_t kSeed = 3;
  std::mt19937 random(kSeed);
  const auto pick = [&random](int32_t below) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(below));
  };
  FakeExecutor next;
  PathCounter counter(next, kLayers, 16);
  std::array<Paths, live::kModalities> expected;
  std::array<uint64_t, live::kModalities> rows{};
  for (int step = 0; step < 500; ++step) {
    std::vector<MicroBatch> batches(1 + static_cast<size_t>(pick(2)));
    for (MicroBatch& batch : batches) {
      for (int32_t r = pick(9); r > 0; --r) {
        const bool is_image = pick(3) == 0;
        // Of the large layer on both sides of what fits into a byte.
        const std::vector<int32_t> path = {pick(4), pick(2), 250 + pick(12)};
        batch.Add(path, is_image);
        ++expected[is_image][path];
        ++rows[is_image];
      }
    }
    RunStep(counter, batches);
  }
  const auto counts = counter.Counts();
  for (size_t m = 0; m < live::kModalities; ++m) {
    EXPECT_EQ(counts[m].rows, rows[m]) << "seed " << kSeed;
    EXPECT_EQ(counts[m].distinct, expected[m].size());
    EXPECT_EQ(counts[m].other, 0u);
    EXPECT_EQ(counts[m].top, Top(expected[m])) << "seed " << kSeed;
  }
}

TEST(PathCounterTest, WithOneLayerAPathIsAnExpert) {
  FakeExecutor next;
  const checkpoint::MoeLayerSpec layers[] = {{0, 4}};
  PathCounter counter(next, layers, 4);
  const std::vector<model::StepRow> rows(3);
  const std::vector<int32_t> experts = {2, 1, 2};
  counter.Start(0, 0, {}, rows, {{experts.data(), 3, 1}, {}}, {});
  EXPECT_THAT(counter.Counts()[0].top, ElementsAre(live::Path{{2}, 2}, live::Path{{1}, 1}));
  EXPECT_EQ(counter.Counts()[1], live::PathCounts());
}

TEST(PathCounterTest, BeyondSoManyPathsOfAModalityRowsAreCountedTogether) {
  FakeExecutor next;
  PathCounter counter(next, kLayers, 256);
  constexpr size_t kMore = 100;
  std::vector<MicroBatch> step(1);
  for (size_t i = 0; i < PathCounter::kPathsMax + kMore; ++i) {
    const auto n = static_cast<int32_t>(i);
    step[0].Add({n % 4, n / 4 % 100, n / 400}, false);
    if (step[0].rows.size() == 256 || i + 1 == PathCounter::kPathsMax + kMore) {
      RunStep(counter, step);
      step.assign(1, {});
    }
  }
  step[0].Add({0, 0, 0}, false);   // one that is known
  step[0].Add({3, 1, 399}, true);  // the other modality has its own table
  RunStep(counter, step);
  const auto counts = counter.Counts();
  EXPECT_EQ(counts[0].rows, PathCounter::kPathsMax + kMore + 1);
  EXPECT_EQ(counts[0].distinct, PathCounter::kPathsMax);
  EXPECT_EQ(counts[0].other, kMore);
  EXPECT_EQ(counts[0].top[0], (live::Path{{0, 0, 0}, 2}));
  EXPECT_EQ(counts[1].other, 0u);
  EXPECT_THAT(counts[1].top, ElementsAre(live::Path{{3, 1, 399}, 1}));
}

TEST(PathCounterTest, PassesEverythingOn) {
  FakeExecutor next;
  PathCounter counter(next, kLayers, 2);
  ExpectPassesEverythingOn(counter, next, 4);
}

}  // namespace
}  // namespace conclave::frontend
