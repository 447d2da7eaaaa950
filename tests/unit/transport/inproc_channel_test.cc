// Goal: the inproc channel keeps its slots in order, measures time, and turns every way a call can
// go wrong into the error its header names, with and without frames. Method: a handler with a plain
// answer, a clock that a test moves, and handlers that misbehave.
#include "conclave/transport/inproc_channel.h"

#include <cmath>
#include <limits>
#include <random>
#include <set>

#include "conclave/base/status.h"
#include "conclave/testing/fake_clock.h"
#include "conclave/transport/frame.h"
#include "fake_handler.h"
#include "gtest/gtest.h"

namespace conclave::transport {
namespace {

using ::conclave::testing::FakeClock;
using std::chrono::microseconds;

constexpr uint16_t kWidth = 40;

class InprocChannelTest : public ::testing::TestWithParam<bool> {
 protected:
  InprocOptions Options(WireDtype dtype = WireDtype::kBf16) const {
    InprocOptions options;
    options.limits = {
        .num_slots = 3, .max_rows = 8, .max_pairs = 16, .row_width = kWidth, .dtype = dtype};
    options.frontend = 77;
    options.use_frames = GetParam();
    options.num_layers = 4;
    options.num_experts_max = 4;
    options.clock = &clock_;
    return options;
  }

  // Dispatches one call, awaits it and releases its slot.
  absl::Status Call(ExpertChannel& channel, uint32_t deadline_us = 0) {
    CallSlot* slot = channel.Acquire();
    FillCall(*slot, 3, 2.0f);
    slot->call.deadline_us = deadline_us;
    absl::Status status = channel.Dispatch(slot);
    if (status.ok()) {
      status = channel.Await(slot);
      EXPECT_EQ(status.ok(), !slot->reply.rows.empty());
    }
    channel.Release(slot);
    return status;
  }

  FakeClock clock_;
  FakeHandler handler_;
};

TEST_P(InprocChannelTest, AnswersWithTheHandlersRows) {
  for (const WireDtype dtype : {WireDtype::kF32, WireDtype::kBf16}) {
    const auto channel = MakeInprocChannel(handler_, Options(dtype));
    CallSlot* slot = channel->Acquire();
    ASSERT_NE(slot, nullptr);
    FillCall(*slot, 5, 3.0f);
    ASSERT_TRUE(channel->Dispatch(slot).ok());
    ASSERT_TRUE(channel->Await(slot).ok());
    ASSERT_EQ(slot->reply.rows.size(), 5u * kWidth * (dtype == WireDtype::kF32 ? 4 : 2));
    for (size_t i = 0; i < size_t{5} * kWidth; ++i) {
      const float y = dtype == WireDtype::kF32
                          ? reinterpret_cast<const float*>(slot->reply.rows.data())[i]
                          : ToFloat(reinterpret_cast<const Bf16*>(slot->reply.rows.data())[i]);
      ASSERT_EQ(y, 1.5f);
    }
    channel->Release(slot);
  }
}

TEST_P(InprocChannelTest, FramesDeliverEveryCallTwice) {
  const auto channel = MakeInprocChannel(handler_, Options());
  EXPECT_TRUE(Call(*channel).ok());
  EXPECT_EQ(handler_.num_calls, GetParam() ? 2 : 1);
}

TEST_P(InprocChannelTest, RunsNothingBeforeAwait) {
  const auto channel = MakeInprocChannel(handler_, Options());
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 1, 1.0f);
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  EXPECT_EQ(handler_.num_calls, 0);
  ASSERT_TRUE(channel->Await(slot).ok());
  channel->Release(slot);
}

TEST_P(InprocChannelTest, SlotsRunOutAndComeBack) {
  const auto channel = MakeInprocChannel(handler_, Options());
  std::set<CallSlot*> slots;
  for (int i = 0; i < 3; ++i) {
    CallSlot* slot = channel->Acquire();
    ASSERT_NE(slot, nullptr);
    slots.insert(slot);
  }
  EXPECT_EQ(slots.size(), 3u);
  EXPECT_EQ(channel->Acquire(), nullptr);
  channel->Release(*slots.begin());
  EXPECT_EQ(channel->Acquire(), *slots.begin());
}

TEST_P(InprocChannelTest, SlotMemoryIsAlignedAndApart) {
  const auto channel = MakeInprocChannel(handler_, Options());
  std::set<const std::byte*> starts;
  for (int i = 0; i < 3; ++i) {
    CallSlot* slot = channel->Acquire();
    EXPECT_EQ(slot->pair_weight.size(), 16u);
    EXPECT_EQ(slot->rows.size(), 8u * kWidth * 2);
    for (const std::byte* start : {static_cast<const std::byte*>(slot->rows.data()),
                                   static_cast<const std::byte*>(slot->reply_rows.data())}) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(start) % 64, 0u);
      starts.insert(start);
    }
  }
  ASSERT_EQ(starts.size(), 6u);
  for (auto it = starts.begin(), next = std::next(it); next != starts.end(); ++it, ++next) {
    EXPECT_GE(*next - *it, 8 * kWidth * 2);
  }
}

TEST_P(InprocChannelTest, SeqGrowsWithEveryUseOfASlot) {
  const auto channel = MakeInprocChannel(handler_, Options());
  uint64_t last = 0;
  for (int i = 0; i < 5; ++i) {
    CallSlot* slot = channel->Acquire();
    EXPECT_GT(slot->call.seq, last);
    last = slot->call.seq;
    FillCall(*slot, 1, 1.0f);
    // A caller that overwrites the whole view cannot break the idempotence key.
    slot->call.seq = 0;
    slot->call.frontend = 0;
    slot->call.slot = 99;
    ASSERT_TRUE(channel->Dispatch(slot).ok());
    EXPECT_EQ(slot->call.seq, last);
    EXPECT_EQ(slot->call.frontend, 77u);
    EXPECT_EQ(slot->call.slot, 0u);
    ASSERT_TRUE(channel->Await(slot).ok());
    EXPECT_EQ(handler_.last_seq, last);
    channel->Release(slot);
  }
}

TEST_P(InprocChannelTest, MeasuresQueueAndServiceTime) {
  const auto channel = MakeInprocChannel(handler_, Options());
  handler_.on_execute = [this] { clock_.Advance(microseconds(250)); };
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 2, 1.0f);
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  clock_.Advance(microseconds(40));
  ASSERT_TRUE(channel->Await(slot).ok());
  EXPECT_EQ(slot->reply.queue_us, 40u);
  EXPECT_EQ(slot->reply.service_us, 250u);
  channel->Release(slot);
}

TEST_P(InprocChannelTest, ExpiredCallsAreNotComputed) {
  const auto channel = MakeInprocChannel(handler_, Options());
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 2, 1.0f);
  slot->call.deadline_us = 100;
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  clock_.Advance(microseconds(100));
  const absl::Status status = channel->Await(slot);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(ReasonOf(status), "deadline");
  EXPECT_EQ(handler_.num_calls, 0);
  channel->Release(slot);
  EXPECT_TRUE(Call(*channel, 100).ok());
}

TEST_P(InprocChannelTest, CancelledCallsAreNotComputed) {
  const auto channel = MakeInprocChannel(handler_, Options());
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 2, 1.0f);
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  channel->Cancel(slot);
  channel->Cancel(slot);  // D15: a second cancel does nothing
  EXPECT_EQ(channel->Await(slot).code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(handler_.num_calls, 0);
  channel->Release(slot);
  EXPECT_TRUE(Call(*channel).ok());
}

TEST_P(InprocChannelTest, D15_CancelOfAFinishedCallDoesNothing) {
  const auto channel = MakeInprocChannel(handler_, Options());
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 2, 1.0f);
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  ASSERT_TRUE(channel->Await(slot).ok());
  channel->Cancel(slot);
  EXPECT_FALSE(slot->reply.rows.empty());
  channel->Release(slot);
}

TEST_P(InprocChannelTest, CancelledSlotIsReleasedWithoutAwait) {
  const auto channel = MakeInprocChannel(handler_, Options());
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 2, 1.0f);
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  channel->Cancel(slot);
  channel->Release(slot);
  EXPECT_EQ(channel->Acquire(), slot);
}

TEST_P(InprocChannelTest, HandlerErrorsArriveUnchanged) {
  const auto channel = MakeInprocChannel(handler_, Options());
  for (const absl::Status& error :
       {NotFound("not_held", "gone"), InvalidArgument("nonfinite_input", "bad row"),
        Error(absl::StatusCode::kResourceExhausted, "", "no reason at all")}) {
    handler_.answer = error;
    const absl::Status status = Call(*channel);
    EXPECT_EQ(status.code(), error.code());
    EXPECT_EQ(ReasonOf(status), ReasonOf(error));
    EXPECT_EQ(status.message(), error.message());
  }
  handler_.answer = absl::OkStatus();
  EXPECT_TRUE(Call(*channel).ok());
}

// Writes a value of the test's choice into the last element of every reply.
class OddHandler final : public FakeHandler {
 public:
  absl::Status Execute(const CallView& call, ReplyView& reply) override {
    CONCLAVE_RETURN_IF_ERROR(FakeHandler::Execute(call, reply));
    const Bf16 odd = ToBf16(next());
    std::memcpy(reply.rows.data() + reply.rows.size() - 2, &odd, sizeof(odd));
    return absl::OkStatus();
  }

  std::function<float()> next;
};

TEST_P(InprocChannelTest, NonfiniteRepliesAreANumericError) {
  for (const float odd : {std::nanf(""), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    OddHandler handler;
    handler.next = [odd] { return odd; };
    const auto channel = MakeInprocChannel(handler, Options());
    const absl::Status status = Call(*channel);
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(ReasonOf(status), "numeric_error");
  }
}

TEST_P(InprocChannelTest, AHandlerThatAnswersDifferentlyIsFoundOut) {
  OddHandler handler;
  handler.next = [value = 1.0f]() mutable { return value *= 2.0f; };
  const auto channel = MakeInprocChannel(handler, Options());
  EXPECT_EQ(ReasonOf(Call(*channel)), GetParam() ? "duplicate_differs" : "");
}

// A handler that forgets its last row.
class LazyHandler final : public CallHandler {
 public:
  absl::Status Execute(const CallView& call, ReplyView& reply) override {
    std::memset(reply.rows.data(), 0, reply.rows.size() - size_t{2} * call.row_width);
    return absl::OkStatus();
  }
};

TEST(InprocFramesTest, RowsThatTheHandlerForgetsAreFoundOut) {
  LazyHandler handler;
  InprocOptions options;
  options.limits = {.num_slots = 1, .max_rows = 4, .max_pairs = 8, .row_width = kWidth};
  options.use_frames = true;
  const auto channel = MakeInprocChannel(handler, options);
  CallSlot* slot = channel->Acquire();
  FillCall(*slot, 2, 1.0f);
  ASSERT_TRUE(channel->Dispatch(slot).ok());
  EXPECT_EQ(ReasonOf(channel->Await(slot)), "numeric_error");
  channel->Release(slot);
}

TEST_P(InprocChannelTest, ForeignSpansAreRefusedAndTheSlotSurvives) {
  const auto channel = MakeInprocChannel(handler_, Options());
  std::vector<float> elsewhere(3, 0.5f);
  for (int which = 0; which < 4; ++which) {
    CallSlot* slot = channel->Acquire();
    FillCall(*slot, 3, 1.0f);
    switch (which) {
      case 0:
        slot->call.pair_weight = elsewhere;
        break;
      case 1:
        slot->call.pair_row = slot->pair_row.subspan(1, 3);
        break;
      case 2:
        slot->call.rows = slot->rows.subspan(64, slot->call.rows.size());
        break;
      case 3:
        slot->call.num_rows = 9;
        break;
      default:
        break;
    }
    const absl::Status status = channel->Dispatch(slot);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << which;
    EXPECT_EQ(ReasonOf(status), "bad_items") << which;
    channel->Release(slot);
  }
  EXPECT_TRUE(Call(*channel).ok());
}

TEST_P(InprocChannelTest, TwoChannelsShareAHandler) {
  const auto first = MakeInprocChannel(handler_, Options());
  const auto second = MakeInprocChannel(handler_, Options());
  CallSlot* a = first->Acquire();
  CallSlot* b = second->Acquire();
  FillCall(*a, 1, 2.0f);
  FillCall(*b, 1, 4.0f);
  ASSERT_TRUE(first->Dispatch(a).ok());
  ASSERT_TRUE(second->Dispatch(b).ok());
  ASSERT_TRUE(second->Await(b).ok());
  ASSERT_TRUE(first->Await(a).ok());
  EXPECT_EQ(ToFloat(reinterpret_cast<const Bf16*>(a->reply.rows.data())[0]), 1.0f);
  EXPECT_EQ(ToFloat(reinterpret_cast<const Bf16*>(b->reply.rows.data())[0]), 2.0f);
  first->Release(a);
  second->Release(b);
}

INSTANTIATE_TEST_SUITE_P(Frames, InprocChannelTest, ::testing::Bool(),
                         [](const auto& test) { return test.param ? "On" : "Off"; });

// What the parser would refuse is refused at dispatch wherever calls are validated.
TEST(InprocFramesTest, IllegalCallsAreRefusedAtDispatch) {
  FakeHandler handler;
  InprocOptions options;
  options.limits = {.num_slots = 1, .max_rows = 4, .max_pairs = 8, .row_width = kWidth};
  options.use_frames = true;
  options.num_layers = 4;
  options.num_experts_max = 4;
  const auto channel = MakeInprocChannel(handler, options);
  const auto reason = [&](auto change) {
    CallSlot* slot = channel->Acquire();
    FillCall(*slot, 3, 1.0f);
    change(*slot);
    const absl::Status status = channel->Dispatch(slot);
    if (status.ok()) {
      channel->Cancel(slot);
    }
    channel->Release(slot);
    return ReasonOf(status);
  };
  EXPECT_EQ(reason([](CallSlot&) {}), "");
  EXPECT_EQ(reason([](CallSlot& s) { s.call.layer = LayerId(4); }), "no_such_layer");
  EXPECT_EQ(reason([](CallSlot& s) { s.pair_row[2] = 1; }), "bad_items");
  EXPECT_EQ(reason([](CallSlot& s) { s.pair_weight[0] = -0.5f; }), "bad_gate");
  EXPECT_EQ(reason([](CallSlot& s) { s.pair_expert[2] = 4; }), "not_held");
  EXPECT_EQ(reason([](CallSlot& s) { s.call.image_rows = 4; }), "bad_items");
}

class InprocChannelDeathTest : public ::testing::Test {
 protected:
  InprocChannelDeathTest() {
    InprocOptions options;
    options.limits = {.num_slots = 1, .max_rows = 4, .max_pairs = 8, .row_width = kWidth};
    channel_ = MakeInprocChannel(handler_, options);
    slot_ = channel_->Acquire();
    FillCall(*slot_, 1, 1.0f);
  }

  FakeHandler handler_;
  std::unique_ptr<ExpertChannel> channel_;
  CallSlot* slot_ = nullptr;
};

TEST_F(InprocChannelDeathTest, AwaitBeforeDispatch) {
  EXPECT_DEATH((void)channel_->Await(slot_), "kDispatched");
}

TEST_F(InprocChannelDeathTest, DispatchTwice) {
  ASSERT_TRUE(channel_->Dispatch(slot_).ok());
  EXPECT_DEATH((void)channel_->Dispatch(slot_), "kFilled");
}

TEST_F(InprocChannelDeathTest, ReleaseInFlight) {
  ASSERT_TRUE(channel_->Dispatch(slot_).ok());
  EXPECT_DEATH(channel_->Release(slot_), "kDispatched");
}

TEST_F(InprocChannelDeathTest, ReleaseTwice) {
  channel_->Release(slot_);
  EXPECT_DEATH(channel_->Release(slot_), "kFree");
}

TEST_F(InprocChannelDeathTest, ForeignSlot) {
  CallSlot foreign;
  EXPECT_DEATH(channel_->Release(&foreign), "slots_.end");
}

}  // namespace
}  // namespace conclave::transport
