// Goal: a log line is one line of the promised form, whatever bytes its values hold.
// Method: FormatLogLine and Printable are pure; JSON lines are read back with Boost.JSON.
#include "conclave/observability/log.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <limits>
#include <string>
#include <vector>

namespace conclave::observability {
namespace {

constexpr std::chrono::system_clock::time_point kTime{std::chrono::milliseconds(1'700'000'000'123)};

std::string Text(const std::vector<LogField>& fields) {
  return FormatLogLine(LogFormat::kText, LogLevel::kInfo, kTime, "model loaded", fields);
}

boost::json::object Json(const std::vector<LogField>& fields) {
  const std::string line =
      FormatLogLine(LogFormat::kJson, LogLevel::kWarning, kTime, "model loaded", fields);
  return boost::json::parse(line).as_object();
}

TEST(LogTest, TextLineHasTimeLevelMessageAndFields) {
  EXPECT_EQ(
      Text({{"seconds", 1.25}, {"path", "models/demo"}, {"n", 3}, {"ok", true}}),
      "2023-11-14T22:13:20.123Z INFO  model loaded seconds=1.25 path=models/demo n=3 ok=true");
}

TEST(LogTest, TextValuesWithSpacesQuotesOrNothingAreQuoted) {
  EXPECT_EQ(Text({{"a", "two words"}, {"b", ""}, {"c", "say \"x\\\""}}),
            "2023-11-14T22:13:20.123Z INFO  model loaded a=\"two words\" b=\"\" c=\"say "
            "\\\"x\\\\\\\"\"");
}

TEST(LogTest, JsonLineReadsBack) {
  const boost::json::object line =
      Json({{"path", "a \"b\" \\ c"}, {"n", -7}, {"big", 18446744073709551615ULL}});
  EXPECT_EQ(line.at("ts").as_string(), "2023-11-14T22:13:20.123Z");
  EXPECT_EQ(line.at("level").as_string(), "warning");
  EXPECT_EQ(line.at("message").as_string(), "model loaded");
  EXPECT_EQ(line.at("path").as_string(), "a \"b\" \\ c");
  EXPECT_EQ(line.at("n").as_int64(), -7);
  EXPECT_EQ(line.at("big").as_uint64(), 18446744073709551615ULL);
}

TEST(LogTest, JsonOfEverySingleByteReadsBack) {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string value = "a" + std::string(1, static_cast<char>(byte)) + "b";
    SCOPED_TRACE(byte);
    EXPECT_TRUE(Json({{"value", value}}).at("value").is_string());
  }
}

TEST(LogTest, JsonHasNullForWhatJsonCannotSay) {
  EXPECT_TRUE(Json({{"x", std::numeric_limits<double>::quiet_NaN()}}).at("x").is_null());
  EXPECT_TRUE(Json({{"x", std::numeric_limits<double>::infinity()}}).at("x").is_null());
}

TEST(LogTest, LineBreaksCannotForgeALine) {
  const std::string line = Text({{"x", "a\r\n2023-11-14T22:13:20.123Z INFO  forged"}});
  EXPECT_EQ(line.find('\n'), std::string::npos);
  EXPECT_EQ(line.find('\r'), std::string::npos);
}

TEST(LogTest, UserTextIsCutTo64Bytes) {
  const std::string line = Text({{"x", FromUser(std::string(200, 'u'))}});
  EXPECT_TRUE(line.ends_with("x=" + std::string(61, 'u') + "...")) << line;
}

TEST(LogTest, LevelNamesRoundTripAndOthersAreRefused) {
  for (const LogLevel level :
       {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    EXPECT_EQ(ParseLogLevel(NameOf(level)), level);
  }
  EXPECT_EQ(ParseLogLevel("warn"), LogLevel::kWarning);
  EXPECT_EQ(ParseLogLevel("7"), std::nullopt);
  EXPECT_EQ(ParseLogLevel("INFO"), std::nullopt);
}

TEST(LogTest, OnlyEnabledLevelsReachStderr) {
  SetUpLogging(LogFormat::kText, LogLevel::kWarning);
  testing::internal::CaptureStderr();
  LogInfo("hidden");
  LogWarning("shown", {{"n", 1}});
  const std::string out = testing::internal::GetCapturedStderr();
  SetUpLogging(LogFormat::kText, LogLevel::kInfo);
  EXPECT_EQ(out.find("hidden"), std::string::npos);
  EXPECT_TRUE(out.ends_with(" WARN  shown n=1\n")) << out;
}

struct PrintableCase {
  const char* name;
  std::string in;
  std::string out;
};

class PrintableTest : public testing::TestWithParam<PrintableCase> {};

TEST_P(PrintableTest, GivesHarmlessText) {
  EXPECT_EQ(Printable(GetParam().in, 64), GetParam().out);
}

INSTANTIATE_TEST_SUITE_P(
    All, PrintableTest,
    testing::Values(PrintableCase{"Plain", "Zürich 東京", "Zürich 東京"},
                    PrintableCase{"Colour", "a\x1b[31mred\x1b[0m", "ared"},
                    PrintableCase{"Title", "a\x1b]0;evil\ab", "ab"},
                    PrintableCase{"TitleEndedByString", "a\x1b]0;evil\x1b\\b", "ab"},
                    PrintableCase{"OpenEscape", "a\x1b[31", "a"},
                    PrintableCase{"LoneEscape", "a\x1b", "a"},
                    PrintableCase{"Controls",
                                  std::string("a\0\t\x7f\x08"
                                              "b",
                                              6),
                                  "ab"},
                    PrintableCase{"C1",
                                  "a\xc2\x9b"
                                  "31mb",
                                  "a31mb"},
                    PrintableCase{"Bidi",
                                  "a\xe2\x80\xae"
                                  "b",
                                  "ab"},
                    PrintableCase{"LineSeparator",
                                  "a\xe2\x80\xa8"
                                  "b",
                                  "ab"},
                    PrintableCase{"LoneByte",
                                  "a\xff"
                                  "b",
                                  "a\xEF\xBF\xBD"
                                  "b"},
                    PrintableCase{"Overlong", "\xc0\xaf", "\xEF\xBF\xBD\xEF\xBF\xBD"},
                    PrintableCase{"Surrogate", "\xed\xa0\x80",
                                  "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
                    PrintableCase{"CutCharacter", "a\xe6\x9d", "a\xEF\xBF\xBD\xEF\xBF\xBD"}),
    [](const auto& param_info) { return std::string(param_info.param.name); });

TEST(PrintableTest, CutsAtACharacter) {
  EXPECT_EQ(Printable("abcdef", 6), "abcdef");
  EXPECT_EQ(Printable("abcdefg", 6), "abc...");
  EXPECT_EQ(Printable("ab\xe6\x9d\xb1\xe6\x9d\xb1", 7), "ab...");
  EXPECT_EQ(Printable("abcdefg", 2), "..");
}

TEST(PrintableTest, Utf8IsTold) {
  EXPECT_TRUE(IsUtf8("Zürich \xf0\x9f\x90\xb1"));
  EXPECT_FALSE(IsUtf8("\xf5\x80\x80\x80"));
  EXPECT_FALSE(IsUtf8("\xe6\x9d"));
}

}  // namespace
}  // namespace conclave::observability
