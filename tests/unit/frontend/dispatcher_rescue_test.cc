// Goal: an expert that no worker serves is computed by the frontend itself, after a wait and only
// as long as that lasts. Method: a rescue by script beside the scripted links.
#include "dispatcher_fixture.h"

namespace conclave::frontend {
namespace {

using DispatcherRescueTest = DispatcherFailoverTest;

TEST_F(DispatcherRescueTest, WhatNobodyServesIsRescuedUntilSomebodyDoes) {
  ScriptedRescue rescue(clock_);
  options_.rescue = &rescue;
  ScriptedChannel& a = links_.Add(0);
  links_.Add(1);
  links_.Place(PlacementOf({{0}, {0}, {1}, {1}}));
  Start();
  ASSERT_TRUE(Run(8).ok());
  EXPECT_EQ(rescue.num_loads, 0);
  a.dies_at = clock_.Now();
  ASSERT_TRUE(Run(8).ok());
  EXPECT_GE(took_, options_.rescue_after);
  EXPECT_LE(took_, options_.rescue_after + milliseconds(50));
  EXPECT_EQ(rescue.num_loads, 2);
  EXPECT_EQ(rescue.held.size(), 2u);
  EXPECT_GE(dispatcher_->Stats().rescues, 1u);
  // The next layers do not wait.
  ASSERT_TRUE(Run(8, true).ok());
  EXPECT_LE(took_, milliseconds(10));
  EXPECT_EQ(rescue.num_loads, 2);
  // Another incarnation of the worker serves them again.
  ScriptedChannel& again = links_.Add(0, 2);
  const int before = rescue.num_calls();
  ASSERT_TRUE(Run(8).ok());
  EXPECT_TRUE(rescue.held.empty());
  EXPECT_EQ(rescue.num_calls(), before);
  EXPECT_GE(again.num_calls, 1);
}

TEST_F(DispatcherRescueTest, ARescueThatFailsIsNamedWhenTheWaitIsOver) {
  ScriptedRescue rescue(clock_);
  rescue.failure = Error(absl::StatusCode::kResourceExhausted, "rescue_memory", "no room");
  options_.rescue = &rescue;
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.dies_at = clock_.Now();
  const absl::Status status = Run(2);
  EXPECT_EQ(ReasonOf(status), "expert_unserved");
  EXPECT_NE(MessageOf(status).find("no room"), std::string::npos) << status;
  EXPECT_GE(took_, options_.expert_wait);
}

TEST_F(DispatcherRescueTest, AnExpertThatItsHolderRefusesIsRescued) {
  ScriptedRescue rescue(clock_);
  options_.rescue = &rescue;
  ScriptedChannel& a = links_.Add(0);
  links_.Place(PlacementOf({{0}, {0}, {0}, {0}}));
  Start();
  a.not_held = {1};
  ASSERT_TRUE(Run(4).ok());
  EXPECT_TRUE(rescue.held.contains({LayerId(kLayer), ExpertId(1)}));
}

}  // namespace
}  // namespace conclave::frontend
