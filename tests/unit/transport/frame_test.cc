// Goal: what is encoded is what is parsed, byte layout included.
// Method: round trips of seeded random calls, replies and NACKs, and one frame looked at byte by
// byte.
#include "conclave/transport/frame.h"

#include <cstring>

#include "conclave/base/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "sample_call.h"

namespace conclave::transport {
namespace {

using ::testing::ElementsAre;
using ::testing::ElementsAreArray;

void ExpectSameCall(const CallView& a, const CallView& b) {
  EXPECT_EQ(a.epoch, b.epoch);
  EXPECT_EQ(a.frontend, b.frontend);
  EXPECT_EQ(a.slot, b.slot);
  EXPECT_EQ(a.seq, b.seq);
  EXPECT_EQ(a.model, b.model);
  EXPECT_EQ(a.layer, b.layer);
  EXPECT_EQ(a.phase, b.phase);
  EXPECT_EQ(a.micro_batch, b.micro_batch);
  EXPECT_EQ(a.attempt, b.attempt);
  EXPECT_EQ(a.deadline_us, b.deadline_us);
  EXPECT_EQ(a.image_rows, b.image_rows);
  EXPECT_EQ(a.dtype, b.dtype);
  EXPECT_EQ(a.row_width, b.row_width);
  EXPECT_EQ(a.num_rows, b.num_rows);
  EXPECT_THAT(a.pair_weight, ElementsAreArray(b.pair_weight));
  EXPECT_THAT(a.pair_row, ElementsAreArray(b.pair_row));
  EXPECT_THAT(a.pair_expert, ElementsAreArray(b.pair_expert));
  ASSERT_EQ(a.rows.size(), b.rows.size());
  EXPECT_EQ(std::memcmp(a.rows.data(), b.rows.data(), a.rows.size()), 0);
}

class FrameRoundTripTest : public ::testing::TestWithParam<std::tuple<WireDtype, bool>> {};

TEST_P(FrameRoundTripTest, CallsSurvive) {
  const auto [dtype, with_crc] = GetParam();
  const FrameLimits limits = SampleLimits(dtype);
  for (uint64_t seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    const SampleCall call = MakeSampleCall(seed, limits, static_cast<uint16_t>(1 + seed % 16));
    const FrameBytes frame = FrameBytes::OfCall(call.view, with_crc, limits);
    EXPECT_LE(frame.size(), MaxFrameBytes(limits));
    EXPECT_EQ(frame.size(), CallFrameBytes(call.view.pair_row.size(), call.view.rows.size()) +
                                (with_crc ? 4 : 0));
    const auto parsed = ParseCall(frame.bytes(), limits);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    ExpectSameCall(*parsed, call.view);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(parsed->rows.data()) % kFrameAlignment, 0u);
  }
}

TEST_P(FrameRoundTripTest, RepliesSurvive) {
  const auto [dtype, with_crc] = GetParam();
  const FrameLimits limits = SampleLimits(dtype);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    SampleCall call = MakeSampleCall(seed, limits, static_cast<uint16_t>(1 + seed % 16));
    ReplyView reply;
    reply.rows = {call.rows.As<std::byte>(), call.view.rows.size()};
    reply.service_us = static_cast<uint32_t>(seed * 1'000'003);
    reply.queue_us = UINT32_MAX - static_cast<uint32_t>(seed);
    const FrameBytes frame = FrameBytes::OfReply(call.view, reply, with_crc, limits);
    EXPECT_EQ(frame.size(), ReplyFrameBytes(reply.rows.size()) + (with_crc ? 4 : 0));
    const auto parsed = ParseReply(frame.bytes(), limits);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_TRUE(CheckAnswers(call.view, *parsed).ok());
    EXPECT_EQ(parsed->service_us, reply.service_us);
    EXPECT_EQ(parsed->queue_us, reply.queue_us);
    EXPECT_EQ(parsed->attempt, call.view.attempt);
    ASSERT_EQ(parsed->rows.size(), reply.rows.size());
    EXPECT_EQ(std::memcmp(parsed->rows.data(), reply.rows.data(), reply.rows.size()), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FrameRoundTripTest,
                         ::testing::Combine(::testing::Values(WireDtype::kF32, WireDtype::kBf16),
                                            ::testing::Bool()),
                         [](const auto& test) {
                           const bool is_f32 = std::get<0>(test.param) == WireDtype::kF32;
                           return std::string(is_f32 ? "F32" : "Bf16") +
                                  (std::get<1>(test.param) ? "PayloadCrc" : "Plain");
                         });

// The offsets of data-plane.md section 3; a peer of another build reads these bytes.
TEST(FrameLayoutTest, FieldsLieAtTheirOffsets) {
  const FrameLimits limits = SampleLimits();
  SampleCall call = MakeSampleCall(3, limits, 5);
  call.view.phase = Phase::kPrefill;
  const FrameBytes frame = FrameBytes::OfCall(call.view, false, limits);
  const auto field = [&frame]<typename T>(size_t offset, T) {
    T value;
    std::memcpy(&value, frame.bytes().data() + offset, sizeof(value));
    return value;
  };
  EXPECT_EQ(field(0, uint32_t{}), 0x01564e43u);  // "CNV" 0x01
  EXPECT_EQ(field(4, uint16_t{}), 1u);
  EXPECT_EQ(field(6, uint16_t{}), 0x15u);  // bf16 both ways, prefill
  EXPECT_EQ(field(8, uint64_t{}), call.view.epoch.value());
  EXPECT_EQ(field(16, uint32_t{}), call.view.frontend);
  EXPECT_EQ(field(20, uint32_t{}), call.view.slot);
  EXPECT_EQ(field(24, uint64_t{}), call.view.seq);
  EXPECT_EQ(field(32, uint16_t{}), call.view.model);
  EXPECT_EQ(field(34, uint16_t{}), call.view.layer.value());
  EXPECT_EQ(field(36, uint16_t{}), 5u);
  EXPECT_EQ(field(38, uint16_t{}), call.view.pair_row.size());
  EXPECT_EQ(field(40, uint8_t{}), call.view.micro_batch);
  EXPECT_EQ(field(41, uint8_t{}), call.view.attempt);
  EXPECT_EQ(field(42, uint16_t{}), 24u);
  EXPECT_EQ(field(44, uint32_t{}), call.view.deadline_us);
  EXPECT_EQ(field(48, uint32_t{}), 0u);
  EXPECT_EQ(field(52, uint32_t{}), call.view.image_rows);
  EXPECT_EQ(field(56, uint32_t{}), frame.size() - 64);
  const size_t pairs = call.view.pair_row.size();
  EXPECT_EQ(field(64, float{}), call.view.pair_weight[0]);
  EXPECT_EQ(field(64 + 4 * pairs, uint16_t{}), call.view.pair_row[0]);
  EXPECT_EQ(field(64 + 6 * pairs, uint16_t{}), call.view.pair_expert[0]);
  const size_t rows_at = (64 + 8 * pairs + 63) / 64 * 64;
  EXPECT_EQ(frame.size(), rows_at + size_t{5} * 24 * 2);
  EXPECT_EQ(std::memcmp(frame.bytes().data() + rows_at, call.view.rows.data(), size_t{5} * 24 * 2),
            0);
}

TEST(FrameLayoutTest, OneRowCostsLittleMoreThanItself) {
  FrameLimits limits = SampleLimits();
  limits.row_width = 2560;
  const SampleCall call = MakeSampleCall(1, limits, 1);
  EXPECT_EQ(FrameBytes::OfCall(call.view, false, limits).size(), 128u + 5120u);
}

TEST(CheckAnswersTest, TellsALateReplyFromABrokenPeer) {
  const FrameLimits limits = SampleLimits();
  SampleCall call = MakeSampleCall(5, limits, 4);
  ReplyView reply;
  reply.rows = {call.rows.As<std::byte>(), call.view.rows.size()};
  const FrameBytes frame = FrameBytes::OfReply(call.view, reply, true, limits);
  const auto parsed = ParseReply(frame.bytes(), limits);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const auto reason = [&](auto change) {
    ParsedReply changed = *parsed;
    change(changed);
    return ReasonOf(CheckAnswers(call.view, changed));
  };
  EXPECT_EQ(reason([](ParsedReply&) {}), "");
  EXPECT_EQ(reason([](ParsedReply& r) { --r.seq; }), "stale_reply");
  EXPECT_EQ(reason([](ParsedReply& r) { ++r.slot; }), "stale_reply");
  EXPECT_EQ(reason([](ParsedReply& r) { ++r.frontend; }), "stale_reply");
  EXPECT_EQ(reason([](ParsedReply& r) { --r.num_rows; }), "protocol_violation");
  EXPECT_EQ(reason([](ParsedReply& r) { r.layer = LayerId(r.layer.value() + 1); }),
            "protocol_violation");
  EXPECT_EQ(reason([](ParsedReply& r) { r.epoch = Epoch(r.epoch.value() + 1); }),
            "protocol_violation");
  EXPECT_EQ(reason([](ParsedReply& r) { ++r.model; }), "protocol_violation");
  EXPECT_EQ(reason([](ParsedReply& r) { ++r.micro_batch; }), "protocol_violation");
  EXPECT_EQ(reason([](ParsedReply& r) { r.rows = r.rows.first(2); }), "protocol_violation");
}

FrameBytes OfNack(const CallView& call, Epoch epoch, NackCode code,
                  std::span<const WorkerId> holders) {
  AlignedBuffer room(MaxFrameBytes(SampleLimits()));
  const size_t size =
      EncodeNack(call, epoch, code, holders, {room.As<std::byte>(), room.size_bytes()});
  return FrameBytes(room.As<std::byte>(), size);
}

TEST(NackTest, CarriesTheWorkersEpochAndHolders) {
  const SampleCall call = MakeSampleCall(9, SampleLimits(), 3);
  const WorkerId holders[] = {WorkerId(7), WorkerId(0), WorkerId(2'000'000'000)};
  const FrameBytes frame = OfNack(call.view, Epoch(42), NackCode::kNotHeld, holders);
  const auto nack = ParseNack(frame.bytes());
  ASSERT_TRUE(nack.ok()) << nack.status();
  EXPECT_EQ(nack->epoch, Epoch(42));
  EXPECT_EQ(nack->frontend, call.view.frontend);
  EXPECT_EQ(nack->slot, call.view.slot);
  EXPECT_EQ(nack->seq, call.view.seq);
  EXPECT_EQ(nack->code, NackCode::kNotHeld);
  EXPECT_THAT(nack->holders, ElementsAre(7u, 0u, 2'000'000'000u));
}

TEST(NackTest, NamesAtMostItsLimitOfHolders) {
  const SampleCall call = MakeSampleCall(9, SampleLimits(), 3);
  const std::vector<WorkerId> holders(kMaxNackHolders + 1, WorkerId(5));
  const FrameBytes frame = OfNack(call.view, Epoch(1), NackCode::kNotHeld, holders);
  const auto nack = ParseNack(frame.bytes());
  ASSERT_TRUE(nack.ok()) << nack.status();
  EXPECT_EQ(nack->holders.size(), kMaxNackHolders);
}

TEST(NackTest, EveryCodeKeepsItsReason) {
  for (uint16_t number = 1; number <= 13; ++number) {
    const NackCode code = static_cast<NackCode>(number);
    const absl::Status status = ToStatus(code);
    EXPECT_FALSE(status.ok());
    EXPECT_EQ(NackCodeOf(status), code) << number;
  }
  EXPECT_EQ(ReasonOf(ToStatus(NackCode::kNotHeld)), "not_held");
  EXPECT_EQ(ToStatus(NackCode::kNotHeld).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(NackCodeOf(absl::UnknownError("no reason")), NackCode::kInternal);
}

TEST(NackTest, EveryBitFlipAndTruncationIsRefused) {
  const SampleCall call = MakeSampleCall(9, SampleLimits(), 3);
  const WorkerId holders[] = {WorkerId(7), WorkerId(1)};
  const FrameBytes good = OfNack(call.view, Epoch(42), NackCode::kNotHeld, holders);
  for (size_t bit = 0; bit < 8 * good.size(); ++bit) {
    FrameBytes flipped(good);
    flipped.data()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    EXPECT_FALSE(ParseNack(flipped.bytes()).ok()) << "bit " << bit;
  }
  for (size_t size = 0; size < good.size(); ++size) {
    const auto nack = ParseNack(good.Prefix(size).bytes());
    ASSERT_FALSE(nack.ok()) << "size " << size;
    EXPECT_EQ(ReasonOf(nack.status()), size < 64 ? "short_header" : "bad_length");
  }
}

TEST(NackTest, RefusesAnUnknownCodeAndAWrongCount) {
  const SampleCall call = MakeSampleCall(9, SampleLimits(), 3);
  const WorkerId holders[] = {WorkerId(7), WorkerId(1)};
  const FrameBytes good = OfNack(call.view, Epoch(42), NackCode::kNotHeld, holders);
  const auto reason = [&good](size_t offset, uint16_t value) {
    FrameBytes frame(good);
    std::memcpy(frame.data() + offset, &value, sizeof(value));
    frame.Seal(frame.header(), frame.size() - kFrameHeaderBytes);
    return ReasonOf(ParseNack(frame.bytes()).status());
  };
  EXPECT_EQ(reason(64, 0), "bad_items");
  EXPECT_EQ(reason(64, 14), "bad_items");
  EXPECT_EQ(reason(66, 1), "bad_length");
  EXPECT_EQ(reason(66, 3), "bad_length");
  EXPECT_EQ(reason(66, 0xffff), "bad_length");
  EXPECT_EQ(reason(36, 1), "bad_items");
  EXPECT_EQ(reason(6, kFlagPayloadCrc), "flags");
}

}  // namespace
}  // namespace conclave::transport
