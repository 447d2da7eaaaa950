// Goal: a streamed answer is read right however the bytes are cut, and what is no answer becomes an
// error. Method: the same stream in all pieces of one, two, ... bytes; single events as strings.
#include "sse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "conclave/base/status.h"

namespace conclave::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> FeedInPieces(const std::string& stream, size_t piece) {
  SseReader reader;
  std::vector<std::string> all;
  for (size_t at = 0; at < stream.size(); at += piece) {
    const auto events = reader.Feed(std::string_view(stream).substr(at, piece));
    EXPECT_TRUE(events.ok()) << events.status();
    all.insert(all.end(), events->begin(), events->end());
  }
  return all;
}

TEST(SseReaderTest, AnyCutGivesTheSameEvents) {
  const std::string stream =
      ": comment\n\ndata: one\n\nevent: x\ndata:two\r\ndata:  three\r\n\r\ndata\n\nid: 4\n\ndata: "
      "last\r\r";
  for (size_t piece = 1; piece <= stream.size(); ++piece) {
    ASSERT_THAT(FeedInPieces(stream, piece), ElementsAre("one", "two\n three", "", "last"))
        << piece;
  }
}

TEST(SseReaderTest, EventsHaveTheirNames) {
  SseReader reader;
  const auto events = reader.FeedNamed(
      "event: snapshot\nid: 1\ndata: a\n\ndata: b\n\nevent:data\n\nevent: delta\r\ndata: "
      "c\r\n\r\n");
  ASSERT_TRUE(events.ok());
  std::vector<std::pair<std::string, std::string>> found;
  for (const SseEvent& event : *events) {
    found.emplace_back(event.name, event.data);
  }
  using Pair = std::pair<std::string, std::string>;
  EXPECT_THAT(found, ElementsAre(Pair("snapshot", "a"), Pair("", "b"), Pair("delta", "c")));
  SseReader small(4);
  EXPECT_EQ(ReasonOf(small.FeedNamed("data: long\n\n").status()), "http");
}

TEST(SseReaderTest, UnfinishedEventIsNone) {
  EXPECT_THAT(FeedInPieces("data: one\n", 3), IsEmpty());
}

TEST(SseReaderTest, EndlessEventIsRefused) {
  SseReader reader;
  EXPECT_TRUE(reader.Feed("data: ").ok());
  const auto events = reader.Feed(std::string(2 << 20, 'x'));
  EXPECT_EQ(ReasonOf(events.status()), "http");
}

TEST(ChatEventTest, TextOfTheDelta) {
  const auto event = ParseChatEvent(R"({"choices":[{"index":0,"delta":{"content":"Hi \u00e9"}}]})");
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(event->text, "Hi \xc3\xa9");
  EXPECT_FALSE(event->is_end);
}

TEST(ChatEventTest, ChunksWithoutTextAreFine) {
  for (const char* data :
       {R"({"choices":[]})", R"({"choices":[{"delta":{"role":"assistant"}}]})",
        R"({"choices":[{"delta":{"content":null},"finish_reason":"stop"}],"error":null})"}) {
    const auto event = ParseChatEvent(data);
    ASSERT_TRUE(event.ok()) << data;
    EXPECT_EQ(event->text, "");
  }
  EXPECT_TRUE(ParseChatEvent("[DONE]")->is_end);
}

TEST(ChatEventTest, ErrorInTheStreamHasItsReason) {
  const auto event =
      ParseChatEvent(R"({"error":{"message":"expert 3 is\nnot served","code":"expert_unserved"}})");
  EXPECT_EQ(ReasonOf(event.status()), "expert_unserved");
  EXPECT_EQ(MessageOf(event.status()), "expert 3 isnot served");
}

TEST(ChatEventTest, WhatIsNoChunkIsRefused) {
  for (const char* data : {"", "x", "[1]", "null", "{}", R"({"choices":{}})", R"({"choices":[)"}) {
    EXPECT_EQ(ReasonOf(ParseChatEvent(data).status()), "http") << data;
  }
}

TEST(ErrorOfTest, ServersWordsAreKeptWhenTheyAreWords) {
  const absl::Status status =
      ErrorOf(400, R"({"error":{"message":"the image ends early","code":"image_truncated"}})");
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReasonOf(status), "image_truncated");
  EXPECT_EQ(ErrorOf(503, R"({"error":{"message":"m","code":"overloaded"}})").code(),
            absl::StatusCode::kUnavailable);
}

TEST(ErrorOfTest, StrangeBodiesGiveTheStatusAlone) {
  for (const char* body : {"", "<html>", R"({"error":"x"})", R"({"error":{"code":7,"message":[]}})",
                           R"({"error":{"code":"Two words\n"}})"}) {
    const absl::Status status = ErrorOf(502, body);
    EXPECT_EQ(ReasonOf(status), "http") << body;
    EXPECT_EQ(MessageOf(status), "HTTP 502") << body;
  }
  EXPECT_THAT(MessageOf(ErrorOf(500, R"({"error":{"message":"a\u001b[31mb"}})")), HasSubstr("ab"));
}

}  // namespace
}  // namespace conclave::cli
