// Goal: replies have OpenAI's shape byte for byte, are valid JSON whatever the model says, and tell
// nothing internal. Method: events into the writers, compared with literal bytes.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/json_writer.h"
#include "conclave/base/status.h"
#include "http/api_error.h"
#include "http/base64.h"
#include "http/chat_response.h"
#include "http/chat_stream.h"
#include "http/npy.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

ReplyShape Shape() {
  ReplyShape shape;
  shape.id = "chatcmpl-1";
  shape.created = 1700000000;
  shape.model = "demo";
  shape.fingerprint = "fp";
  shape.numeric_mode = "bf16";
  return shape;
}

constexpr char kChunkHead[] =
    R"(data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"demo","system_fingerprint":"fp",)";

ChatEvents TextEvent(const std::string& text) {
  ChatEvents events;
  events.choices.resize(1);
  events.choices[0].delta.emplace();
  events.choices[0].delta->text = text;
  return events;
}

ChatEvents EndEvent(FinishReason reason, absl::Status status = absl::OkStatus()) {
  ChatEvents events;
  events.choices.resize(1);
  events.choices[0].end = ChoiceEnd{0, reason, std::move(status), {}, {}, {}};
  return events;
}

ChatEvents DoneEvent() {
  ChatEvents events;
  events.choices.resize(1);
  events.done = ChatEvents::Done{Usage{10, 6, 4, 3}, Timings{1.5, 0.25, 2, 3.0004, 4}};
  return events;
}

constexpr char kUsage[] =
    R"("usage":{"prompt_tokens":10,"completion_tokens":3,"total_tokens":13,)"
    R"("prompt_tokens_details":{"cached_tokens":4,"image_tokens":6}},)"
    R"("conclave":{"timings":{"image_ms":1.5,"queue_ms":0.25,"prefill_ms":2,"decode_ms":3,)"
    R"("first_token_ms":4},"numeric_mode":"bf16"}})";

TEST(ChatStreamWriterTest, WritesRoleThenTextThenFinishThenDone) {
  const ChatStreamWriter writer(Shape());
  std::string out;
  writer.Begin(out);
  writer.Add(TextEvent("Hi \"you\"\n"), out);
  writer.Add(EndEvent(FinishReason::kLength), out);
  writer.Add(DoneEvent(), out);
  const std::string head = kChunkHead;
  EXPECT_EQ(
      out,
      head +
          R"("choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})"
          "\n\n" +
          head +
          R"("choices":[{"index":0,"delta":{"content":"Hi \"you\"\n"},"logprobs":null,"finish_reason":null}]})"
          "\n\n" +
          head +
          R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}]})"
          "\n\ndata: [DONE]\n\n");
}

TEST(ChatStreamWriterTest, WritesUsageInAChunkWithoutChoicesAndNullBefore) {
  ReplyShape shape = Shape();
  shape.include_usage = true;
  const ChatStreamWriter writer(shape);
  std::string out;
  writer.Add(EndEvent(FinishReason::kStop), out);
  writer.Add(DoneEvent(), out);
  const std::string head = kChunkHead;
  EXPECT_EQ(
      out,
      head +
          R"("choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null})"
          "\n\n" +
          head + R"("choices":[],)" + kUsage + "\n\ndata: [DONE]\n\n");
}

TEST(ChatStreamWriterTest, LeavesOutDeltasThatSayNothing) {
  const ChatStreamWriter writer(Shape());
  std::string out;
  writer.Add(TextEvent(""), out);
  EXPECT_EQ(out, "");
}

TEST(ChatStreamWriterTest, EndsAFailedStreamWithTheErrorAndDone) {
  std::string out;
  ChatStreamWriter::Fail({503, "worker_lost", "try again", ""}, out);
  EXPECT_EQ(
      out,
      "data: {\"error\":{\"message\":\"try again\",\"type\":\"unavailable_error\",\"param\":null,"
      "\"code\":\"worker_lost\"}}\n\ndata: [DONE]\n\n");
}

TEST(ChatReplyBuilderTest, WritesTheWholeReply) {
  ChatReplyBuilder builder(Shape());
  builder.Add(TextEvent("Hello"));
  builder.Add(TextEvent(" there"));
  builder.Add(EndEvent(FinishReason::kStop));
  EXPECT_FALSE(builder.is_done());
  builder.Add(DoneEvent());
  ASSERT_TRUE(builder.is_done());
  EXPECT_EQ(
      builder.Body(),
      R"({"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"demo","system_fingerprint":"fp",)"
      R"("choices":[{"index":0,"message":{"role":"assistant","content":"Hello there","refusal":null},)"
      R"("logprobs":null,"finish_reason":"stop"}],)" +
          std::string(kUsage));
}

TEST(ChatReplyBuilderTest, WritesLogprobsTokenIdsAndRoutedExperts) {
  ReplyShape shape = Shape();
  shape.has_logprobs = true;
  shape.has_token_ids = true;
  shape.num_moe_layers = 2;
  shape.moe_top_k = 1;
  ChatReplyBuilder builder(shape);
  ChatEvents events = TextEvent("\xC3\xA9");
  events.choices[0].delta->token_ids = {7};
  TokenLogprob logprob{7, -0.5f, "\xC3", {{8, -INFINITY, "x"}}};
  events.choices[0].delta->logprobs.push_back(logprob);
  builder.Add(std::move(events));
  ChatEvents end = EndEvent(FinishReason::kStop);
  end.choices[0].end->routed_experts = {1, 2, 3, 4};
  builder.Add(std::move(end));
  builder.Add(DoneEvent());
  const std::string body = builder.Body();
  // Half a character is no text; its byte is told.
  EXPECT_NE(
      body.find(R"("logprobs":{"content":[{"token":")"
                "\xEF\xBF\xBD"
                R"(","logprob":-0.5,"bytes":[195],"top_logprobs":[{"token":"x",)"
                R"("logprob":-9999,"bytes":[120]}]}],"refusal":null},"finish_reason":"stop")"),
      std::string::npos)
      << body;
  EXPECT_NE(body.find(R"("token_ids":[7])"), std::string::npos) << body;
  const std::vector<int16_t> experts = {1, 2, 3, 4};
  EXPECT_NE(body.find("\"routed_experts\":\"" + EncodeBase64(NpyFile(experts, 2, 1)) + "\""),
            std::string::npos)
      << body;
}

// The body that ends with `end`, of a model of two layers with up to three experts.
std::string BodyWithGates(ChoiceEnd end) {
  ReplyShape shape = Shape();
  shape.num_moe_layers = 2;
  shape.moe_top_k = 1;
  shape.experts_max = 3;
  ChatReplyBuilder builder(shape);
  ChatEvents events = EndEvent(FinishReason::kStop);
  *events.choices[0].end = std::move(end);
  builder.Add(std::move(events));
  builder.Add(DoneEvent());
  return builder.Body();
}

TEST(ChatReplyBuilderTest, TellsWhichPositionsArePicturesBesideRoutedExperts) {
  const std::string body =
      BodyWithGates({0, FinishReason::kStop, absl::OkStatus(), {1, 2}, {}, {{3, 64}, {70, 64}}});
  EXPECT_NE(body.find(R"("conclave":{"image_rows":[[3,64],[70,64]]}})"), std::string::npos) << body;
  EXPECT_EQ(BodyWithGates({0, FinishReason::kStop, absl::OkStatus(), {}, {}, {{3, 64}}})
                .find("image_rows"),
            std::string::npos)
      << "nobody asked";
}

TEST(ChatReplyBuilderTest, WritesGateProbabilitiesOfEveryPositionLayerAndExpert) {
  const std::vector<float> gates = {0.5f, 0.25f, 0.25f, NAN, NAN, NAN};
  const std::string body = BodyWithGates({0, FinishReason::kStop, absl::OkStatus(), {}, gates, {}});
  EXPECT_NE(body.find(R"("conclave":{"image_rows":[],"gate_probabilities":")" +
                      EncodeBase64(NpyFile(gates, 2, 3)) + R"("}})"),
            std::string::npos)
      << body;
  EXPECT_EQ(body.find("routed_experts"), std::string::npos);
}

TEST(NpyTest, FloatsKeepTheirBits) {
  const std::vector<float> values = {1.0f, -2.5f, NAN, 0.1f, 0, 0};
  const std::string file = NpyFile(values, 1, 3);
  ASSERT_EQ(file.size() % 64, 6u * 4 % 64);
  EXPECT_NE(file.find("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 3), }"),
            std::string::npos);
  const std::string bytes = file.substr(file.size() - 6 * 4);
  EXPECT_EQ(bytes.substr(0, 8), std::string("\x00\x00\x80\x3F\x00\x00\x20\xC0", 8));
  EXPECT_EQ(bytes.substr(8, 8), std::string("\x00\x00\xC0\x7F\xCD\xCC\xCC\x3D", 8));
}

TEST(NpyTest, HasAnAlignedHeaderAndLittleEndianValues) {
  const std::vector<int16_t> values = {1, -1, 258, 0};
  const std::string file = NpyFile(values, 2, 1);
  ASSERT_EQ(file.size(), 128u + 8u);
  EXPECT_EQ(file.substr(0, 8), std::string("\x93NUMPY\x01\x00", 8));
  EXPECT_NE(file.find("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 2, 1), }"),
            std::string::npos);
  EXPECT_EQ(file.substr(128), std::string("\x01\x00\xFF\xFF\x02\x01\x00\x00", 8));
  EXPECT_NE(NpyFile(values, 0, 0).find("'shape': (4,)"), std::string::npos);
}

TEST(JsonWriterTest, T11EscapesWhatBreaksEventsOrScripts) {
  std::string out;
  JsonWriter(out).String(
      "\"\\\b\x01\x7F\n\xE2\x80\xA8\xE2\x80\xA9 data: \xFF\xC3(\xF0\x9F\x98\x80");
  EXPECT_EQ(out,
            "\"\\\"\\\\\\u0008\\u0001\\u007f\\n\\u2028\\u2029 data: "
            "\xEF\xBF\xBD\xEF\xBF\xBD(\xF0\x9F\x98\x80\"");
}

TEST(JsonWriterTest, NumbersReadBackAndNonNumbersAreNull) {
  std::string out;
  JsonWriter(out).BeginArray().Double(0.1).Double(1e300).Float(0.1f).Double(NAN).Int(-5).EndArray();
  EXPECT_EQ(out, "[0.1,1e+300,0.1,null,-5]");
}

TEST(Base64Test, RoundTripsEveryLengthAndByte) {
  std::string bytes;
  for (int i = 0; i < 600; ++i) {
    bytes += static_cast<char>(i * 7 + i / 256);
    const std::optional<std::string> back = DecodeBase64(EncodeBase64(bytes));
    ASSERT_TRUE(back.has_value()) << i;
    ASSERT_EQ(*back, bytes) << i;
  }
  EXPECT_EQ(DecodeBase64(""), "");
}

TEST(Base64Test, RefusesABadCharacterAnywhere) {
  const std::string good = EncodeBase64(std::string(30, 'a'));
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = '-';
    EXPECT_FALSE(DecodeBase64(bad).has_value()) << i;
    bad[i] = '\xFF';
    EXPECT_FALSE(DecodeBase64(bad).has_value()) << i;
  }
}

TEST(Utf8Test, ExcerptsAreShortEscapedAndWhole) {
  EXPECT_EQ(Excerpt("a\r\n\x1B[31m\"\xFF"), "a\\x0d\\x0a\\x1b[31m\\\"\\xff");
  const std::string cut = Excerpt(std::string(63, 'a') + "\xC3\xA9");
  EXPECT_EQ(cut, std::string(63, 'a') + "...");
}

struct ErrorCase {
  absl::Status status;
  int http_status;
  std::string type;
  std::string code;
};

TEST(ApiErrorTest, MapsCodesAndReasonsAsDocumented) {
  using Code = absl::StatusCode;
  const ErrorCase cases[] = {
      {Error(Code::kInvalidArgument, "image_truncated", "m"), 400, "invalid_request_error",
       "image_truncated"},
      {Error(Code::kUnimplemented, "image_format_unsupported", "m"), 415, "invalid_request_error",
       "image_format_unsupported"},
      {Error(Code::kUnimplemented, "jpeg_process_unsupported", "m"), 415, "invalid_request_error",
       "jpeg_process_unsupported"},
      {Error(Code::kNotFound, "model_not_found", "m"), 404, "not_found_error", "model_not_found"},
      {Error(Code::kResourceExhausted, "key_limit", "m"), 429, "rate_limit_error", "key_limit"},
      {Error(Code::kUnavailable, "overloaded", "m"), 503, "unavailable_error", "overloaded"},
      {Error(Code::kDeadlineExceeded, "deadline", "m"), 504, "timeout", "deadline"},
      {Error(Code::kPermissionDenied, "no_scope", "m"), 403, "permission_error", "no_scope"},
      {Error(Code::kUnauthenticated, "invalid_api_key", "m"), 401, "authentication_error",
       "invalid_api_key"},
      {Error(Code::kInternal, "kv_corrupt", "m"), 500, "server_error", "internal_error"},
      {absl::UnknownError("m"), 500, "server_error", "internal_error"},
      {absl::InvalidArgumentError("m"), 400, "invalid_request_error", "invalid_request"},
  };
  for (const ErrorCase& expected : cases) {
    const HttpError error = ErrorFromBackend(expected.status);
    EXPECT_EQ(error.status, expected.http_status) << expected.status;
    EXPECT_EQ(ErrorType(error.status), expected.type) << expected.status;
    EXPECT_EQ(error.code, expected.code) << expected.status;
  }
}

TEST(ApiErrorTest, PassesOnWhatTheClientCanChange) {
  const HttpError error = ErrorFromBackend(WithParam(
      InvalidArgument("context_length_exceeded", "prompt: 2100 tokens; expected at most 2048"),
      "messages"));
  EXPECT_EQ(
      ErrorBody(error, "req-1"),
      R"({"error":{"message":"prompt: 2100 tokens; expected at most 2048",)"
      R"("type":"invalid_request_error","param":"messages","code":"context_length_exceeded"},)"
      R"("request_id":"req-1"})");
}

TEST(ApiErrorTest, NeverTellsPointersPathsAddressesOrLibraryText) {
  const std::string secrets[] = {
      "failed at 0x7ffdeadbeef0",
      "cannot open /var/lib/conclave/model.bin",
      "file:/etc/passwd: denied",
      "boost::system error",
      "two\nlines",
      std::string(2000, 'x'),
  };
  for (const std::string& secret : secrets) {
    const HttpError error = ErrorFromBackend(InvalidArgument("some_reason", secret));
    EXPECT_EQ(error.message.find(secret), std::string::npos) << secret;
    EXPECT_EQ(error.code, "some_reason");
  }
  for (const absl::StatusCode code :
       {absl::StatusCode::kInternal, absl::StatusCode::kUnavailable,
        absl::StatusCode::kDeadlineExceeded, absl::StatusCode::kAborted}) {
    const HttpError error = ErrorFromBackend(Error(code, "r", "worker 10.0.0.7:7000 is gone"));
    EXPECT_EQ(error.message.find("10.0.0.7"), std::string::npos);
  }
}

TEST(FailureTest, AFailedChoiceIsTheReplysFailureAndAFinishedOneIsNot) {
  EXPECT_FALSE(FailureIn(EndEvent(FinishReason::kStop)).has_value());
  EXPECT_FALSE(FailureIn(TextEvent("a")).has_value());
  EXPECT_EQ(FailureIn(EndEvent(FinishReason::kCancelled))->code, "request_cancelled");
  EXPECT_EQ(FailureIn(EndEvent(FinishReason::kError, InvalidArgument("r", "m")))->code, "r");
  EXPECT_EQ(FailureIn(EndEvent(FinishReason::kError))->status, 500);
}

ChatDelta TextDelta(int32_t choice, const std::string& text) {
  ChatDelta delta;
  delta.choice = choice;
  delta.text = text;
  return delta;
}

TEST(ChatStreamTest, MergesWhatWasNotTakenAndNotifiesOnce) {
  int num_notified = 0;
  ChatStream stream(2, 1000, [&num_notified] { ++num_notified; });
  stream.OnDelta(TextDelta(0, "a"));
  stream.OnDelta(TextDelta(1, "x"));
  stream.OnDelta(TextDelta(0, "b"));
  stream.OnChoiceEnd(ChoiceEnd{0, FinishReason::kStop, absl::OkStatus(), {}, {}, {}});
  EXPECT_EQ(num_notified, 1);
  const ChatEvents events = stream.Take();
  EXPECT_EQ(events.choices[0].delta->text, "ab");
  EXPECT_EQ(events.choices[1].delta->text, "x");
  EXPECT_TRUE(events.choices[0].end.has_value());
  EXPECT_FALSE(events.done.has_value());
  EXPECT_TRUE(stream.Take().is_empty());
  stream.OnDone(Usage(), Timings());
  EXPECT_EQ(num_notified, 2);
  EXPECT_TRUE(stream.Take().done.has_value());
}

TEST(ChatStreamTest, DropsEverythingBeyondItsBound) {
  int num_notified = 0;
  ChatStream stream(1, 10, [&num_notified] { ++num_notified; });
  stream.OnDelta(TextDelta(0, "0123456789"));
  EXPECT_FALSE(stream.has_overflowed());
  stream.OnDelta(TextDelta(0, "x"));
  EXPECT_TRUE(stream.has_overflowed());
  EXPECT_EQ(num_notified, 2);
  stream.OnDelta(TextDelta(0, "y"));
  stream.OnDone(Usage(), Timings());
  EXPECT_TRUE(stream.Take().is_empty());
  EXPECT_EQ(num_notified, 2);
}

TEST(ChatStreamTest, IsQuietAfterDetachWhileAnotherThreadWrites) {
  std::atomic<bool> is_detached{false};
  std::atomic<int> num_late{0};
  ChatStream stream(1, size_t{1} << 20, [&] { num_late += is_detached ? 1 : 0; });
  std::thread writer([&stream] {
    for (int i = 0; i < 2000; ++i) {
      stream.OnDelta(TextDelta(0, "a"));
    }
  });
  stream.Take();
  stream.Detach();
  is_detached = true;
  writer.join();
  EXPECT_EQ(num_late, 0);
}

}  // namespace
}  // namespace conclave::frontend
