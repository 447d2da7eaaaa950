// Goal: what the picture counts is the sum over all frontends that this server has heard, each of
// them once, also when they are gone. Method: reports of a few frontends, and of very many.
#include <gtest/gtest.h>

#include "live_fixture.h"

namespace conclave::live {
namespace {

namespace json = boost::json;

FrontendFigures Counted(uint64_t rows) {
  FrontendFigures figures = EmptyFigures();
  figures.rows[RowCell(2, 1, 0, 1)] = rows;
  figures.weights[3] = 0.5 * static_cast<double>(rows);
  figures.probabilities[1] = 0.0004 + static_cast<double>(rows);
  figures.running = 3;
  figures.waiting = 1;
  figures.kv = 0.31234;
  figures.serving.generated = rows;
  figures.serving.finished = {rows, 0, 0, 1};
  figures.workers = {WorkerCalls{.worker = 1, .calls = rows, .seconds = {rows, 1}}};
  figures.pathways[0] = {.rows = rows, .distinct = 1, .other = 0, .top = {{{1, 0}, rows}}};
  return figures;
}

TEST_F(BoardTest, CountsOfAllFrontendsAddUp) {
  board_.Update(SmallCluster());
  board_.Report("f0", 1, Counted(10));
  board_.Report("f1", 1, Counted(5));
  board_.Report("f0", 1, Counted(12));  // counts since its start, not since its last report
  Tick();
  const json::object picture = Snapshot();
  EXPECT_EQ(picture.at("rows").at(RowCell(2, 1, 0, 1)), 17);
  EXPECT_EQ(picture.at("weights").at(3), 8.5);
  EXPECT_EQ(picture.at("probabilities").at(1), 17.001);
  EXPECT_EQ(picture.at("serving").at("generated"), 17);
  EXPECT_EQ(json::serialize(picture.at("serving").at("finished")),
            R"({"stop":17,"length":0,"abort":0,"error":2})");
  EXPECT_EQ(Worker(1).at("calls"), 17);
  EXPECT_EQ(json::serialize(Worker(1).at("call_seconds")), "[17,2]");
  EXPECT_EQ(json::serialize(picture.at("pathways").at("text")),
            R"({"rows":17,"distinct":1,"other":0,"top":[{"experts":[1,0],"rows":17}]})");
  EXPECT_EQ(json::serialize(picture.at("pathways").at("layers")), "[1,3]");
}

TEST_F(BoardTest, AFrontendThatIsGoneOrStartedAgainStaysInTheSums) {
  ClusterPicture picture = SmallCluster();
  board_.Update(picture);
  board_.Report("f0", 1, Counted(10));
  Tick();
  EXPECT_EQ(Snapshot().at("frontends"),
            json::parse(R"([{"id":65536,"name":"f0","epoch":1,"is_reporting":true,"running":3,)"
                        R"("waiting":1,"kv":0.312,"has_api":true}])"));
  picture.frontends = {Frontend("f0", 2)};
  board_.Update(picture);
  Tick();
  EXPECT_EQ(Snapshot().at("frontends").at(0).at("is_reporting"), false);
  EXPECT_EQ(Snapshot().at("serving").at("generated"), 10);
  board_.Report("f0", 2, Counted(1));
  picture.frontends.clear();
  board_.Update(picture);
  Tick();
  EXPECT_EQ(Snapshot().at("serving").at("generated"), 11);
  EXPECT_TRUE(Snapshot().at("frontends").as_array().empty());
}

// Only so many reports are kept one by one; the others are kept as a sum.
TEST_F(BoardTest, TheSumsOutliveThousandStartsOfFrontends) {
  for (uint64_t incarnation = 1; incarnation <= 1000; ++incarnation) {
    board_.Report("f0", incarnation, Counted(2));
  }
  Tick();
  EXPECT_EQ(Snapshot().at("serving").at("generated"), 2000);
}

TEST_F(BoardTest, WhoIsStillThereIsNeverCountedTwiceHoweverManyComeAndGo) {
  ClusterPicture picture = SmallCluster();
  picture.frontends = {Frontend("old", 1)};
  board_.Update(picture);
  board_.Report("old", 1, Counted(1));
  for (uint64_t incarnation = 2; incarnation <= 600; ++incarnation) {
    board_.Report("f0", incarnation, Counted(1));
    board_.Report("old", 1, Counted(incarnation));
  }
  Tick();
  EXPECT_EQ(Snapshot().at("serving").at("generated"), 599 + 600);
  EXPECT_EQ(Snapshot().at("frontends").at(0).at("is_reporting"), true);
}

TEST_F(BoardTest, AFrontendIsOneWhileThePictureNamesItsStart) {
  ClusterPicture picture = SmallCluster();
  EXPECT_FALSE(board_.IsFrontend("f0", 1));
  board_.Update(picture);
  EXPECT_TRUE(board_.IsFrontend("f0", 1));
  EXPECT_FALSE(board_.IsFrontend("f0", 2));
  EXPECT_FALSE(board_.IsFrontend("f1", 1));
  picture.frontends.clear();
  board_.Update(picture);
  EXPECT_FALSE(board_.IsFrontend("f0", 1));
}

}  // namespace
}  // namespace conclave::live
