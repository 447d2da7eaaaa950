// Goal: a dispatcher tells of every attempt how it ended, once, and of every layer; the log of
// stragglers charges a wait to the worker that caused it and keeps the slowest calls of the last
// minutes; a step's attempts are kept for its trace. Method: scripted workers on a fake clock.
#include "conclave/frontend/dispatch_observer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <map>
#include <string>
#include <vector>

#include "conclave/frontend/step_trace.h"
#include "conclave/frontend/straggler_log.h"
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

class Recorder final : public DispatchObserver {
 public:
  void OnAttempt(const AttemptRecord& record) override { attempts.push_back(record); }
  void OnLayer(const LayerRecord& record) override { layers.push_back(record); }

  // "worker number end" of each attempt.
  std::vector<std::string> Ends() const {
    constexpr const char* kNames[] = {"ok", "overtaken", "timeout", "lost", "refused", "abandoned"};
    std::vector<std::string> ends;
    for (const AttemptRecord& attempt : attempts) {
      ends.push_back(std::to_string(attempt.worker.value()) + " " + std::to_string(attempt.number) +
                     " " + kNames[static_cast<size_t>(attempt.end)]);
    }
    return ends;
  }

  std::vector<AttemptRecord> attempts;
  std::vector<LayerRecord> layers;
};

class DispatchObserverTest : public DispatcherFailoverTest {
 protected:
  DispatchObserverTest() { options_.observer = &recorder_; }

  // Expert 0 and 2 on worker 0, 1 and 3 on worker 1.
  void PlaceApart() { links_.Place(PlacementOf({{0}, {1}, {0}, {1}})); }

  Recorder recorder_;
};

TEST_F(DispatchObserverTest, AnAnswerIsToldWithItsTimes) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  PlaceApart();
  Start();
  a.service_us_per_row = 10;
  b.latency = microseconds(800);
  const MonotonicTime start = clock_.Now();
  ASSERT_TRUE(Run(4).ok());
  EXPECT_THAT(recorder_.Ends(), ElementsAre("0 0 ok", "1 0 ok"));
  const AttemptRecord& first = recorder_.attempts[0];
  EXPECT_EQ(first.layer, kLayer);
  EXPECT_EQ(first.rows, 4);
  EXPECT_EQ(first.image_rows, 2);  // every third
  EXPECT_FALSE(first.is_prefill || first.is_inline || first.is_hedge);
  EXPECT_EQ(first.sent_at, start);
  EXPECT_EQ(first.service, microseconds(40));
  EXPECT_EQ(first.network, microseconds(460));
  EXPECT_EQ(first.arrived_at(), start + microseconds(500));
  EXPECT_EQ(first.first_worker, WorkerId(0));
  EXPECT_EQ(recorder_.attempts[1].arrived_at(), start + microseconds(800));
  ASSERT_EQ(recorder_.layers.size(), 1u);
  EXPECT_EQ(recorder_.layers[0].layer, kLayer);
  EXPECT_TRUE(recorder_.layers[0].is_ok);
  EXPECT_EQ(recorder_.layers[0].awaited_at, start);
  EXPECT_EQ(recorder_.layers[0].ended_at, start + microseconds(800));
}

TEST_F(DispatchObserverTest, ALostLinkAndItsRetryAreToldAndTheFirstWorkerNamed) {
  ScriptedChannel* channels[] = {&links_.Add(0), &links_.Add(1)};
  links_.Place(PlacementOf(kBoth));
  Start();
  ASSERT_TRUE(Run(1).ok());
  const int32_t victim = recorder_.attempts[0].worker.value();
  recorder_.attempts.clear();
  channels[victim]->dies_at = clock_.Now() + microseconds(300);
  ASSERT_TRUE(Run(1).ok());
  const std::string lost = std::to_string(victim) + " 0 lost";
  const std::string again = std::to_string(1 - victim) + " 1 ok";
  EXPECT_THAT(recorder_.Ends(), ElementsAre(lost, again));
  EXPECT_EQ(recorder_.attempts[1].first_worker, WorkerId(victim));
  EXPECT_LT(recorder_.attempts[1].first_sent_at, recorder_.attempts[1].sent_at);
}

TEST_F(DispatchObserverTest, AHedgeTellsOfBoth) {
  options_.link.hedge_min = milliseconds(2);
  ScriptedChannel* channels[] = {&links_.Add(0), &links_.Add(1)};
  links_.Place(PlacementOf(kBoth));
  Start();
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(Run(1).ok());
  }
  const int32_t slow = recorder_.attempts.back().worker.value();
  channels[slow]->is_hung = true;
  recorder_.attempts.clear();
  ASSERT_TRUE(Run(1).ok());
  EXPECT_THAT(recorder_.Ends(), ElementsAre(std::to_string(1 - slow) + " 1 ok",
                                            std::to_string(slow) + " 0 overtaken"));
  EXPECT_TRUE(recorder_.attempts[0].is_hedge);
}

TEST_F(DispatchObserverTest, ATimeoutAndARefusalAreTold) {
  options_.is_hedging = false;
  ScriptedChannel* channels[] = {&links_.Add(0), &links_.Add(1)};
  links_.Place(PlacementOf(kBoth));
  Start();
  ASSERT_TRUE(Run(1).ok());
  int32_t first = recorder_.attempts[0].worker.value();
  recorder_.attempts.clear();
  channels[first]->not_held = {0, 1, 2, 3};
  ASSERT_TRUE(Run(1).ok());
  EXPECT_THAT(recorder_.Ends(), ElementsAre(std::to_string(first) + " 0 refused",
                                            std::to_string(1 - first) + " 1 ok"));
  EXPECT_EQ(recorder_.attempts[0].code, absl::StatusCode::kNotFound);
  channels[first]->not_held.clear();
  for (ScriptedChannel* channel : channels) {
    channel->is_hung = true;
  }
  recorder_.attempts.clear();
  recorder_.layers.clear();
  EXPECT_FALSE(Run(1).ok());
  // One call gives up and fails the layer, which takes the other with it.
  ASSERT_FALSE(recorder_.attempts.empty());
  EXPECT_EQ(recorder_.attempts.front().end, AttemptEnd::kTimeout);
  for (const AttemptRecord& attempt : recorder_.attempts) {
    EXPECT_TRUE(attempt.end == AttemptEnd::kTimeout || attempt.end == AttemptEnd::kAbandoned);
  }
  ASSERT_EQ(recorder_.layers.size(), 1u);
  EXPECT_FALSE(recorder_.layers[0].is_ok);
}

TEST_F(DispatchObserverTest, WhatIsAbandonedIsTold) {
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  PlaceApart();
  Start();
  a.refusal = InvalidArgument("bad_items", "call: no");
  b.is_hung = true;
  EXPECT_FALSE(Run(4).ok());
  EXPECT_THAT(recorder_.Ends(), ElementsAre("0 0 refused", "1 0 abandoned"));
}

TEST_F(DispatchObserverTest, AStepKeepsItsAttemptsAndHandsThemOn) {
  StepTrace step(&recorder_);
  options_.observer = &step;
  links_.Add(0);
  links_.Add(1);
  PlaceApart();
  Start();
  ASSERT_TRUE(Run(4).ok());
  EXPECT_TRUE(step.attempts().empty());
  step.Begin();
  ASSERT_TRUE(Run(4).ok());
  step.End();
  ASSERT_TRUE(Run(4).ok());
  EXPECT_EQ(step.attempts().size(), 2u);
  EXPECT_FALSE(step.has_trouble());
  EXPECT_EQ(recorder_.attempts.size(), 6u);
  EXPECT_EQ(recorder_.layers.size(), 3u);
  step.Begin();
  AttemptRecord lost;
  lost.end = AttemptEnd::kLinkLost;
  for (size_t i = 0; i < StepTrace::kAttemptsMax + 3; ++i) {
    step.OnAttempt(lost);
  }
  EXPECT_TRUE(step.has_trouble());
  EXPECT_EQ(step.attempts().size(), StepTrace::kAttemptsMax);
  EXPECT_EQ(step.num_left_out(), 3);
}

class StragglerLogTest : public DispatcherFailoverTest {
 protected:
  StragglerLogTest() : log_(clock_) { options_.observer = &log_; }

  // Two calls that came after so long, in the order given, of a layer that was awaited from
  // `awaited` on.
  void Layer(std::vector<std::pair<int32_t, microseconds>> arrivals, microseconds awaited = {}) {
    const MonotonicTime start = clock_.Now();
    for (const auto& [worker, after] : arrivals) {
      AttemptRecord record;
      record.worker = record.first_worker = WorkerId(worker);
      record.link = record.first_link = static_cast<size_t>(worker);
      record.layer = kLayer;
      record.rows = 4;
      record.sent_at = record.first_sent_at = start;
      record.service = after;
      record.ended_at = start + after;
      log_.OnAttempt(record);
    }
    log_.OnLayer({kLayer, 0, true, start + awaited, start + milliseconds(100)});
  }
  boost::json::array Calls() const {
    return boost::json::parse(log_.Json()).at("calls").as_array();
  }

  StragglerLog log_;
};

TEST_F(StragglerLogTest, TheLastOfALayerIsChargedWithWhatTheOthersWaited) {
  Layer({{0, microseconds(500)}, {1, microseconds(800)}});
  Layer({{1, microseconds(900)}, {0, microseconds(400)}, {2, microseconds(600)}});
  Layer({{1, microseconds(700)}});  // nobody waits for the only one
  const auto workers = log_.Workers();
  ASSERT_EQ(workers.size(), 1u);
  EXPECT_EQ(workers[0].worker, WorkerId(1));
  EXPECT_EQ(workers[0].calls, 2u);
  EXPECT_EQ(workers[0].waited, microseconds(300 + 300));
}

TEST_F(StragglerLogTest, WhileTheFrontendWasBusyNobodyWaited) {
  Layer({{0, microseconds(500)}, {1, microseconds(800)}}, microseconds(700));
  ASSERT_EQ(log_.Workers().size(), 1u);
  EXPECT_EQ(log_.Workers()[0].waited, microseconds(100));
  Layer({{0, microseconds(500)}, {1, microseconds(800)}}, microseconds(900));
  EXPECT_EQ(log_.Workers()[0].calls, 1u);
}

TEST_F(StragglerLogTest, TheWorkerThatDidNotAnswerIsToBlameForTheRetry) {
  options_.is_hedging = false;
  ScriptedChannel& a = links_.Add(0);
  ScriptedChannel& b = links_.Add(1);
  ScriptedChannel& c = links_.Add(2);
  links_.Place(PlacementOf({{0, 2}, {1}, {0, 2}, {1}}));
  Start();
  // Whichever of the two replicas gets the call dies with it.
  ASSERT_TRUE(Run(4).ok());
  ScriptedChannel& victim = a.num_calls > 0 ? a : c;
  const int32_t victims_id = &victim == &a ? 0 : 2;
  victim.dies_at = clock_.Now() + milliseconds(2);
  victim.latency = milliseconds(5);
  b.latency = microseconds(500);
  const auto before = log_.Workers();
  ASSERT_TRUE(Run(4).ok());
  std::map<int32_t, uint64_t> calls;
  for (const StragglerLog::Waits& waits : log_.Workers()) {
    calls[waits.worker.value()] = waits.calls;
  }
  for (const StragglerLog::Waits& waits : before) {
    calls[waits.worker.value()] -= waits.calls;
  }
  EXPECT_EQ(calls[victims_id], 1u);
  EXPECT_EQ(calls[2 - victims_id], 0u);
  const boost::json::object slowest = Calls()[0].as_object();
  EXPECT_EQ(slowest.at("worker").as_int64(), 2 - victims_id);
  EXPECT_EQ(slowest.at("first_worker").as_int64(), victims_id);
  EXPECT_EQ(slowest.at("attempts").as_int64(), 2);
  EXPECT_TRUE(slowest.at("is_last").as_bool());
  EXPECT_GT(slowest.at("total_us").as_int64(), 2000);
}

TEST_F(StragglerLogTest, TheSlowestOfTheWindowAreKeptSlowestFirst) {
  for (int i = 1; i <= 1000; ++i) {
    // A fixed order that is neither rising nor falling.
    Layer({{i % 7, microseconds(i * 389 % 1009 + 1)}});
  }
  const boost::json::array calls = Calls();
  ASSERT_EQ(calls.size(), static_cast<size_t>(StragglerLog::kCallsMax));
  std::vector<int64_t> all;
  for (int i = 1; i <= 1000; ++i) {
    all.push_back(i * 389 % 1009 + 1);
  }
  std::sort(all.rbegin(), all.rend());
  for (size_t i = 0; i < calls.size(); ++i) {
    EXPECT_EQ(calls[i].at("total_us").as_int64(), all[i]);
  }
}

TEST_F(StragglerLogTest, CallsLeaveTheWindowByTheMinute) {
  Layer({{0, microseconds(9000)}});
  for (int minute = 0; minute < 10; ++minute) {
    EXPECT_EQ(Calls()[0].at("total_us").as_int64(), 9000) << minute;
    Layer({{1, microseconds(500 + minute)}});
    clock_.Advance(std::chrono::minutes(1));
  }
  EXPECT_EQ(Calls()[0].at("total_us").as_int64(), 9000);
  clock_.Advance(std::chrono::minutes(1));
  EXPECT_EQ(Calls()[0].at("total_us").as_int64(), 509);
  clock_.Advance(std::chrono::hours(1));
  EXPECT_TRUE(Calls().empty());
  // A short call of a new minute is the slowest there is.
  Layer({{0, microseconds(3)}});
  EXPECT_EQ(Calls()[0].at("total_us").as_int64(), 3);
}

TEST_F(StragglerLogTest, TheTextHasWhatTheHeaderSays) {
  Layer({{0, microseconds(500)}, {1, microseconds(800)}});
  clock_.Advance(std::chrono::seconds(2));
  const boost::json::object page = boost::json::parse(log_.Json()).as_object();
  EXPECT_EQ(page.at("window_seconds").as_int64(), 600);
  EXPECT_THAT(
      log_.Json(),
      ::testing::HasSubstr(
          R"({"age_seconds":1.9992,"layer":3,"phase":"decode","worker":1,"first_worker":1,)"
          R"("rows":4,"image_rows":0,"attempts":1,"total_us":800,"queue_us":0,"service_us":800,)"
          R"("network_us":0,"is_last":true,"delayed_us":300})"));
  EXPECT_THAT(log_.Json(), ::testing::HasSubstr(R"("workers":[{"worker":1,"straggler_calls":1,)"));
  EXPECT_EQ(page.at("workers").as_array()[0].at("straggler_seconds").as_double(), 3e-4);
}

TEST_F(StragglerLogTest, CallsWithinTheProcessAreNotLookedAt) {
  AttemptRecord record;
  record.is_inline = true;
  record.service = microseconds(500);
  log_.OnAttempt(record);
  log_.OnAttempt(record);
  log_.OnLayer({kLayer, 0, true, clock_.Now(), clock_.Now()});
  EXPECT_TRUE(log_.Workers().empty());
  EXPECT_TRUE(Calls().empty());
}

}  // namespace
}  // namespace conclave::frontend
