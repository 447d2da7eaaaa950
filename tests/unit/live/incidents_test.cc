// Goal: an incident begins with the last sign of life, ends with the repair, and costs what was
// counted between the two. Method: a course of events with a sample of counts every second.
#include "incidents.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace conclave::live {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

class IncidentsTest : public ::testing::Test {
 protected:
  // A second passes; frontends report what they have counted.
  void Second() { incidents_.Note(now_ += 1, sums_); }
  void Resend(size_t worker, uint64_t rows) {
    sums_.workers[worker].rows_resent += rows;
    ++sums_.workers[worker].calls_resent;
  }
  const Incident& last() const { return incidents_.all().back(); }

  static constexpr Coverage kWhole{.epoch = 4, .is_planning = false, .lowest = 2, .wanted = 2};
  static constexpr Coverage kShort{.epoch = 5, .is_planning = false, .lowest = 1, .wanted = 2};
  static constexpr Coverage kRepaired{.epoch = 6, .is_planning = false, .lowest = 2, .wanted = 2};

  IncidentsTest() {
    sums_.workers = {WorkerCalls{.worker = 0, .seconds = {}},
                     WorkerCalls{.worker = 1, .seconds = {}}};
    sums_.serving.recovery = {0, 0};
    for (int i = 0; i < 3; ++i) {
      Second();
    }
  }

  double now_ = 100;
  FrontendFigures sums_;
  Incidents incidents_;
};

TEST_F(IncidentsTest, ASuspicionEndsWhenTheWorkerAnswers) {
  incidents_.OnSuspect(1, "w1", now_ - 0.75, now_, kWhole);
  EXPECT_EQ(last().name, "w1");
  EXPECT_FALSE(last().is_death);
  EXPECT_EQ(last().begin, now_ - 0.75);
  EXPECT_EQ(last().detected_after, 0.75);
  EXPECT_EQ(last().epoch_before, 4u);
  EXPECT_FALSE(last().restored_after.has_value());
  incidents_.OnCoverage(now_ + 1, kRepaired);
  EXPECT_FALSE(last().restored_after.has_value()) << "it is still silent";
  incidents_.OnRecovered(1, now_ + 2);
  EXPECT_EQ(last().restored_after, 2.75);
  EXPECT_FALSE(last().epoch_after.has_value());
  EXPECT_THAT(incidents_.all(), SizeIs(1));
}

TEST_F(IncidentsTest, ASuspicionBecomesADeathThatALaterEpochRepairs) {
  incidents_.OnSuspect(1, "w1", now_ - 1, now_, kWhole);
  incidents_.OnDead(1, "w1", now_ - 1, now_ + 1, kWhole);
  ASSERT_THAT(incidents_.all(), SizeIs(1));
  EXPECT_TRUE(last().is_death);
  EXPECT_EQ(last().detected_after, 1) << "of the suspicion, which came first";
  incidents_.OnRecovered(1, now_ + 1);
  EXPECT_FALSE(last().restored_after.has_value()) << "the dead do not answer";
  incidents_.OnCoverage(now_ + 2, kShort);
  EXPECT_EQ(last().epoch_after, 5u);
  EXPECT_FALSE(last().restored_after.has_value());
  incidents_.OnCoverage(now_ + 4, kRepaired);
  EXPECT_EQ(last().epoch_after, 6u);
  EXPECT_EQ(last().restored_after, 5);
}

TEST_F(IncidentsTest, ABrokenStreamIsADeathAtOnce) {
  incidents_.OnDead(0, "w0", now_ - 0.125, now_, kWhole);
  EXPECT_TRUE(last().is_death);
  EXPECT_EQ(last().detected_after, 0.125);
  // Another worker takes over at once: as many replicas as before.
  incidents_.OnCoverage(now_ + 0.25, kRepaired);
  EXPECT_EQ(last().restored_after, 0.375);
}

TEST_F(IncidentsTest, WhatCannotBeAsBeforeIsRestoredOnceItStaysAsItIs) {
  incidents_.OnDead(1, "w1", now_, now_, kWhole);
  incidents_.OnCoverage(now_ + 1, kShort);
  incidents_.OnCoverage(now_ + 3, kShort);
  EXPECT_FALSE(last().restored_after.has_value());
  Coverage planning = kShort;
  planning.is_planning = true;
  incidents_.OnCoverage(now_ + 5, planning);
  EXPECT_FALSE(last().restored_after.has_value()) << "something is still being loaded";
  incidents_.OnCoverage(now_ + 6, kShort);
  EXPECT_EQ(last().restored_after, 1) << "with the epoch, not with the wait behind it";
}

TEST_F(IncidentsTest, AnExpertOnNoWorkerIsNotRestoredByTime) {
  incidents_.OnDead(1, "w1", now_, now_, kWhole);
  Coverage none = kShort;
  none.lowest = 0;
  incidents_.OnCoverage(now_ + 1, none);
  incidents_.OnCoverage(now_ + 100, none);
  EXPECT_FALSE(last().restored_after.has_value());
}

TEST_F(IncidentsTest, CostsBeginWithTheLastSignOfLifeAndNotWithTheDetection) {
  Resend(1, 1000);  // long before
  sums_.serving.finished[3] = 7;
  sums_.serving.recovery = {5, 5};
  Second();
  const double heard_at = now_;
  Resend(1, 14);
  sums_.serving.requests_touched = 3;
  Second();  // sent again before anybody says that the worker is dead
  incidents_.OnDead(1, "w1", heard_at, now_, kWhole);
  Resend(1, 6);
  Resend(0, 500);  // of another one
  sums_.serving.finished[3] = 8;
  sums_.serving.recovery = {5, 7};
  Second();
  EXPECT_EQ(last().rows_resent, 20u);
  EXPECT_EQ(last().calls_resent, 2u);
  EXPECT_EQ(last().requests_touched, 3u);
  EXPECT_EQ(last().requests_failed, 1u);
  EXPECT_THAT(last().recovery, ElementsAre(0, 2));
}

TEST_F(IncidentsTest, CostsAreFrozenOnceReportsHaveHadTheirTime) {
  incidents_.OnSuspect(1, "w1", now_, now_, kWhole);
  incidents_.OnRecovered(1, now_);
  Resend(1, 5);
  Second();
  EXPECT_EQ(last().rows_resent, 5u) << "reports are a second behind";
  for (int i = 0; i < 3; ++i) {
    Second();
  }
  Resend(1, 100);
  Second();
  EXPECT_EQ(last().rows_resent, 5u);
}

TEST_F(IncidentsTest, TwoWorkersAtOnceAreTwoIncidents) {
  incidents_.OnDead(0, "w0", now_, now_, kWhole);
  incidents_.OnSuspect(1, "w1", now_, now_, kWhole);
  Resend(0, 3);
  Resend(1, 4);
  Second();
  ASSERT_THAT(incidents_.all(), SizeIs(2));
  EXPECT_EQ(incidents_.all()[0].rows_resent, 3u);
  EXPECT_EQ(incidents_.all()[1].rows_resent, 4u);
  incidents_.OnRecovered(1, now_);
  EXPECT_FALSE(incidents_.all()[0].restored_after.has_value());
  EXPECT_TRUE(incidents_.all()[1].restored_after.has_value());
  EXPECT_NE(incidents_.all()[0].id, incidents_.all()[1].id);
}

TEST_F(IncidentsTest, TheNextHangOfAWorkerIsAnotherIncident) {
  incidents_.OnSuspect(1, "w1", now_, now_, kWhole);
  incidents_.OnSuspect(1, "w1", now_, now_ + 1, kWhole);
  EXPECT_THAT(incidents_.all(), SizeIs(1));
  incidents_.OnRecovered(1, now_ + 1);
  incidents_.OnSuspect(1, "w1", now_ + 2, now_ + 3, kWhole);
  ASSERT_THAT(incidents_.all(), SizeIs(2));
  EXPECT_EQ(last().begin, now_ + 2);
}

TEST_F(IncidentsTest, TheLast100AreKept) {
  for (int i = 0; i < 250; ++i) {
    incidents_.OnSuspect(i, "w", now_, now_, kWhole);
  }
  Second();
  ASSERT_THAT(incidents_.all(), SizeIs(100));
  EXPECT_EQ(last().worker, 249);
  EXPECT_EQ(incidents_.all().front().worker, 150);
}

}  // namespace
}  // namespace conclave::live
