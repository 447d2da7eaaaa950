// Goal: figures of several frontends add up field by field. Method: the same figures once, twice
// and in parts.
#include "conclave/live/figures.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace conclave::live {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

TEST(FiguresTest, ExpertsOfAllLayersAreCounted) {
  EXPECT_EQ(NumExperts({}), 0u);
  EXPECT_EQ(NumExperts({{0, 4}, {3, 7}}), 11u);
}

TEST(FiguresTest, CellsOfAnExpertStandAsTheyAreWrittenDown) {
  // docs/live.md: rows[u*8 + rank*4 + phase*2 + modality].
  EXPECT_EQ(RowCell(0, 0, 0, 0), 0u);
  EXPECT_EQ(RowCell(0, 0, 0, 1), 1u);
  EXPECT_EQ(RowCell(0, 0, 1, 0), 2u);
  EXPECT_EQ(RowCell(5, 1, 1, 1), 5u * 8 + 4 + 2 + 1);
}

TEST(FiguresTest, IntoNothingAFrontendsFiguresAreAsTheyWere) {
  FrontendFigures from;
  from.model.name = "demo";
  from.model.layers = {{0, 1}};
  from.rows = {1, 2, 3, 4, 5, 6, 7, 8};
  from.weights = {0.5, 0.25};
  from.probabilities = {0.75};
  from.running = 2;
  from.kv = 0.5;
  from.serving.cached = 7;
  from.serving.ttft = {1, 2};
  from.workers = {WorkerCalls{.worker = 3, .calls = 4, .seconds = {4}}};
  from.pathways[1] = {.rows = 9, .distinct = 2, .other = 1, .top = {{{1}, 6}, {{0}, 2}}};
  FrontendFigures sum;
  Add(from, sum);
  EXPECT_EQ(sum.model, from.model);
  EXPECT_EQ(sum.rows, from.rows);
  EXPECT_EQ(sum.weights, from.weights);
  EXPECT_EQ(sum.probabilities, from.probabilities);
  EXPECT_EQ(sum.running, 2);
  EXPECT_EQ(sum.kv, 0.5);
  EXPECT_EQ(sum.serving, from.serving);
  EXPECT_EQ(sum.workers, from.workers);
  EXPECT_EQ(sum.pathways, from.pathways);
}

TEST(FiguresTest, EveryCountOfServingIsAdded) {
  Serving one;
  one.prompt_text = 1;
  one.prompt_image = 2;
  one.cached = 3;
  one.generated = 4;
  one.finished = {5, 6, 7, 8};
  one.images = 9;
  one.image_hits = 10;
  one.preemptions = 11;
  one.requests_touched = 12;
  one.rescued = 13;
  one.ttft = {14, 15};
  one.itl = {16};
  one.recovery = {17, 18, 19};
  Serving two;
  two.prompt_text = 2;
  two.prompt_image = 4;
  two.cached = 6;
  two.generated = 8;
  two.finished = {10, 12, 14, 16};
  two.images = 18;
  two.image_hits = 20;
  two.preemptions = 22;
  two.requests_touched = 24;
  two.rescued = 26;
  two.ttft = {28, 30};
  two.itl = {32};
  two.recovery = {34, 36, 38};
  FrontendFigures from;
  from.serving = one;
  FrontendFigures sum;
  Add(from, sum);
  Add(from, sum);
  EXPECT_EQ(sum.serving, two);
}

TEST(FiguresTest, WorkersAreAddedByTheirIdAndStayInOrder) {
  const auto calls = [](int32_t worker, uint64_t n) {
    return WorkerCalls{worker, n, n, n, n, n, n, n, n, n, n, {n}};
  };
  FrontendFigures a;
  a.workers = {calls(1, 10), calls(5, 20)};
  FrontendFigures b;
  b.workers = {calls(0, 1), calls(5, 2), calls(9, 3)};
  Add(b, a);
  EXPECT_THAT(a.workers, ElementsAre(calls(0, 1), calls(1, 10), calls(5, 22), calls(9, 3)));
}

TEST(FiguresTest, PathsMergeMostRowsFirstAndThe64OfThemStay) {
  FrontendFigures a;
  a.pathways[0] = {.rows = 12, .distinct = 2, .other = 1, .top = {{{0, 0}, 8}, {{1, 0}, 3}}};
  FrontendFigures b;
  b.pathways[0] = {.rows = 14, .distinct = 2, .other = 2, .top = {{{1, 0}, 9}, {{0, 1}, 3}}};
  Add(b, a);
  const PathCounts& merged = a.pathways[0];
  EXPECT_EQ(merged.rows, 26u);
  EXPECT_EQ(merged.other, 3u);
  EXPECT_EQ(merged.distinct, 3u);
  EXPECT_THAT(merged.top, ElementsAre(Path{{1, 0}, 12}, Path{{0, 0}, 8}, Path{{0, 1}, 3}));

  FrontendFigures many;
  for (int32_t i = 0; i < 100; ++i) {
    many.pathways[0].top.push_back({{i, i}, 5});
  }
  Add(many, a);
  EXPECT_THAT(a.pathways[0].top, SizeIs(kTopPaths));
  EXPECT_EQ(a.pathways[0].distinct, 102u);
  EXPECT_EQ(a.pathways[0].top[0], (Path{{0, 0}, 13}));
  EXPECT_EQ(a.pathways[0].top[2], (Path{{1, 1}, 5})) << "ties by experts";
}

}  // namespace
}  // namespace conclave::live
