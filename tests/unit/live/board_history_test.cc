// Goal: the history is a quarter of an hour of rows in steps of ten seconds, and what it began with
// plus all that its steps added is what stands there now. Method: a board on a made-up clock.
#include <gtest/gtest.h>

#include "live_fixture.h"

namespace conclave::live {
namespace {

namespace json = boost::json;

// times[0] and the steps behind it, summed up.
json::array LastRows(const json::object& history) {
  json::array rows = history.at("rows").as_array();
  for (const json::value& step : history.at("steps").as_array()) {
    const json::array& pairs = step.as_array();
    for (size_t i = 0; i < pairs.size(); i += 2) {
      json::value& row = rows.at(static_cast<size_t>(pairs[i].as_int64()));
      row = row.as_int64() + pairs[i + 1].as_int64();
    }
  }
  return rows;
}

TEST_F(BoardTest, HistoryHasAStepEveryTenSecondsForAQuarterOfAnHour) {
  FrontendFigures figures = EmptyFigures();
  for (int second = 0; second <= 20 * 60; ++second) {
    figures.rows[static_cast<size_t>(second) % figures.rows.size()] += 3;
    board_.Report("f0", 1, figures);
    Tick();
    if (second % 100 == 0) {
      const json::object history = ParseObject(board_.History());
      ASSERT_EQ(LastRows(history), Snapshot().at("rows")) << second;
      ASSERT_EQ(history.at("times").as_array().back().to_number<double>(), now_) << second;
    }
  }
  const json::object history = ParseObject(board_.History());
  EXPECT_EQ(history.at("step"), 10);
  ASSERT_EQ(history.at("steps").as_array().size(), 90u);
  ASSERT_EQ(history.at("times").as_array().size(), 91u);
  EXPECT_EQ(history.at("times").at(0).to_number<double>(), now_ - 900);
  EXPECT_NE(history.at("rows"), json::value(json::array(figures.rows.size(), 0)));
}

TEST_F(BoardTest, AStepInWhichNothingHappenedIsEmpty) {
  board_.Report("f0", 1, EmptyFigures());
  for (int i = 0; i < 21; ++i) {
    Tick();
  }
  EXPECT_EQ(json::serialize(ParseObject(board_.History()).at("steps")), "[[],[]]");
}

TEST_F(BoardTest, HistoryOfALargeModelHasFewerStepsAndStaysSmall) {
  FrontendFigures figures = EmptyFigures();
  figures.model.layers.clear();
  for (int32_t layer = 0; layer < 40; ++layer) {
    figures.model.layers.push_back({layer, 256});
  }
  figures.rows.assign(NumExperts(figures.model.layers) * kCellsPerExpert, 0);
  for (int step = 0; step < 6; ++step) {
    for (uint64_t& rows : figures.rows) {
      rows += 12345;
    }
    board_.Report("f0", 1, figures);
    Tick();
    now_ += 9;
  }
  const std::string text = board_.History();
  EXPECT_LT(text.size(), size_t{4} << 20);
  const json::object history = ParseObject(text);
  EXPECT_EQ(history.at("steps").as_array().size(), 250'000 / figures.rows.size());
  EXPECT_EQ(LastRows(history), Snapshot().at("rows"));
}

TEST_F(BoardTest, AModelThatIsKnownAtLastBeginsTheHistory) {
  board_.Update(SmallCluster());
  Tick();
  EXPECT_EQ(ParseObject(board_.History()).at("rows").as_array().size(), 0u);
  FrontendFigures figures = EmptyFigures();
  figures.model.layers.push_back({5, 2});
  figures.rows.resize(6 * kCellsPerExpert);
  board_.Report("f0", 1, figures);
  now_ += 9;
  Tick();
  const json::object history = ParseObject(board_.History());
  EXPECT_EQ(history.at("rows").as_array().size(), 6 * kCellsPerExpert);
  EXPECT_EQ(history.at("times").at(0).to_number<double>(), now_);
}

}  // namespace
}  // namespace conclave::live
