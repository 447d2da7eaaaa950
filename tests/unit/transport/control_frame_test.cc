// Goal: CANCEL, CREDIT, PING and PONG are a header and nothing else, and a header says which parser
// a frame is for.
// Method: round trips, every bit flip and truncation of one of each, and headers of a peer that
// lies.
#include <cstring>

#include "conclave/base/status.h"
#include "gtest/gtest.h"
#include "sample_call.h"

namespace conclave::transport {
namespace {

constexpr ControlFrame kFrames[] = {
    {.type = FrameType::kCancel, .epoch = Epoch(5), .frontend = 7, .slot = 3, .seq = 1'000'000'007},
    {.type = FrameType::kCredit, .epoch = Epoch(6), .frontend = 8, .credits = 512},
    {.type = FrameType::kPing, .epoch = Epoch(7), .frontend = 9, .seq = 1},
    {.type = FrameType::kPong, .epoch = Epoch(8), .frontend = UINT32_MAX, .seq = UINT64_MAX},
};

FrameBytes Encode(const ControlFrame& control) {
  AlignedBuffer room(kFrameHeaderBytes);
  EncodeControl(control, {room.As<std::byte>(), room.size_bytes()});
  return FrameBytes(room.As<std::byte>(), kFrameHeaderBytes);
}

TEST(ControlFrameTest, Survives) {
  for (const ControlFrame& control : kFrames) {
    const FrameBytes frame = Encode(control);
    const auto parsed = ParseControl(frame.bytes());
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->type, control.type);
    EXPECT_EQ(parsed->epoch, control.epoch);
    EXPECT_EQ(parsed->frontend, control.frontend);
    EXPECT_EQ(parsed->slot, control.slot);
    EXPECT_EQ(parsed->seq, control.seq);
    EXPECT_EQ(parsed->credits, control.credits);
    const auto header = PeekHeader(frame.bytes());
    ASSERT_TRUE(header.ok()) << header.status();
    EXPECT_EQ(header->type, static_cast<uint16_t>(control.type));
    EXPECT_TRUE(IsHeaderSound(frame.bytes()));
  }
}

TEST(ControlFrameTest, EveryBitFlipAndTruncationIsRefused) {
  for (const ControlFrame& control : kFrames) {
    const FrameBytes good = Encode(control);
    for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
      FrameBytes flipped(good);
      flipped.data()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
      EXPECT_FALSE(ParseControl(flipped.bytes()).ok()) << "bit " << bit;
      EXPECT_FALSE(IsHeaderSound(flipped.bytes())) << "bit " << bit;
    }
    for (size_t size = 0; size < good.size(); ++size) {
      EXPECT_EQ(ReasonOf(ParseControl(good.Prefix(size).bytes()).status()), "short_header");
      EXPECT_EQ(ReasonOf(PeekHeader(good.Prefix(size).bytes()).status()), "short_header");
    }
  }
}

TEST(ControlFrameTest, RefusesWhatItsTypeHasNoUseFor) {
  const auto reason = [](const ControlFrame& control, auto change) {
    FrameBytes frame = Encode(control);
    FrameHeader header = frame.header();
    change(header);
    frame.Seal(header, 0);
    return ReasonOf(ParseControl(frame.bytes()).status());
  };
  for (const ControlFrame& control : kFrames) {
    EXPECT_EQ(reason(control, [](FrameHeader&) {}), "");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.rows = 1; }), "bad_items");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.pairs = 1; }), "bad_items");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.layer = 1; }), "bad_items");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.time_us = 1; }), "bad_items");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.flags = kFlagPrefill; }), "flags");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.payload_bytes = 1; }), "bad_length");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.type = 1; }), "type");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.type = 8; }), "type");
    EXPECT_EQ(reason(control, [](FrameHeader& h) { h.version = 2; }), "version");
  }
  EXPECT_EQ(reason(kFrames[2], [](FrameHeader& h) { h.slot = 1; }), "bad_items");
  EXPECT_EQ(reason(kFrames[0], [](FrameHeader& h) { h.credits = 1; }), "bad_items");
  EXPECT_EQ(reason(kFrames[1], [](FrameHeader& h) { h.seq = 1; }), "bad_items");
}

TEST(ControlFrameTest, RefusesAPayload) {
  const FrameBytes good = Encode(kFrames[2]);
  std::vector<std::byte> longer(good.bytes().begin(), good.bytes().end());
  longer.resize(kFrameHeaderBytes + 4);
  FrameBytes frame(longer.data(), longer.size());
  FrameHeader header = frame.header();
  header.payload_bytes = 4;
  frame.Seal(header, 0);
  EXPECT_EQ(ReasonOf(ParseControl(frame.bytes()).status()), "bad_length");
}

TEST(PeekHeaderTest, KnowsEveryTypeAndASoundHeaderOfABadCall) {
  const FrameLimits limits = SampleLimits();
  const SampleCall call = MakeSampleCall(1, limits, 4);
  FrameBytes frame = FrameBytes::OfCall(call.view, false, limits);
  EXPECT_TRUE(IsHeaderSound(frame.bytes()));
  FrameHeader header = frame.header();
  header.layer = limits.num_layers;
  frame.Seal(header, 8 * call.view.pair_row.size());
  EXPECT_EQ(ReasonOf(ParseCall(frame.bytes(), limits).status()), "no_such_layer");
  EXPECT_TRUE(IsHeaderSound(frame.bytes()));
  // Pairs that would lie beyond the frame are nothing to compute a CRC of.
  header.pairs = UINT16_MAX;
  frame.Seal(header, 0);
  EXPECT_FALSE(IsHeaderSound(frame.bytes()));
}

}  // namespace
}  // namespace conclave::transport
