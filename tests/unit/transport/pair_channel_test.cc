// Goal: calls cross a channel between processes unharmed, and every way in which one can end is
// told apart; the same for every channel.
// Method: a server and channels in one process over the loopback, a sink that echoes or hangs; over
// gRPC, UCX's shared memory and UCX's TCP.
#include <cstdlib>

#include "conclave/transport/ucx_channel.h"
#include "gmock/gmock.h"
#include "pair_fixture.h"

namespace conclave::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

enum class Kind { kGrpc, kUcxShm, kUcxTcp };

class PairChannelTest : public PairTest, public ::testing::WithParamInterface<Kind> {
 protected:
  void SetUp() override {
    // UCX's own variable, as an operator would use it.
    if (GetParam() == Kind::kUcxTcp) {
      ::setenv("UCX_TLS", "tcp", 1);  // NOLINT(concurrency-mt-unsafe)
    }
  }
  void TearDown() override { ::unsetenv("UCX_TLS"); }  // NOLINT(concurrency-mt-unsafe)

  bool is_ucx() const { return GetParam() != Kind::kGrpc; }

  void Extend(ExpertServerOptions& options) override {
    if (is_ucx()) {
      auto side = MakeUcxServer({});
      ASSERT_TRUE(side.ok()) << side.status();
      options.side = *std::move(side);
    }
  }
  absl::StatusOr<std::unique_ptr<ExpertChannel>> Connect(
      const PairTerms& terms, const TlsIdentity& tls = {},
      std::chrono::milliseconds timeout = kPatience) override {
    return is_ucx() ? ConnectUcxChannel(address_, tls, terms, {}, bell_, Clock::Real(), timeout)
                    : PairTest::Connect(terms, tls, timeout);
  }
};

INSTANTIATE_TEST_SUITE_P(Channels, PairChannelTest,
                         ::testing::Values(Kind::kGrpc, Kind::kUcxShm, Kind::kUcxTcp),
                         [](const auto& kind) {
                           return kind.param == Kind::kGrpc     ? "Grpc"
                                  : kind.param == Kind::kUcxShm ? "UcxShm"
                                                                : "UcxTcp";
                         });

TEST_P(PairChannelTest, ManyCallsInFlightComeBackAsTheyWereSent) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  EXPECT_EQ(channel->limits().num_slots, 8);
  uint64_t seed = 0;
  for (int round = 0; round < 100; ++round) {
    std::vector<CallSlot*> slots;
    for (int i = 0; i < channel->limits().num_slots; ++i) {
      const uint64_t s = ++seed;
      slots.push_back(Begin(*channel, s, static_cast<uint16_t>(1 + s % 16)));
    }
    EXPECT_EQ(channel->Acquire(), nullptr);
    for (CallSlot* slot : slots) {
      const absl::Status status = WaitForEnd(*channel, slot);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_TRUE(IsEcho(*slot)) << "round " << round;
      EXPECT_EQ(slot->reply.service_us, 11u);
      EXPECT_EQ(slot->reply.queue_us, 12u);
      channel->Release(slot);
    }
  }
  EXPECT_EQ(sink_.num_submitted(), 800);
  const LinkCounters counters = channel->counters();
  EXPECT_EQ(counters.late_replies, 0u);
  EXPECT_EQ(counters.malformed, 0u);
  const ExpertServerCounters served = server_->counters();
  EXPECT_EQ(served.calls, 800u);
  EXPECT_EQ(served.bytes_received, counters.bytes_sent);
  EXPECT_EQ(served.bytes_sent, counters.bytes_received);
}

TEST_P(PairChannelTest, LargeCallsComeBackToo) {
  FrameLimits limits = SampleLimits();
  limits.max_rows = 256;
  limits.max_pairs = 512;
  limits.row_width = 2560;
  ExpertServerOptions options = TestServerOptions(limits);
  options.num_slots = 4;
  StartServer(options);
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  std::vector<CallSlot*> slots;
  for (uint64_t i = 0; i < 4; ++i) {
    slots.push_back(Begin(*channel, i, 256));
  }
  for (CallSlot* slot : slots) {
    const absl::Status status = channel->Await(slot);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(IsEcho(*slot));
    channel->Release(slot);
  }
}

TEST_P(PairChannelTest, TwoChannelsOfOnePairAreApart) {
  StartServer();
  const auto first = MustConnect();
  const auto second = MustConnect();
  ASSERT_TRUE(first != nullptr && second != nullptr);
  CallSlot* a = Begin(*first, 1, 3);
  CallSlot* b = Begin(*second, 2, 5);
  EXPECT_TRUE(WaitForEnd(*first, a).ok());
  EXPECT_TRUE(WaitForEnd(*second, b).ok());
  EXPECT_TRUE(IsEcho(*a));
  EXPECT_TRUE(IsEcho(*b));
}

TEST_P(PairChannelTest, ARefusalNamesTheHolders) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.AnswerWith(NotFound("not_held", "test"), Epoch(91), {WorkerId(3), WorkerId(8)});
  CallSlot* slot = Begin(*channel, 1, 2);
  const absl::Status status = WaitForEnd(*channel, slot);
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(ReasonOf(status), "not_held");
  EXPECT_THAT(slot->holders, ElementsAre(WorkerId(3), WorkerId(8)));
  EXPECT_EQ(slot->worker_epoch, Epoch(91));
  EXPECT_TRUE(slot->reply.rows.empty());
  channel->Release(slot);
  slot = channel->Acquire();
  EXPECT_TRUE(slot->holders.empty());
}

TEST_P(PairChannelTest, ASinkThatIsFullRefusesTheCallAtOnce) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.RefuseWith(Error(absl::StatusCode::kResourceExhausted, "busy", "test"));
  CallSlot* slot = Begin(*channel, 1, 2);
  const absl::Status status = WaitForEnd(*channel, slot);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(status), "busy");
  EXPECT_EQ(slot->worker_epoch, Epoch(90));
  EXPECT_EQ(server_->counters().refused, 1u);
}

TEST_P(PairChannelTest, ARowThatIsNotFiniteIsAnError) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.Poison();
  CallSlot* slot = Begin(*channel, 1, 2);
  EXPECT_EQ(ReasonOf(WaitForEnd(*channel, slot)), "numeric_error");
  EXPECT_TRUE(slot->reply.rows.empty());
}

TEST_P(PairChannelTest, AwaitEndsAtTheDeadlineAndTheSlotIsFreeAfterCancel) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.Hold(true);
  CallSlot* slot = channel->Acquire();
  FillFrom(MakeSampleCall(1, options_.limits, 2), *slot);
  slot->call.deadline_us = 2000;
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  EXPECT_EQ(ReasonOf(channel->Await(slot)), "deadline");
  channel->Cancel(slot);
  EXPECT_EQ(ReasonOf(*channel->Poll(slot)), "cancelled");
  channel->Release(slot);
  EXPECT_TRUE(
      Eventually([&] { return channel->LinkStatus().ok() && server_->counters().cancelled == 1; }));
  EXPECT_TRUE(sink_.AreHeldCancelled());
  // The same slot with the next seq, while the worker still has the call that was given up.
  sink_.Hold(false);
  slot = Begin(*channel, 2, 7);
  EXPECT_TRUE(WaitForEnd(*channel, slot).ok());
  EXPECT_TRUE(IsEcho(*slot));
  EXPECT_EQ(server_->counters().cancelled, 1u);
}

TEST_P(PairChannelTest, AWorkerThatNeverAnswersBlocksNobody) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.Hold(true);
  // As many as the worker has memory for, and some that it refuses.
  int num_refused = 0;
  for (uint64_t i = 0; i < 40; ++i) {
    CallSlot* slot = Begin(*channel, i, 4);
    if (i < 16) {
      // A channel without threads sends while its owner makes progress.
      ASSERT_TRUE(Eventually([&] {
        return channel->LinkStatus().ok() && sink_.num_submitted() == static_cast<int>(i) + 1;
      }));
      EXPECT_FALSE(channel->Poll(slot).has_value());
    } else {
      num_refused += ReasonOf(WaitForEnd(*channel, slot)) == "busy" ? 1 : 0;
    }
    channel->Cancel(slot);
    channel->Release(slot);
  }
  EXPECT_EQ(num_refused, 24);
  EXPECT_TRUE(Eventually(
      [&] { return channel->LinkStatus().ok() && server_->counters().cancelled == 16; }));
  EXPECT_TRUE(channel->LinkStatus().ok());
}

TEST_P(PairChannelTest, PingsAreAnsweredWhileTheWorkerHangs) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.Hold(true);
  Begin(*channel, 1, 4);
  const MonotonicTime before = channel->last_heard();
  const uint64_t bytes_before = channel->counters().bytes_received;
  channel->Ping();
  // The link has heard something a moment before it knows what it was.
  EXPECT_TRUE(Eventually(
      [&] { return channel->last_heard() > before && channel->ping_round_trip().count() > 0; }));
  EXPECT_EQ(channel->counters().bytes_received, bytes_before + kFrameHeaderBytes);
}

TEST_P(PairChannelTest, TheEndOfTheWorkerEndsAllCallsAndRings) {
  StartServer();
  const auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.Hold(true);
  std::vector<CallSlot*> slots;
  for (uint64_t i = 0; i < 5; ++i) {
    slots.push_back(Begin(*channel, i, 4));
  }
  // A channel without threads sends while its owner makes progress.
  ASSERT_TRUE(Eventually([&] { return channel->LinkStatus().ok() && sink_.num_submitted() == 5; }));
  bell_.TryTake();
  server_.reset();
  ASSERT_TRUE(bell_.WaitUntil(Clock::Real().Now() + kPatience));
  for (CallSlot* slot : slots) {
    const absl::Status status = WaitForEnd(*channel, slot);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(ReasonOf(status), "link_lost");
    channel->Release(slot);
  }
  EXPECT_EQ(ReasonOf(channel->LinkStatus()), "link_lost");
  CallSlot* slot = channel->Acquire();
  FillFrom(MakeSampleCall(1, options_.limits, 2), *slot);
  EXPECT_EQ(ReasonOf(channel->Dispatch(slot)), "link_lost");
  channel->Release(slot);
  channel->Ping();
  EXPECT_TRUE(sink_.WaitForGone(1));
  // The calls outlive their server.
  EXPECT_TRUE(sink_.AreHeldCancelled());
  sink_.Hold(false);
}

TEST_P(PairChannelTest, TheWorkerHearsThatAChannelIsGone) {
  StartServer();
  auto channel = MustConnect();
  ASSERT_NE(channel, nullptr);
  sink_.Hold(true);
  Begin(*channel, 1, 4);
  // A channel without threads sends while its owner makes progress.
  ASSERT_TRUE(Eventually([&] { return channel->LinkStatus().ok() && sink_.num_submitted() == 1; }));
  channel.reset();
  EXPECT_TRUE(sink_.WaitForGone(1));
  EXPECT_TRUE(sink_.AreHeldCancelled());
  EXPECT_TRUE(Eventually([&] { return server_->counters().sessions == 0; }));
  sink_.Hold(false);
  channel = MustConnect();
  CallSlot* slot = Begin(*channel, 1, 4);
  EXPECT_TRUE(WaitForEnd(*channel, slot).ok());
}

TEST_P(PairChannelTest, NobodyThereIsSaidInTime) {
  StartServer();
  const PairTerms terms = TestTerms(options_);
  server_.reset();
  const auto channel = Connect(terms);
  ASSERT_FALSE(channel.ok());
  EXPECT_EQ(channel.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(channel.status()), "connect");
  EXPECT_THAT(MessageOf(channel.status()), HasSubstr(address_));
}

}  // namespace
}  // namespace conclave::transport
