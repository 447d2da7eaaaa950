// Goal: sizes, durations and numbers are read exactly or refused with what was expected.
// Method: tables of texts.
#include "conclave/service/units.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "conclave/base/status.h"

namespace conclave::service {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

TEST(ByteSizeTest, ReadsUnits) {
  const std::pair<const char*, int64_t> cases[] = {
      {"0B", 0},
      {"1B", 1},
      {"64KiB", 65536},
      {"512MiB", 536870912},
      {"4GiB", 4294967296},
      {"1.5GiB", 1610612736},
      {"2TiB", 2199023255552},
      {"100KB", 100000},
      {"3MB", 3000000},
      {"1GB", 1000000000},
      {"1TB", 1000000000000},
      {"0.5KiB", 512},
      {"9223372036854775807B", INT64_MAX},
  };
  for (const auto& [text, bytes] : cases) {
    const auto size = ParseByteSize(text);
    ASSERT_TRUE(size.ok()) << text << ": " << size.status();
    EXPECT_EQ(size->bytes, bytes) << text;
  }
}

TEST(ByteSizeTest, L05RefusesWhatHasNoUnitOrIsNone) {
  for (const char* text : {"10", "", "GiB", "4 GiB", "4gib", "4G", "-1GiB", "+1GiB", "1.GiB",
                           ".5GiB", "1,5GiB", "0x10B", "4GiBB", "nanGiB", "infGiB", "eGiB", "1e"}) {
    const auto size = ParseByteSize(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_THAT(MessageOf(size.status()),
                HasSubstr("expected a size with a unit, such as 512MiB or 4GiB, found \""))
        << text;
    EXPECT_EQ(ReasonOf(size.status()), "usage");
  }
}

TEST(ByteSizeTest, L05RefusesWhatDoesNotFit) {
  for (const char* text :
       {"1e30GiB", "9223372036854775808B", "8388608TiB", "99999999999999999999GiB"}) {
    const auto size = ParseByteSize(text);
    ASSERT_FALSE(size.ok()) << text;
    EXPECT_EQ(size.status().code(), absl::StatusCode::kOutOfRange) << text;
  }
}

TEST(ByteSizeTest, TextIsShortAndReadsBack) {
  EXPECT_EQ(ToString(ByteSize{int64_t{4} << 30}), "4GiB");
  EXPECT_EQ(ToString(ByteSize{1536}), "1536B");
  EXPECT_EQ(ToString(ByteSize{0}), "0B");
  for (const int64_t bytes :
       {int64_t{0}, int64_t{1}, int64_t{1023}, int64_t{1} << 40, int64_t{3} << 20, INT64_MAX}) {
    EXPECT_EQ(ParseByteSize(ToString(ByteSize{bytes}))->bytes, bytes);
  }
}

TEST(DurationTest, ReadsUnits) {
  const std::pair<const char*, int64_t> cases[] = {{"250ms", 250},    {"30s", 30'000},
                                                   {"1.5s", 1'500},   {"5m", 300'000},
                                                   {"2h", 7'200'000}, {"0s", 0}};
  for (const auto& [text, millis] : cases) {
    const auto duration = ParseDuration(text);
    ASSERT_TRUE(duration.ok()) << text;
    EXPECT_EQ(duration->count(), millis) << text;
  }
}

TEST(DurationTest, L06RefusesWhatHasNoUnitOrIsNone) {
  for (const char* text : {"5", "5 s", "-1s", "\u221e", "", "s", "5sec", "1m30s", "5S", "infs"}) {
    const auto duration = ParseDuration(text);
    ASSERT_FALSE(duration.ok()) << text;
    EXPECT_THAT(MessageOf(duration.status()),
                HasSubstr("expected a duration with a unit, such as 250ms or 30s, found \""))
        << text;
  }
  EXPECT_EQ(ParseDuration("10001h").status().code(), absl::StatusCode::kOutOfRange);
}

TEST(DurationTest, TextIsShortAndReadsBack) {
  EXPECT_EQ(ToString(milliseconds(30'000)), "30s");
  EXPECT_EQ(ToString(milliseconds(90'000)), "90s");
  EXPECT_EQ(ToString(milliseconds(250)), "250ms");
  EXPECT_EQ(ToString(milliseconds(0)), "0ms");
  for (const int64_t millis : {0, 1, 999, 60'000, 3'600'000, 3'600'001}) {
    EXPECT_EQ(ParseDuration(ToString(milliseconds(millis)))->count(), millis);
  }
}

TEST(IntTest, ReadsWholeDecimalNumbersOnly) {
  EXPECT_EQ(*ParseInt("0"), 0);
  EXPECT_EQ(*ParseInt("-1"), -1);
  EXPECT_EQ(*ParseInt("-9223372036854775808"), INT64_MIN);
  for (const char* text : {"", "-", "+1", "1.0", "1e3", "0x10", " 1", "1 ", "010", "-01", "one"}) {
    EXPECT_EQ(ParseInt(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
  }
  EXPECT_EQ(ParseInt("9223372036854775808").status().code(), absl::StatusCode::kOutOfRange);
}

TEST(NumberTest, ReadsFiniteDecimals) {
  EXPECT_EQ(*ParseNumber("0.7"), 0.7);
  EXPECT_EQ(*ParseNumber("-2"), -2.0);
  EXPECT_EQ(*ParseNumber("1e-3"), 1e-3);
  for (const char* text : {"", "nan", "inf", "1e999", "0x1p3", "1,5", "--1", ".5", "1."}) {
    EXPECT_FALSE(ParseNumber(text).ok()) << text;
  }
}

TEST(BoolTest, ReadsTheUsualWords) {
  EXPECT_TRUE(*ParseBool("true"));
  EXPECT_TRUE(*ParseBool("on"));
  EXPECT_FALSE(*ParseBool("0"));
  for (const char* text : {"", "TRUE", "y", "2", "truee"}) {
    EXPECT_FALSE(ParseBool(text).ok()) << text;
  }
}

TEST(QuotedTest, EchoIsPrintableAndShort) {
  EXPECT_EQ(Quoted("a\x1b[31m\nb"), "\"ab\"");
  EXPECT_LE(Quoted(std::string(5000, 'x')).size(), 66U);
}

}  // namespace
}  // namespace conclave::service
