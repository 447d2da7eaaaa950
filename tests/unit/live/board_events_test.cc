// Goal: the list of events says what has happened, once, in words and in numbers. Method: two
// states of a cluster, or two reports of a frontend, and the events between them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "live_fixture.h"

namespace conclave::live {
namespace {

namespace json = boost::json;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class BoardEventsTest : public BoardTest {
 protected:
  // The small cluster as it stands, its arrival forgotten.
  BoardEventsTest() {
    board_.Update(picture_);
    Tick();
  }
  WorkerPicture& w1() { return picture_.workers[1]; }
  // What becomes of w1 on its way from one state to the other.
  std::vector<std::string> Change(WorkerState from, WorkerState to) {
    w1().state = from;
    EventsOf(picture_);
    w1().state = to;
    return EventsOf(picture_);
  }

  ClusterPicture picture_ = SmallCluster();
};

TEST_F(BoardTest, TheFirstPictureStartsTheListAndBringsEverybody) {
  EXPECT_THAT(EventsOf(SmallCluster()),
              ElementsAre("started: router watches", "joined: w0 joined", "live: w0 serves experts",
                          "joined: w1 joined", "live: w1 serves experts",
                          "epoch: epoch 1: 8 replicas more, 0 fewer",
                          "frontend_joined: frontend f0 joined"));
  EXPECT_THAT(EventsOf(SmallCluster()), IsEmpty());
}

TEST_F(BoardEventsTest, AnEventHasANumberATimeAndItsWorker) {
  w1().is_distrusted = true;
  EventsOf(picture_);
  EXPECT_EQ(json::serialize(tick_.at("events")),
            R"([{"id":8,"time":1001,"kind":"distrusted","worker":1,"name":"w1",)"
            R"("text":"w1 gets no experts until it is started again"}])");
}

TEST_F(BoardEventsTest, AWorkersStatesAreEvents) {
  using enum WorkerState;
  EXPECT_THAT(Change(kJoining, kLive), ElementsAre("live: w1 serves experts"));
  EXPECT_THAT(Change(kLive, kDraining), ElementsAre("draining: w1 is being drained"));
  EXPECT_THAT(Change(kDraining, kDrained), ElementsAre("drained: w1 is drained"));
  EXPECT_THAT(Change(kDrained, kLive),
              ElementsAre("undrained: w1 stays: its drain was taken back"));
  w1().heartbeat_age = 0.85;
  EXPECT_THAT(Change(kLive, kSuspect), ElementsAre("suspect: w1 is suspected: silent for 850 ms"));
  EXPECT_EQ(tick_.at("events").at(0).at("silent"), 0.85);
  EXPECT_THAT(Change(kSuspect, kLive), ElementsAre("recovered: w1 answers again"));
}

TEST_F(BoardEventsTest, ASuspectRecoversIntoAnyStateOfWhoAnswers) {
  using enum WorkerState;
  EXPECT_THAT(Change(kSuspect, kJoining), ElementsAre("recovered: w1 answers again"));
  EXPECT_THAT(Change(kSuspect, kDraining),
              ElementsAre("recovered: w1 answers again", "draining: w1 is being drained"));
  const json::object picture = Snapshot();
  for (const json::value& incident : picture.at("incidents").as_array()) {
    EXPECT_FALSE(incident.at("restored_after").is_null());
  }
}

TEST_F(BoardEventsTest, ALossIsADeathAndAfterADrainItIsNone) {
  w1().heartbeat_age = 0.25;
  board_.Update(picture_);
  now_ += 0.5;
  picture_.workers.pop_back();
  EXPECT_THAT(EventsOf(picture_),
              ElementsAre("dead: w1 is dead, 750 ms after its last sign of life"));
  EXPECT_EQ(tick_.at("events").at(0).at("after"), 0.75);
  picture_.workers[0].state = WorkerState::kDraining;
  EventsOf(picture_);
  picture_.workers.clear();
  EXPECT_THAT(EventsOf(picture_), ElementsAre("left: w0 has left"));
}

TEST_F(BoardEventsTest, WhatWasLoadedIsCounted) {
  w1().loading = 2;
  EXPECT_THAT(EventsOf(picture_), IsEmpty());
  w1().loading = 0;
  w1().experts = 1;
  EXPECT_THAT(EventsOf(picture_),
              ElementsAre("loaded: w1 has loaded what it was asked for, and serves 1 expert"));
  EXPECT_EQ(tick_.at("events").at(0).at("replicas"), 1);
}

TEST_F(BoardEventsTest, AnEpochSaysHowManyReplicasMoved) {
  picture_.epoch = 2;
  picture_.placement = {{0}, {0, 1}, {1, 0, 2}, {}};
  EXPECT_THAT(EventsOf(picture_), ElementsAre("epoch: epoch 2: 1 replica more, 3 fewer",
                                              "unserved: 1 expert on no worker"));
  EXPECT_EQ(tick_.at("events").at(0).at("epoch"), 2);
  EXPECT_EQ(tick_.at("events").at(0).at("moves"), 3);
  EXPECT_EQ(tick_.at("events").at(1).at("experts"), 1);
  picture_.epoch = 3;
  picture_.placement[3] = {0};
  EXPECT_THAT(EventsOf(picture_), ElementsAre("epoch: epoch 3: 1 replica more, 0 fewer",
                                              "served: every expert is served again"));
}

TEST_F(BoardEventsTest, APlanIsAnEventWhenItBegins) {
  picture_.plan = 4;
  EXPECT_THAT(EventsOf(picture_), ElementsAre("plan: a new plan is carried out"));
  EXPECT_THAT(EventsOf(picture_), IsEmpty());
  picture_.plan = 0;
  EXPECT_THAT(EventsOf(picture_), IsEmpty());
}

TEST_F(BoardEventsTest, FrontendsComeAndGoByName) {
  picture_.frontends = {Frontend("f1")};
  EXPECT_THAT(EventsOf(picture_), ElementsAre("frontend_joined: frontend f1 joined",
                                              "frontend_left: frontend f0 left"));
  // Started again: the name is what counts.
  picture_.frontends[0].incarnation = 2;
  EXPECT_THAT(EventsOf(picture_), IsEmpty());
}

TEST_F(BoardEventsTest, WhatFrontendsHadToDoAgainIsTold) {
  FrontendFigures figures = EmptyFigures();
  figures.workers = {
      WorkerCalls{.worker = 1, .calls_resent = 5, .rows_resent = 50, .hedges = 5, .seconds = {}}};
  figures.serving.finished[3] = 9;
  board_.Report("f0", 1, figures);
  Tick();
  EXPECT_THAT(Events(), IsEmpty()) << "what is heard first may be long ago";
  figures.workers[0].calls_resent += 1;
  figures.workers[0].rows_resent += 14;
  figures.workers[0].hedges += 2;
  figures.serving.rescued += 1;
  figures.serving.finished[3] += 3;
  board_.Report("f0", 1, figures);
  Tick();
  EXPECT_THAT(Events(), ElementsAre("resent: 1 call of w1 (14 rows) sent to others by f0",
                                    "hedged: 2 slow calls of w1 sent a second time by f0",
                                    "rescued: 1 call that nobody served computed by f0",
                                    "failed: 3 requests failed at f0"));
  const json::array& events = tick_.at("events").as_array();
  EXPECT_EQ(events[0].at("rows"), 14);
  EXPECT_EQ(events[0].at("calls"), 1);
  EXPECT_EQ(events[1].at("calls"), 2);
  EXPECT_EQ(events[2].at("calls"), 1);
  EXPECT_EQ(events[3].at("requests"), 3);
  EXPECT_EQ(events[3].at("worker"), -1);
}

TEST_F(BoardEventsTest, OthersAddEventsOfTheirOwn) {
  board_.AddEvent("recording", -1, "f0", "routing is \"recorded\"", {{"rows", 1.5}});
  Tick();
  EXPECT_THAT(Events(), ElementsAre("recording: routing is \"recorded\""));
  EXPECT_EQ(tick_.at("events").at(0).at("rows"), 1.5);
}

TEST_F(BoardEventsTest, TheLast500AreKept) {
  for (int i = 0; i < 600; ++i) {
    board_.AddEvent("recording", -1, "", std::to_string(i));
  }
  Tick();
  const json::object picture = Snapshot();
  const json::array& events = picture.at("events").as_array();
  ASSERT_EQ(events.size(), 500u);
  EXPECT_EQ(events.front().at("text"), "100");
  EXPECT_EQ(events.back().at("text"), "599");
}

}  // namespace
}  // namespace conclave::live
