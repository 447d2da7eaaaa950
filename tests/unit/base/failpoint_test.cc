// Goal: a setting does what it says, at the hits that it says, and an unreadable one is refused.
// Method: settings parsed by hand and asked; the macro against a setting of this process that names
// no point.
#include "conclave/base/failpoint.h"

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "gtest/gtest.h"

namespace conclave {
namespace {

Failpoints Make(std::string_view setting) {
  auto parsed = Failpoints::Parse(setting);
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return *std::move(parsed);
}

TEST(FailpointTest, ActionsAndTheirArguments) {
  const Failpoints points = Make(
      "a=kill9;b=stop;c=sleep:60000;d=error:ENOMEM;e=rst;f=drop;g=truncate:12;h=flip:3;i=oom;"
      "j=error:UNAVAILABLE;");
  const auto decide = [&points](const char* name) { return points.Decide(name, {}); };
  EXPECT_EQ(decide("a").action, FailpointAction::kKill9);
  EXPECT_EQ(decide("b").action, FailpointAction::kStop);
  EXPECT_EQ(decide("c").action, FailpointAction::kSleep);
  EXPECT_EQ(decide("c").argument, 60'000);
  EXPECT_EQ(decide("d").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(decide("d").status()), "failpoint");
  EXPECT_EQ(decide("e").action, FailpointAction::kRst);
  EXPECT_EQ(decide("f").action, FailpointAction::kDrop);
  EXPECT_EQ(decide("g").argument, 12);
  EXPECT_EQ(decide("h").argument, 3);
  EXPECT_TRUE(decide("h").status().ok());
  EXPECT_EQ(decide("i").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(decide("j").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(decide("k").is_hit());
}

TEST(FailpointTest, WhatIsHeldBackOrDamagedIsDrawnFromTheSeed) {
  const char* setting =
      "a=delay:5-40@seed=3;b=reorder:7;c=stall:20;d=flip:any@seed=4;e=truncate:any;f=dup;g=note";
  const Failpoints points = Make(setting);
  const Failpoints again = Make(setting);
  EXPECT_EQ(points.Decide("b", {}).argument, 7'000);
  EXPECT_EQ(points.Decide("c", {}).argument, 20'000);
  EXPECT_EQ(points.Decide("f", {}).action, FailpointAction::kDup);
  EXPECT_EQ(points.Decide("g", {}).action, FailpointAction::kNote);
  std::set<int64_t> delays;
  for (int i = 0; i < 50; ++i) {
    const FailpointHit delay = points.Decide("a", {});
    EXPECT_EQ(delay.action, FailpointAction::kDelay);
    EXPECT_GE(delay.argument, 5'000);
    EXPECT_LE(delay.argument, 40'000);
    delays.insert(delay.argument);
    EXPECT_EQ(delay.argument, again.Decide("a", {}).argument);
    EXPECT_EQ(points.Decide("d", {}).argument, again.Decide("d", {}).argument);
    EXPECT_GE(points.Decide("e", {}).argument, 0);
  }
  EXPECT_GT(delays.size(), 40u);
}

TEST(FailpointTest, TheFirstSettingOfANameThatIsMetActs) {
  const Failpoints points = Make("a=drop@layer=1;a=dup@layer=2;a=note");
  EXPECT_EQ(points.Decide("a", {.layer = 2}).action, FailpointAction::kDup);
  EXPECT_EQ(points.Decide("a", {.layer = 1}).action, FailpointAction::kDrop);
  EXPECT_EQ(points.Decide("a", {.layer = 3}).action, FailpointAction::kNote);
  EXPECT_EQ(points.Report(), "a 1\na 1\na 1\n");
}

TEST(FailpointTest, ConditionsCompareWithWhatThePointSays) {
  const Failpoints points = Make("a=drop@layer=2,phase=decode;b=drop@step=4");
  EXPECT_TRUE(points.Decide("a", {.layer = 2, .phase = "decode"}).is_hit());
  EXPECT_FALSE(points.Decide("a", {.layer = 3, .phase = "decode"}).is_hit());
  EXPECT_FALSE(points.Decide("a", {.layer = 2, .phase = "prefill"}).is_hit());
  EXPECT_FALSE(points.Decide("a", {}).is_hit());
  EXPECT_TRUE(points.Decide("b", {.step = 4}).is_hit());
  EXPECT_FALSE(points.Decide("b", {}).is_hit());
}

TEST(FailpointTest, HitCountsWhereTheOtherConditionsAreMet) {
  const Failpoints points = Make("a=drop@layer=1,hit=2");
  EXPECT_FALSE(points.Decide("a", {.layer = 1}).is_hit());
  EXPECT_FALSE(points.Decide("a", {.layer = 7}).is_hit());
  EXPECT_TRUE(points.Decide("a", {.layer = 1}).is_hit());
  EXPECT_FALSE(points.Decide("a", {.layer = 1}).is_hit());
}

TEST(FailpointTest, ChanceFollowsTheSeed) {
  const auto draw = [](const Failpoints& points) {
    std::vector<bool> hits;
    for (int i = 0; i < 1000; ++i) {
      hits.push_back(points.Decide("a", {}).is_hit());
    }
    return hits;
  };
  const std::vector<bool> first = draw(Make("a=drop@prob=0.1,seed=5"));
  EXPECT_EQ(draw(Make("a=drop@prob=0.1,seed=5")), first);
  EXPECT_NE(draw(Make("a=drop@prob=0.1,seed=6")), first);
  const auto count = std::count(first.begin(), first.end(), true);
  // Three standard deviations of a binomial with n = 1000, p = 0.1 are 28.5.
  EXPECT_NEAR(static_cast<double>(count), 100.0, 28.5);
  EXPECT_FALSE(Make("a=drop@prob=0").Decide("a", {}).is_hit());
  EXPECT_TRUE(Make("a=drop@prob=1").Decide("a", {}).is_hit());
}

TEST(FailpointTest, UnreadableSettingsAreRefused) {
  for (const char* setting : {"a",
                              "=drop",
                              "a=",
                              "a=nothing",
                              "a=sleep",
                              "a=sleep:x",
                              "a=sleep:-1",
                              "a=kill9:3",
                              "a=error",
                              "a=error:NOPE",
                              "a=drop@",
                              "a=drop@layer",
                              "a=drop@layer=x",
                              "a=drop@hit=0",
                              "a=drop@prob=2",
                              "a=drop@prob=x",
                              "a=drop@phase=",
                              "a=drop@other=1",
                              "a=drop,hit=1",
                              "a=delay",
                              "a=delay:any",
                              "a=delay:5-",
                              "a=delay:9-5",
                              "a=delay:3600001",
                              "a=flip:1-2",
                              "a=note:1"}) {
    const auto parsed = Failpoints::Parse(setting);
    EXPECT_FALSE(parsed.ok()) << setting;
    EXPECT_EQ(ReasonOf(parsed.status()), "failpoint_syntax") << setting;
  }
  EXPECT_TRUE(Failpoints::Parse("").ok());
}

TEST(FailpointTest, TheReportCountsWhatActed) {
  const Failpoints points = Make("a=drop@hit=2;b=flip:3");
  EXPECT_EQ(points.Report(), "a 0\nb 0\n");
  for (int i = 0; i < 3; ++i) {
    points.Decide("a", {});
    points.Decide("b", {});
  }
  EXPECT_EQ(points.Report(), "a 1\nb 3\n");
}

class CountingLink final : public FailpointLink {
 public:
  void Disrupt(FailpointAction how) override { done_.push_back(how); }
  std::vector<FailpointAction> done_;
};

TEST(FailpointTest, TheSettingOfTheProcessCanBeReplaced) {
  ASSERT_TRUE(SetFailpoints("test.replaced=flip:7").ok());
  EXPECT_EQ(CONCLAVE_FAILPOINT("test.replaced", {}).argument, 7);
  EXPECT_EQ(FailpointReport(), "test.replaced 1\n");
  EXPECT_EQ(ReasonOf(SetFailpoints("test.replaced")), "failpoint_syntax");
  EXPECT_TRUE(CONCLAVE_FAILPOINT("test.replaced", {}).is_hit());
  ASSERT_TRUE(SetFailpoints("").ok());
  EXPECT_FALSE(CONCLAVE_FAILPOINT("test.replaced", {}).is_hit());
  EXPECT_EQ(FailpointReport(), "");
}

TEST(FailpointTest, TheInnermostScopesLinkIsDisrupted) {
  ASSERT_TRUE(SetFailpoints("test.rst=rst;test.drop=drop").ok());
  const auto outer = std::make_shared<CountingLink>();
  const auto inner = std::make_shared<CountingLink>();
  EXPECT_TRUE(CONCLAVE_FAILPOINT("test.rst", {}).is_hit());  // no scope: nothing to disrupt
  {
    const FailpointScope outer_scope(outer);
    {
      CONCLAVE_FAILPOINT_LINK(inner);
      (void)CONCLAVE_FAILPOINT("test.rst", {});
    }
    (void)CONCLAVE_FAILPOINT("test.drop", {});
  }
  (void)CONCLAVE_FAILPOINT("test.drop", {});
  EXPECT_EQ(inner->done_, std::vector<FailpointAction>{FailpointAction::kRst});
  EXPECT_EQ(outer->done_, std::vector<FailpointAction>{FailpointAction::kDrop});
  ASSERT_TRUE(SetFailpoints("").ok());
}

TEST(FailpointTest, APointThatIsNotSetDoesNothing) {
  const FailpointHit hit =
      CONCLAVE_FAILPOINT("test.nothing", {.layer = 1, .step = 2, .phase = "decode"});
  EXPECT_FALSE(hit.is_hit());
  EXPECT_TRUE(hit.status().ok());
}

}  // namespace
}  // namespace conclave
