// Goal: a decode step does not allocate on its way to a worker and back.
// Method: this program counts every operator new; the counter must stand still over many calls.
#include "conclave/testing/count_allocations.h"
#include "conclave/transport/frame.h"
#include "conclave/transport/inproc_channel.h"
#include "fake_handler.h"
#include "gtest/gtest.h"
#include "sample_call.h"

namespace conclave::transport {
namespace {

TEST(ChannelAllocationTest, DispatchAndAwaitWithoutFramesAllocateNothing) {
  FakeHandler handler;
  InprocOptions options;
  options.limits = {.num_slots = 2, .max_rows = 16, .max_pairs = 32, .row_width = 64};
  const auto channel = MakeInprocChannel(handler, options);
  const int64_t before = testing::num_allocations.load();
  for (int i = 0; i < 100; ++i) {
    CallSlot* slot = channel->Acquire();
    FillCall(*slot, static_cast<uint16_t>(1 + i % 16), 1.0f);
    const bool is_ok = channel->Dispatch(slot).ok() && channel->Await(slot).ok();
    channel->Release(slot);
    ASSERT_TRUE(is_ok);
  }
  EXPECT_EQ(testing::num_allocations.load(), before);
  EXPECT_EQ(handler.num_calls, 100);
}

TEST(ChannelAllocationTest, ParsingALegalFrameAllocatesNothing) {
  const FrameLimits limits = SampleLimits();
  const SampleCall call = MakeSampleCall(1, limits, 16);
  const FrameBytes frame = FrameBytes::OfCall(call.view, true, limits);
  const int64_t before = testing::num_allocations.load();
  const auto parsed = ParseCall(frame.bytes(), limits);
  const int64_t after = testing::num_allocations.load();
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(after, before);
}

}  // namespace
}  // namespace conclave::transport
