// Goal: a link with chaos does to calls and answers what its setting says, the same again for the
// same seed; what it damages is refused by the parsers, what it doubles is dropped, and an answer
// that arrives is the right one.
// Method: channels of every kind under the wrapper. Inproc with frames on a clock that stands still
// shows when what goes on; a real server shows what its session makes of damaged and doubled
// frames.
#include "conclave/transport/chaos_channel.h"

#include <algorithm>
#include <string>
#include <vector>

#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/testing/fake_clock.h"
#include "conclave/transport/inproc_channel.h"
#include "conclave/transport/ucx_channel.h"
#include "fake_handler.h"
#include "gtest/gtest.h"
#include "pair_fixture.h"

namespace conclave::transport {
namespace {

using std::chrono::milliseconds;

// The failpoints are the process's: whoever sets some takes them back.
class Setting {
 public:
  explicit Setting(const std::string& setting) {
    const absl::Status status = SetFailpoints(setting);
    EXPECT_TRUE(status.ok()) << status;
  }
  ~Setting() { EXPECT_TRUE(SetFailpoints("").ok()); }
  Setting(const Setting&) = delete;
  Setting& operator=(const Setting&) = delete;
};

class ChaosTest : public ::testing::Test {
 protected:
  static constexpr float kValue = 3.0f;

  ChaosTest() {
    InprocOptions options;
    options.limits = {.num_slots = 4, .max_rows = 4, .max_pairs = 8, .row_width = 16};
    options.use_frames = true;
    options.clock = &clock_;
    channel_ = WithChaos(MakeInprocChannel(handler_, options), bell_, clock_);
  }

  CallSlot* Begin() {
    CallSlot* slot = channel_->Acquire();
    EXPECT_NE(slot, nullptr);
    FillCall(*slot, 2, kValue);
    const absl::Status status = channel_->Dispatch(slot);
    EXPECT_TRUE(status.ok()) << status;
    return slot;
  }

  // Reason of the end ("": answered rightly), "open" without one.
  std::string Ask(CallSlot* slot) {
    const std::optional<absl::Status> status = channel_->Poll(slot);
    if (!status.has_value()) {
      return "open";
    }
    if (status->ok()) {
      EXPECT_EQ(slot->reply.rows.size(), 2u * 16 * 2);
      for (size_t i = 0; i < 2 * 16; ++i) {
        EXPECT_EQ(ToFloat(reinterpret_cast<const Bf16*>(slot->reply.rows.data())[i]), kValue / 2);
      }
    } else {
      EXPECT_TRUE(slot->reply.rows.empty());
    }
    return ReasonOf(*status);
  }

  void GiveUp(CallSlot* slot) {
    channel_->Cancel(slot);
    channel_->Release(slot);
  }

  testing::FakeClock clock_;
  FakeHandler handler_;
  Doorbell bell_;
  std::unique_ptr<ExpertChannel> channel_;
};

TEST_F(ChaosTest, WithoutASettingNothingHappens) {
  const Setting none("");
  CallSlot* slot = Begin();
  EXPECT_EQ(Ask(slot), "");
  channel_->Release(slot);
}

TEST_F(ChaosTest, WhatIsDroppedStaysOpenUntilItIsGivenUp) {
  for (const auto& [setting, executions] :
       {std::pair("l.call=drop", 0), std::pair("l.reply=drop", 2)}) {
    const Setting drop(setting);
    handler_.num_calls = 0;
    CallSlot* slot = Begin();
    EXPECT_EQ(Ask(slot), "open");
    clock_.Advance(std::chrono::hours(1));
    EXPECT_EQ(Ask(slot), "open");
    // Twice for a call that arrived: inproc with frames delivers each twice by itself.
    EXPECT_EQ(handler_.num_calls, executions) << setting;
    GiveUp(slot);
    EXPECT_EQ(FailpointReport(),
              std::string(setting).substr(0, std::string(setting).find('=')) + " 1\n");
  }
  const Setting none("");
  CallSlot* slot = Begin();
  EXPECT_EQ(Ask(slot), "");
  channel_->Release(slot);
}

TEST_F(ChaosTest, ADelayedCallIsSentAndADelayedReplyShownWhenItsTimeHasCome) {
  for (const char* setting : {"l.call=delay:5", "l.reply=delay:5"}) {
    const Setting delay(setting);
    CallSlot* slot = Begin();
    EXPECT_EQ(Ask(slot), "open");
    clock_.Advance(milliseconds(4));
    EXPECT_EQ(Ask(slot), "open");
    clock_.Advance(milliseconds(1));
    EXPECT_EQ(Ask(slot), "") << setting;
    channel_->Release(slot);
  }
}

TEST_F(ChaosTest, ADelayedCallMayBeGivenUp) {
  const Setting delay("l.call=delay:5");
  CallSlot* slot = Begin();
  channel_->Cancel(slot);
  EXPECT_EQ(Ask(slot), "cancelled");
  channel_->Release(slot);
  clock_.Advance(milliseconds(10));
  CallSlot* next = Begin();
  EXPECT_EQ(handler_.num_calls, 0);
  GiveUp(next);
}

TEST_F(ChaosTest, AReorderedCallGoesAfterTheNextOne) {
  const Setting reorder("l.call=reorder:50@hit=1;l.overtaken=note");
  CallSlot* first = Begin();
  EXPECT_EQ(Ask(first), "open");
  CallSlot* second = Begin();
  EXPECT_EQ(FailpointReport(), "l.call 1\nl.overtaken 1\n");
  EXPECT_EQ(Ask(second), "");
  EXPECT_EQ(Ask(first), "");
  channel_->Release(first);
  channel_->Release(second);
}

TEST_F(ChaosTest, AReorderedReplyComesAfterTheNextOneOrWhenNoneComes) {
  const Setting reorder("l.reply=reorder:50@hit=1;l.overtaken=note");
  CallSlot* first = Begin();
  CallSlot* second = Begin();
  EXPECT_EQ(Ask(first), "open");
  EXPECT_EQ(Ask(second), "");
  EXPECT_EQ(Ask(first), "");
  EXPECT_EQ(FailpointReport(), "l.reply 1\nl.overtaken 1\n");
  channel_->Release(first);
  channel_->Release(second);

  const Setting alone("l.reply=reorder:50@hit=1;l.overtaken=note");
  CallSlot* slot = Begin();
  EXPECT_EQ(Ask(slot), "open");
  clock_.Advance(milliseconds(50));
  EXPECT_EQ(Ask(slot), "");
  EXPECT_EQ(FailpointReport(), "l.reply 1\nl.overtaken 0\n");
  channel_->Release(slot);
}

TEST_F(ChaosTest, AStallHoldsAllThatComesBehindIt) {
  for (const char* setting : {"l.call=stall:20@hit=1", "l.reply=stall:20@hit=1"}) {
    const Setting stall(setting);
    std::vector<CallSlot*> slots;
    for (int i = 0; i < 3; ++i) {
      slots.push_back(Begin());
      EXPECT_EQ(Ask(slots.back()), "open") << setting;
      clock_.Advance(milliseconds(5));
    }
    clock_.Advance(milliseconds(5));
    for (CallSlot* slot : slots) {
      EXPECT_EQ(Ask(slot), "") << setting;
      channel_->Release(slot);
    }
  }
}

TEST_F(ChaosTest, DamagedFramesAreRefusedByTheParserAndWorthAnotherAttempt) {
  for (const char* point : {"l.call_frame", "l.reply_frame"}) {
    for (const char* action : {"flip:any", "truncate:any"}) {
      const Setting damage(std::string(point) + "=" + action + "@seed=5");
      const uint64_t before = channel_->counters().malformed;
      constexpr int kCalls = 200;
      for (int i = 0; i < kCalls; ++i) {
        CallSlot* slot = Begin();
        const std::optional<absl::Status> status = channel_->Poll(slot);
        ASSERT_TRUE(status.has_value());
        EXPECT_EQ(status->code(), absl::StatusCode::kDataLoss) << point << action << *status;
        channel_->Release(slot);
      }
      EXPECT_EQ(channel_->counters().malformed - before, kCalls) << point << action;
    }
  }
}

TEST_F(ChaosTest, TheSameSeedDoesTheSame) {
  const auto run = [this](const std::string& seed) {
    const Setting mix(
        "l.call=drop@prob=0.2,seed=" + seed + ";l.call=delay:1-9@prob=0.2,seed=" + seed +
        ";l.reply=drop@prob=0.2,seed=" + seed + ";l.call_frame=flip:any@prob=0.2,seed=" + seed);
    std::vector<std::string> ends;
    for (int i = 0; i < 100; ++i) {
      CallSlot* slot = Begin();
      ends.push_back(Ask(slot));
      if (ends.back() == "open") {
        clock_.Advance(milliseconds(5));
        ends.push_back(Ask(slot));
      }
      GiveUp(slot);
    }
    return ends;
  };
  const std::vector<std::string> ends = run("7");
  EXPECT_EQ(ends, run("7"));
  EXPECT_NE(ends, run("8"));
  for (const char* end : {"open", "", "corrupt_payload"}) {
    EXPECT_GT(std::count(ends.begin(), ends.end(), end), 0) << end;
  }
}

TEST_F(ChaosTest, AwaitWaitsForWhatIsHeldAndForTheDeadline) {
  InprocOptions options;
  options.limits = {.num_slots = 2, .max_rows = 4, .max_pairs = 8, .row_width = 16};
  const auto channel = WithChaos(MakeInprocChannel(handler_, options), bell_, Clock::Real());
  for (const auto& [setting, reason] :
       {std::pair("l.call=delay:3", ""), std::pair("l.reply=delay:3", ""),
        std::pair("l.call=drop", "deadline")}) {
    const Setting held(setting);
    CallSlot* slot = channel->Acquire();
    FillCall(*slot, 1, kValue);
    slot->call.deadline_us = reason[0] == '\0' ? 30'000'000 : 2'000;
    ASSERT_TRUE(channel->Dispatch(slot).ok());
    EXPECT_EQ(ReasonOf(channel->Await(slot)), reason) << setting;
    channel->Cancel(slot);
    channel->Release(slot);
  }
}

// The same under a channel between processes: grpc here, ucx below.
class ChaosPairTest : public PairTest {
 protected:
  absl::StatusOr<std::unique_ptr<ExpertChannel>> Connect(const PairTerms& terms,
                                                         const TlsIdentity& tls,
                                                         milliseconds timeout) override {
    PairTerms checked = terms;
    checked.has_payload_crc = true;
    auto channel = ConnectBelow(checked, tls, timeout);
    return channel.ok() ? WithChaos(*std::move(channel), bell_, Clock::Real()) : std::move(channel);
  }
  virtual absl::StatusOr<std::unique_ptr<ExpertChannel>> ConnectBelow(const PairTerms& terms,
                                                                      const TlsIdentity& tls,
                                                                      milliseconds timeout) {
    return PairTest::Connect(terms, tls, timeout);
  }

  // The end of a call that is given up after 50 ms; a dropped frame answers none.
  absl::Status EndSoon(ExpertChannel& channel, CallSlot* slot) {
    const MonotonicTime until = Clock::Real().Now() + milliseconds(50);
    std::optional<absl::Status> status = channel.Poll(slot);
    while (!status.has_value() && bell_.WaitUntil(until)) {
      status = channel.Poll(slot);
    }
    if (!status.has_value()) {
      channel.Cancel(slot);
      return absl::DeadlineExceededError("no answer");
    }
    return *std::move(status);
  }

  void DuplicatesAreDropped();
  void ThirdDamagedFrameEndsTheLink();
  void DamageIsNeverAnAnswer(const std::string& setting);
  void WhatIsHeldComesByItself();
};

void ChaosPairTest::DuplicatesAreDropped() {
  StartServer();
  const Setting twice("l.call_frame=dup;l.reply_frame=dup;l.late_reply=note");
  const auto channel = MustConnect();
  constexpr uint64_t kCalls = 20;
  for (uint64_t i = 0; i < kCalls; ++i) {
    CallSlot* slot = Begin(*channel, i, 3);
    EXPECT_TRUE(WaitForEnd(*channel, slot).ok());
    EXPECT_TRUE(IsEcho(*slot));
    channel->Release(slot);
  }
  // Its second frame may still be on its way when the last answer has come.
  EXPECT_TRUE(Eventually([&] { return server_->counters().duplicates == kCalls; }));
  EXPECT_EQ(sink_.num_submitted(), static_cast<int>(kCalls));
  EXPECT_EQ(channel->counters().late_replies, kCalls);
  EXPECT_EQ(FailpointReport(), "l.call_frame 20\nl.reply_frame 20\nl.late_reply 20\n");
}

void ChaosPairTest::DamageIsNeverAnAnswer(const std::string& setting) {
  StartServer();
  const Setting damage(setting);
  std::unique_ptr<ExpertChannel> channel = MustConnect();
  int num_good = 0;
  int num_refused = 0;
  int num_links = 1;
  for (uint64_t i = 0; i < 60; ++i) {
    CallSlot* slot = Begin(*channel, i, 3);
    const absl::Status status = EndSoon(*channel, slot);
    num_good += status.ok() ? 1 : 0;
    EXPECT_EQ(status.ok(), IsEcho(*slot)) << status;
    if (!status.ok()) {
      // What the dispatcher sends again, on this link or another.
      EXPECT_TRUE(status.code() == absl::StatusCode::kDataLoss ||
                  status.code() == absl::StatusCode::kUnavailable ||
                  status.code() == absl::StatusCode::kDeadlineExceeded)
          << status;
      ++num_refused;
    }
    channel->Release(slot);
    if (!channel->LinkStatus().ok()) {
      channel = MustConnect();
      ++num_links;
    }
  }
  EXPECT_GT(num_good, 0);
  EXPECT_GT(num_refused, 0);
  EXPECT_GT(num_links, 1);
}

void ChaosPairTest::ThirdDamagedFrameEndsTheLink() {
  StartServer();
  // A bit of the slot's number.
  for (const char* point : {"l.call_frame", "l.reply_frame"}) {
    const auto channel = MustConnect();
    const auto malformed = [&] {
      return channel->counters().malformed + server_->counters().malformed;
    };
    const uint64_t before = malformed();
    uint64_t seed = 0;
    const auto ask = [&] {
      CallSlot* slot = Begin(*channel, ++seed, 3);
      const absl::Status status = EndSoon(*channel, slot);
      channel->Release(slot);
      return status;
    };
    {
      const Setting damage(std::string(point) + "=flip:26");
      EXPECT_EQ(ask().code(), absl::StatusCode::kDeadlineExceeded) << point;
      EXPECT_EQ(ask().code(), absl::StatusCode::kDeadlineExceeded) << point;
    }
    EXPECT_TRUE(Eventually([&] { return malformed() == before + 2; })) << point;
    EXPECT_TRUE(channel->LinkStatus().ok()) << point;
    CallSlot* slot = Begin(*channel, ++seed, 3);
    EXPECT_TRUE(WaitForEnd(*channel, slot).ok()) << point;
    EXPECT_TRUE(IsEcho(*slot));
    channel->Release(slot);

    const Setting damage(std::string(point) + "=flip:26");
    slot = Begin(*channel, ++seed, 3);
    EXPECT_EQ(ReasonOf(WaitForEnd(*channel, slot)), "link_lost") << point;
    channel->Release(slot);
    EXPECT_FALSE(channel->LinkStatus().ok()) << point;
  }
}

void ChaosPairTest::WhatIsHeldComesByItself() {
  StartServer();
  const auto channel = MustConnect();
  for (const char* setting :
       {"l.call=delay:2-8", "l.reply=delay:2-8", "l.call=stall:5", "l.reply=reorder:4"}) {
    const Setting held(setting);
    for (uint64_t i = 0; i < 5; ++i) {
      CallSlot* slot = Begin(*channel, i, 2);
      EXPECT_TRUE(WaitForEnd(*channel, slot).ok()) << setting;
      EXPECT_TRUE(IsEcho(*slot));
      channel->Release(slot);
    }
  }
}

class ChaosUcxTest : public ChaosPairTest {
 protected:
  void Extend(ExpertServerOptions& options) override {
    auto side = MakeUcxServer({});
    ASSERT_TRUE(side.ok()) << side.status();
    options.side = *std::move(side);
  }
  absl::StatusOr<std::unique_ptr<ExpertChannel>> ConnectBelow(const PairTerms& terms,
                                                              const TlsIdentity& tls,
                                                              milliseconds timeout) override {
    return ConnectUcxChannel(address_, tls, terms, {}, bell_, Clock::Real(), timeout);
  }
};

constexpr const char* kDamage[] = {
    "l.call_frame=flip:any@prob=0.4,seed=3", "l.reply_frame=flip:any@prob=0.4,seed=4",
    "l.call_frame=truncate:any@prob=0.2,seed=5", "l.reply_frame=truncate:any@prob=0.2,seed=6"};

TEST_F(ChaosPairTest, DuplicatesAreDroppedOnBothEnds) { DuplicatesAreDropped(); }
TEST_F(ChaosPairTest, ThirdDamagedFrameEndsTheLink) { ThirdDamagedFrameEndsTheLink(); }
TEST_F(ChaosPairTest, DamagedFramesAreNeverAnAnswer) {
  for (const char* setting : kDamage) {
    DamageIsNeverAnAnswer(setting);
  }
}
TEST_F(ChaosPairTest, WhatIsHeldRingsTheBell) { WhatIsHeldComesByItself(); }
TEST_F(ChaosUcxTest, DuplicatesAreDroppedOnBothEnds) { DuplicatesAreDropped(); }
TEST_F(ChaosUcxTest, ThirdDamagedFrameEndsTheLink) { ThirdDamagedFrameEndsTheLink(); }
TEST_F(ChaosUcxTest, DamagedFramesAreNeverAnAnswer) {
  for (const char* setting : kDamage) {
    DamageIsNeverAnAnswer(setting);
  }
}
TEST_F(ChaosUcxTest, WhatIsHeldRingsTheBell) { WhatIsHeldComesByItself(); }

}  // namespace
}  // namespace conclave::transport
