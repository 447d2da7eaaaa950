// Goal: every malformed frame of bad-inputs.md 4.8 (D01 to D09, D11, D23) is refused with its
// stable reason, reading nothing beyond its bytes. Method: one legal frame, changed in one place;
// where the row of the catalogue is about a lying peer and not about damage, the CRC is made right
// again. Frames lie in memory of their exact size, so that a sanitizer run of this test shows every
// byte read too far.
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

#include "conclave/base/status.h"
#include "conclave/transport/frame.h"
#include "gtest/gtest.h"
#include "sample_call.h"

namespace conclave::transport {
namespace {

constexpr uint16_t kRows = 6;

// Rows 0..5; experts 0 and 3 of each: 12 pairs, in order.
SampleCall PlainCall(const FrameLimits& limits) {
  SampleCall call = MakeSampleCall(1, limits, kRows);
  call.weights.assign(size_t{2} * kRows, 0.5f);
  call.rows_of_pairs = {0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5};
  call.experts_of_pairs = {0, 0, 0, 0, 0, 0, 3, 3, 3, 3, 3, 3};
  call.view.image_rows = 2;
  call.Refresh();
  return call;
}

FrameBytes PlainFrame(bool with_payload_crc = false) {
  const FrameLimits limits = SampleLimits();
  return FrameBytes::OfCall(PlainCall(limits).view, with_payload_crc, limits);
}

size_t ArrayBytes(const FrameBytes& frame) { return size_t{8} * frame.header().pairs; }

// The reason for which `frame` is refused; empty when it is accepted.
std::string Refusal(const FrameBytes& frame, const FrameLimits& limits = SampleLimits()) {
  return ReasonOf(ParseCall(frame.bytes(), limits).status());
}

TEST(FrameBadInputTest, ThePlainFrameIsLegal) {
  const auto call = ParseCall(PlainFrame().bytes(), SampleLimits());
  EXPECT_TRUE(call.ok()) << call.status();
}

TEST(FrameBadInputTest, D01_EveryTruncationIsRefused) {
  const FrameBytes good = PlainFrame(true);
  for (size_t size = 0; size < good.size(); ++size) {
    ASSERT_EQ(Refusal(good.Prefix(size)), size < kFrameHeaderBytes ? "short_header" : "bad_length")
        << "size " << size;
  }
}

TEST(FrameBadInputTest, D03_EveryBitFlipOfHeaderAndArraysIsRefused) {
  const FrameBytes good = PlainFrame();
  const size_t covered = kFrameHeaderBytes + ArrayBytes(good);
  for (size_t bit = 0; bit < 8 * covered; ++bit) {
    FrameBytes flipped(good);
    flipped.data()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ASSERT_NE(Refusal(flipped), "") << "bit " << bit;
  }
}

TEST(FrameBadInputTest, D03_DamageOfTheArraysIsACrcError) {
  FrameBytes frame = PlainFrame();
  frame.data()[kFrameHeaderBytes + 5] ^= std::byte{0x10};
  const auto call = ParseCall(frame.bytes(), SampleLimits());
  ASSERT_FALSE(call.ok());
  EXPECT_EQ(ReasonOf(call.status()), "bad_crc");
  EXPECT_EQ(call.status().code(), absl::StatusCode::kDataLoss);
}

TEST(FrameBadInputTest, D05_EveryBitFlipOfTheRowsIsCaughtByThePayloadCrc) {
  const FrameBytes good = PlainFrame(true);
  const size_t rows_at = good.size() - 4 - size_t{kRows} * 24 * 2;
  for (size_t bit = 8 * rows_at; bit < 8 * good.size(); ++bit) {
    FrameBytes flipped(good);
    flipped.data()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ASSERT_EQ(Refusal(flipped), "corrupt_payload") << "bit " << bit;
  }
}

TEST(FrameBadInputTest, D04_PaddingMustBeZero) {
  FrameBytes frame = PlainFrame();
  const size_t arrays_end = kFrameHeaderBytes + ArrayBytes(frame);
  ASSERT_NE(arrays_end % kFrameAlignment, 0u) << "the sample must have padding";
  frame.data()[arrays_end] = std::byte{1};
  EXPECT_EQ(Refusal(frame), "bad_padding");
}

TEST(FrameBadInputTest, D23_ByteSwappedHeaderIsRefused) {
  FrameBytes frame = PlainFrame();
  std::reverse(frame.data(), frame.data() + 4);
  EXPECT_EQ(Refusal(frame), "bad_magic");
}

struct HeaderCase {
  const char* name;
  std::function<void(FrameHeader&)> change;
  const char* reason;
};

class HeaderBadInputTest : public ::testing::TestWithParam<HeaderCase> {};

TEST_P(HeaderBadInputTest, IsRefused) {
  FrameBytes frame = PlainFrame();
  FrameHeader header = frame.header();
  GetParam().change(header);
  frame.Seal(header, ArrayBytes(frame));
  EXPECT_EQ(Refusal(frame), GetParam().reason);
}

INSTANTIATE_TEST_SUITE_P(
    Table, HeaderBadInputTest,
    ::testing::Values(
        HeaderCase{"D02_Magic", [](FrameHeader& h) { h.magic[2] = 'W'; }, "bad_magic"},
        HeaderCase{"D02_VersionOlder", [](FrameHeader& h) { h.version = 0; }, "version"},
        HeaderCase{"D02_VersionNewer", [](FrameHeader& h) { h.version = 2; }, "version"},
        HeaderCase{"D02_TypeZero", [](FrameHeader& h) { h.type = 0; }, "type"},
        HeaderCase{"D02_TypeUnknown", [](FrameHeader& h) { h.type = 8; }, "type"},
        HeaderCase{"D02_TypeReplyAsCall", [](FrameHeader& h) { h.type = 2; }, "type"},
        HeaderCase{"D02_FlagReservedLow", [](FrameHeader& h) { h.flags |= 1u << 10; }, "flags"},
        HeaderCase{"D02_FlagReservedHigh", [](FrameHeader& h) { h.flags |= 1u << 15; }, "flags"},
        HeaderCase{"D02_FlagHedgeNotHonoured", [](FrameHeader& h) { h.flags |= 1u << 5; }, "flags"},
        HeaderCase{"D02_FlagPairReplyNotHonoured", [](FrameHeader& h) { h.flags |= 1u << 8; },
                   "flags"},
        HeaderCase{"D04_PayloadZero", [](FrameHeader& h) { h.payload_bytes = 0; }, "bad_length"},
        HeaderCase{"D04_PayloadLargest", [](FrameHeader& h) { h.payload_bytes = UINT32_MAX; },
                   "bad_length"},
        HeaderCase{"D04_PayloadWraps", [](FrameHeader& h) { h.payload_bytes = UINT32_MAX - 63; },
                   "bad_length"},
        HeaderCase{"D04_PayloadOneMore", [](FrameHeader& h) { ++h.payload_bytes; }, "bad_length"},
        HeaderCase{"D04_PayloadOneLess", [](FrameHeader& h) { --h.payload_bytes; }, "bad_length"},
        HeaderCase{"D04_RowsDisagree", [](FrameHeader& h) { ++h.rows; }, "bad_length"},
        HeaderCase{"D04_PayloadCrcClaimed", [](FrameHeader& h) { h.flags |= kFlagPayloadCrc; },
                   "bad_length"},
        HeaderCase{"D06_LayerFirstBeyond", [](FrameHeader& h) { h.layer = 8; }, "no_such_layer"},
        HeaderCase{"D06_LayerLargest", [](FrameHeader& h) { h.layer = 0xffff; }, "no_such_layer"},
        HeaderCase{"D07_RowsZero", [](FrameHeader& h) { h.rows = 0; }, "bad_items"},
        HeaderCase{"D07_RowsBeyondGrant", [](FrameHeader& h) { h.rows = 17; }, "bad_items"},
        HeaderCase{"D07_RowsLargest", [](FrameHeader& h) { h.rows = 0xffff; }, "bad_items"},
        HeaderCase{"D07_ImageRowsBeyondRows", [](FrameHeader& h) { h.image_rows = kRows + 1; },
                   "bad_items"},
        HeaderCase{"D07_ImageRowsWrap16Bits", [](FrameHeader& h) { h.image_rows = 0x10001; },
                   "bad_items"},
        HeaderCase{"D08_WidthOneMore", [](FrameHeader& h) { ++h.row_width; }, "shape_mismatch"},
        HeaderCase{"D08_WidthZero", [](FrameHeader& h) { h.row_width = 0; }, "shape_mismatch"},
        HeaderCase{"D08_DispatchF32", [](FrameHeader& h) { h.flags &= ~0x3u; }, "shape_mismatch"},
        HeaderCase{"D08_CombineF32", [](FrameHeader& h) { h.flags &= ~0xcu; }, "shape_mismatch"},
        HeaderCase{"D08_Fp16", [](FrameHeader& h) { h.flags = (h.flags & ~0xfu) | 0xau; },
                   "shape_mismatch"},
        HeaderCase{"D08_Fp8", [](FrameHeader& h) { h.flags |= 0xfu; }, "shape_mismatch"},
        HeaderCase{"D11_ModelNotAgreed", [](FrameHeader& h) { h.model = 2; }, "cluster_mismatch"}),
    [](const auto& test) { return test.param.name; });

// The number of pairs moves the end of the arrays, so the CRC is computed for the claimed number.
TEST(FrameBadInputTest, D07_PairCountsOutOfRangeAreRefused) {
  const struct {
    uint16_t pairs;
    const char* reason;
  } cases[] = {{0, "bad_items"},
               {kRows - 1, "bad_items"},
               {2 * kRows + 1, "bad_items"},
               {33, "bad_items"},
               {0xffff, "bad_length"}};
  for (const auto& c : cases) {
    FrameBytes frame = PlainFrame();
    FrameHeader header = frame.header();
    header.pairs = c.pairs;
    const size_t array_bytes = std::min(size_t{8} * c.pairs, frame.size() - kFrameHeaderBytes);
    frame.Seal(header, array_bytes);
    EXPECT_EQ(Refusal(frame), c.reason) << c.pairs << " pairs";
  }
}

struct ArrayCase {
  const char* name;
  std::function<void(SampleCall&)> change;
  const char* reason;
};

class ArrayBadInputTest : public ::testing::TestWithParam<ArrayCase> {};

TEST_P(ArrayBadInputTest, IsRefusedAsFrameAndAsView) {
  const FrameLimits limits = SampleLimits();
  SampleCall call = PlainCall(limits);
  GetParam().change(call);
  call.Refresh();
  EXPECT_EQ(Refusal(FrameBytes::OfCall(call.view, true, limits)), GetParam().reason);
  EXPECT_EQ(ReasonOf(ValidateCall(call.view, limits)), GetParam().reason);
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Table, ArrayBadInputTest,
    ::testing::Values(
        ArrayCase{"D06_ExpertFirstBeyond", [](SampleCall& c) { c.experts_of_pairs[11] = 4; },
                  "not_held"},
        ArrayCase{"D06_ExpertLargest", [](SampleCall& c) { c.experts_of_pairs[11] = 0xffff; },
                  "not_held"},
        ArrayCase{"D07_PairRowFirstBeyond", [](SampleCall& c) { c.rows_of_pairs[5] = kRows; },
                  "bad_items"},
        ArrayCase{"D07_PairRowLargest", [](SampleCall& c) { c.rows_of_pairs[11] = 0xffff; },
                  "bad_items"},
        ArrayCase{"D07_ExpertsDescend", [](SampleCall& c) { c.experts_of_pairs[7] = 2; },
                  "bad_items"},
        ArrayCase{"D07_DuplicateRowExpert", [](SampleCall& c) { c.rows_of_pairs[1] = 0; },
                  "bad_items"},
        ArrayCase{"D07_RowsOfAnExpertDescend",
                  [](SampleCall& c) { std::swap(c.rows_of_pairs[1], c.rows_of_pairs[2]); },
                  "bad_items"},
        ArrayCase{"D07_RowWithoutPairs",
                  [](SampleCall& c) {
                    c.weights.assign(6, 0.5f);
                    c.rows_of_pairs = {0, 1, 2, 3, 4, 0};
                    c.experts_of_pairs = {0, 0, 0, 0, 0, 1};
                  },
                  "bad_items"},
        ArrayCase{"D07_RowWithMorePairsThanTopK",
                  [](SampleCall& c) {
                    c.weights.assign(8, 0.2f);
                    c.rows_of_pairs = {0, 1, 2, 3, 4, 5, 0, 0};
                    c.experts_of_pairs = {0, 0, 0, 0, 0, 0, 1, 2};
                  },
                  "bad_items"},
        ArrayCase{"D09_GateNan", [](SampleCall& c) { c.weights[3] = std::nanf(""); }, "bad_gate"},
        ArrayCase{"D09_GateInfinite", [](SampleCall& c) { c.weights[3] = kInfinity; }, "bad_gate"},
        ArrayCase{"D09_GateMinusInfinite", [](SampleCall& c) { c.weights[3] = -kInfinity; },
                  "bad_gate"},
        ArrayCase{"D09_GateNegative", [](SampleCall& c) { c.weights[3] = -1e-6f; }, "bad_gate"},
        ArrayCase{"D09_GateAboveOne",
                  [](SampleCall& c) {
                    c.weights[3] = 1.001f;
                    c.weights[9] = 0.0f;
                  },
                  "bad_gate"},
        ArrayCase{"D09_RowSumAboveOne", [](SampleCall& c) { c.weights[3] = 0.501f; }, "bad_gate"}),
    [](const auto& test) { return test.param.name; });

TEST(FrameBadInputTest, D09_WeightsThatOnlyRoundAboveOneAreLegal) {
  const FrameLimits limits = SampleLimits();
  SampleCall call = PlainCall(limits);
  call.weights[3] = std::nextafter(0.5f, 1.0f);
  call.weights[0] = 1.0f;
  call.weights[6] = 0.0f;
  call.Refresh();
  EXPECT_EQ(Refusal(FrameBytes::OfCall(call.view, true, limits)), "");
}

TEST(FrameBadInputTest, D09_AGateWithItsOwnBoundIsHeldToIt) {
  FrameLimits limits = SampleLimits();
  limits.gate_bound = 2.5f;
  SampleCall call = PlainCall(limits);
  call.weights.assign(call.weights.size(), 1.2f);
  call.Refresh();
  EXPECT_EQ(Refusal(FrameBytes::OfCall(call.view, true, limits), limits), "");
  call.weights[4] = 1.4f;
  EXPECT_EQ(Refusal(FrameBytes::OfCall(call.view, true, limits), limits), "bad_gate");
}

TEST(FrameBadInputTest, ViewsWithArraysOfUnequalLengthAreRefused) {
  const FrameLimits limits = SampleLimits();
  const SampleCall call = PlainCall(limits);
  CallView view = call.view;
  view.pair_weight = view.pair_weight.first(11);
  EXPECT_EQ(ReasonOf(ValidateCall(view, limits)), "bad_items");
  view = call.view;
  view.pair_expert = view.pair_expert.first(11);
  EXPECT_EQ(ReasonOf(ValidateCall(view, limits)), "bad_items");
  view = call.view;
  view.rows = view.rows.first(view.rows.size() - 2);
  EXPECT_EQ(ReasonOf(ValidateCall(view, limits)), "bad_length");
  view = call.view;
  view.layer = LayerId(-1);
  EXPECT_EQ(ReasonOf(ValidateCall(view, limits)), "no_such_layer");
}

// A compromised worker's experts and weights stay out of the logs (SR-21).
TEST(FrameBadInputTest, MessagesNameNoExpertAndNoWeight) {
  FrameLimits limits = SampleLimits();
  SampleCall call = PlainCall(limits);
  call.experts_of_pairs[11] = 4321;
  call.Refresh();
  EXPECT_EQ(MessageOf(ValidateCall(call.view, limits)).find("4321"), std::string::npos);
  call = PlainCall(limits);
  call.weights[3] = 77.25f;
  call.Refresh();
  EXPECT_EQ(MessageOf(ValidateCall(call.view, limits)).find("77.25"), std::string::npos);
}

TEST(FrameBadInputTest, D22_ReplyFramesAreCheckedLikeCalls) {
  const FrameLimits limits = SampleLimits();
  SampleCall call = PlainCall(limits);
  ReplyView reply;
  reply.rows = {call.rows.As<std::byte>(), call.view.rows.size()};
  const FrameBytes good = FrameBytes::OfReply(call.view, reply, true, limits);
  for (size_t size = 0; size < good.size(); ++size) {
    const auto parsed = ParseReply(good.Prefix(size).bytes(), limits);
    ASSERT_EQ(ReasonOf(parsed.status()), size < kFrameHeaderBytes ? "short_header" : "bad_length");
  }
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    FrameBytes flipped(good);
    flipped.data()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    ASSERT_FALSE(ParseReply(flipped.bytes(), limits).ok()) << "bit " << bit;
  }
  const auto reason = [&](auto change) {
    FrameBytes frame(good);
    FrameHeader header = frame.header();
    change(header);
    frame.Seal(header, 0);
    return ReasonOf(ParseReply(frame.bytes(), limits).status());
  };
  EXPECT_EQ(reason([](FrameHeader& h) { h.type = 1; }), "type");
  EXPECT_EQ(reason([](FrameHeader& h) { ++h.rows; }), "bad_length");
  EXPECT_EQ(reason([](FrameHeader& h) { h.rows = 0; }), "bad_items");
  EXPECT_EQ(reason([](FrameHeader& h) { h.rows = 17; }), "bad_items");
  EXPECT_EQ(reason([](FrameHeader& h) { h.pairs = 1; }), "bad_items");
  EXPECT_EQ(reason([](FrameHeader& h) { ++h.row_width; }), "shape_mismatch");
  EXPECT_EQ(reason([](FrameHeader& h) { h.layer = 8; }), "no_such_layer");
}

// Whatever arrives, the parser answers, and what it accepts is legal.
TEST(FrameBadInputTest, RandomBytesBehindAValidCrcAreRefusedOrLegal) {
  constexpr uint64_t kSeed = 20'260'101;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  std::mt19937_64 rng(kSeed);
  const FrameLimits limits = SampleLimits();
  const FrameBytes good = PlainFrame();
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    FrameBytes frame(good);
    const size_t changes = 1 + rng() % 4;
    for (size_t i = 0; i < changes; ++i) {
      frame.data()[6 + rng() % (frame.size() - 6)] = static_cast<std::byte>(rng());
    }
    FrameHeader header = frame.header();
    frame.Seal(header, std::min(size_t{8} * header.pairs, frame.size() - kFrameHeaderBytes));
    const auto call = ParseCall(frame.bytes(), limits);
    if (call.ok()) {
      ++accepted;
      ASSERT_TRUE(ValidateCall(*call, limits).ok()) << "round " << round;
    } else {
      ASSERT_NE(ReasonOf(call.status()), "") << "round " << round;
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST(FrameDeathTest, UnalignedFramesAreABrokenInvariant) {
  AlignedBuffer memory(256);
  EXPECT_DEATH((void)ParseCall({memory.As<std::byte>() + 1, 128}, SampleLimits()),
               "kFrameAlignment");
}

}  // namespace
}  // namespace conclave::transport
