// Goal: a ChatRequest of inference.proto means what the same request over HTTP means, and whatever
// else comes is refused with the same reasons. Method: serialised messages, well-formed and
// hostile, through the pure functions of the wire.
#include "grpc/chat_wire.h"

#include <gmock/gmock.h>
#include <grpcpp/impl/codegen/proto_utils.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>

#include "conclave/base/status.h"
#include "http/chat_request.h"
#include "inference.pb.h"

namespace conclave::frontend {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

ModelCard Card() {
  ModelCard card;
  card.id = "demo";
  card.max_model_len = 2048;
  card.vocab_size = 256;
  card.has_vision = true;
  return card;
}

grpc::ByteBuffer Bytes(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return {&slice, 1};
}

absl::StatusOr<WireChat> Read(const v1::ChatRequest& request, const ModelCard& card = Card()) {
  return ReadChat(Bytes(request.SerializeAsString()), HttpLimits(), card);
}

v1::ChatRequest Question(const std::string& text = "hi") {
  v1::ChatRequest request;
  v1::ChatMessage& message = *request.add_messages();
  message.set_role("user");
  message.add_content()->set_text(text);
  return request;
}

TEST(ChatWireTest, AnEmptyFieldMeansWhatAnAbsentOneMeansOverHttp) {
  const absl::StatusOr<WireChat> wire = Read(Question());
  ASSERT_TRUE(wire.ok()) << wire.status();
  const absl::StatusOr<ParsedChat> http = ParseChatRequest(
      R"({"model":"demo","messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]})",
      HttpLimits(), Card());
  ASSERT_TRUE(http.ok()) << http.status();
  const SamplingParams& a = wire->request.sampling;
  const SamplingParams& b = http->request.sampling;
  EXPECT_EQ(a.temperature, b.temperature);
  EXPECT_EQ(a.top_p, b.top_p);
  EXPECT_EQ(a.top_k, b.top_k);
  EXPECT_EQ(a.min_p, b.min_p);
  EXPECT_EQ(a.repetition_penalty, b.repetition_penalty);
  EXPECT_EQ(a.presence_penalty, b.presence_penalty);
  EXPECT_EQ(a.frequency_penalty, b.frequency_penalty);
  EXPECT_EQ(a.num_top_logprobs, b.num_top_logprobs);
  EXPECT_FALSE(wire->has_seed);
  EXPECT_EQ(wire->request.max_tokens, http->request.max_tokens);
  EXPECT_EQ(wire->request.num_choices, http->request.num_choices);
  EXPECT_EQ(wire->deadline.count(), 0);
  ASSERT_EQ(wire->request.messages.size(), 1u);
  EXPECT_EQ(wire->request.messages[0].role, http->request.messages[0].role);
  EXPECT_EQ(wire->request.messages[0].parts[0].bytes, http->request.messages[0].parts[0].bytes);
}

TEST(ChatWireTest, EveryFieldArrives) {
  v1::ChatRequest request;
  request.set_model("demo");
  v1::ChatMessage* message = request.add_messages();
  message->set_role("system");
  message->add_content()->set_text("be brief");
  message = request.add_messages();
  message->set_role("user");
  message->add_content()->set_image(std::string("\0\xff picture", 10));
  message->add_content()->set_text("what is it?");
  v1::SamplingParams& sampling = *request.mutable_sampling();
  sampling.set_temperature(0.5f);
  sampling.set_top_p(0.25f);
  sampling.set_top_k(7);
  sampling.set_min_p(0.125f);
  sampling.set_repetition_penalty(1.5f);
  sampling.set_presence_penalty(-1);
  sampling.set_frequency_penalty(2);
  sampling.set_seed(std::numeric_limits<uint64_t>::max());
  request.set_max_tokens(12);
  request.add_stop("END");
  request.set_deadline_ms(1500);
  request.set_return_token_ids(true);

  const absl::StatusOr<WireChat> read = Read(request);
  ASSERT_TRUE(read.ok()) << read.status();
  const ChatRequest& chat = read->request;
  ASSERT_EQ(chat.messages.size(), 2u);
  EXPECT_EQ(chat.messages[0].role, Message::Role::kSystem);
  ASSERT_EQ(chat.messages[1].parts.size(), 2u);
  EXPECT_EQ(chat.messages[1].parts[0].kind, ContentPart::Kind::kImage);
  EXPECT_EQ(chat.messages[1].parts[0].bytes, std::string("\0\xff picture", 10));
  EXPECT_EQ(chat.messages[1].parts[0].param, "messages[1].content[0].image");
  EXPECT_EQ(chat.messages[1].parts[1].bytes, "what is it?");
  EXPECT_EQ(chat.sampling.temperature, 0.5f);
  EXPECT_EQ(chat.sampling.top_p, 0.25f);
  EXPECT_EQ(chat.sampling.top_k, 7);
  EXPECT_EQ(chat.sampling.min_p, 0.125f);
  EXPECT_EQ(chat.sampling.repetition_penalty, 1.5f);
  EXPECT_EQ(chat.sampling.presence_penalty, -1);
  EXPECT_EQ(chat.sampling.frequency_penalty, 2);
  EXPECT_TRUE(read->has_seed);
  EXPECT_EQ(chat.sampling.seed, std::numeric_limits<uint64_t>::max());
  EXPECT_EQ(chat.max_tokens, 12);
  EXPECT_THAT(chat.stops, ElementsAre("END"));
  EXPECT_EQ(read->deadline, std::chrono::milliseconds(1500));
  EXPECT_TRUE(chat.return_token_ids);
}

struct BadRow {
  const char* what;
  std::function<void(v1::ChatRequest&)> spoil;
  absl::StatusCode code;
  const char* reason;
  const char* param;
};

void SetNumber(v1::ChatRequest& request, void (v1::SamplingParams::*set)(float), float value) {
  (request.mutable_sampling()->*set)(value);
}

// NOLINTNEXTLINE(readability-function-size): a table.
std::vector<BadRow> BadRows() {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  using R = v1::ChatRequest;
  using S = v1::SamplingParams;
  const float nan = std::nanf("");
  return {
      {"unknown model", [](R& r) { r.set_model("other"); }, absl::StatusCode::kNotFound,
       "model_not_found", "model"},
      {"no messages", [](R& r) { r.clear_messages(); }, kInvalid, "messages_required", "messages"},
      {"many messages",
       [](R& r) {
         for (int i = 0; i < 300; ++i) {
           *r.add_messages() = r.messages(0);
         }
       },
       kInvalid, "too_many_messages", "messages"},
      {"no role", [](R& r) { r.mutable_messages(0)->clear_role(); }, kInvalid, "invalid_role",
       "messages[0].role"},
      {"strange role", [](R& r) { r.mutable_messages(0)->set_role("tool"); }, kInvalid,
       "invalid_role", "messages[0].role"},
      {"order", [](R& r) { *r.add_messages() = r.messages(0); }, kInvalid, "invalid_role",
       "messages[1].role"},
      {"assistant last",
       [](R& r) {
         *r.add_messages() = r.messages(0);
         r.mutable_messages(1)->set_role("assistant");
       },
       kInvalid, "invalid_role", "messages[1].role"},
      {"no content", [](R& r) { r.mutable_messages(0)->clear_content(); }, kInvalid,
       "invalid_content", "messages[0].content"},
      {"empty text", [](R& r) { r.mutable_messages(0)->mutable_content(0)->set_text(""); },
       kInvalid, "invalid_content", "messages[0].content"},
      {"a part of nothing", [](R& r) { r.mutable_messages(0)->add_content(); }, kInvalid,
       "invalid_content_part", "messages[0].content[1]"},
      {"many parts",
       [](R& r) {
         for (int i = 0; i < 65; ++i) {
           r.mutable_messages(0)->add_content()->set_text("x");
         }
       },
       kInvalid, "too_many_content_parts", "messages[0].content"},
      {"an empty picture", [](R& r) { r.mutable_messages(0)->add_content()->set_image(""); },
       kInvalid, "image_empty", "messages[0].content[1].image"},
      {"a large picture",
       [](R& r) {
         r.mutable_messages(0)->add_content()->set_image(std::string((10 << 20) + 1, 'x'));
       },
       kInvalid, "image_too_large", "messages[0].content[1].image"},
      {"many pictures",
       [](R& r) {
         for (int i = 0; i < 5; ++i) {
           r.mutable_messages(0)->add_content()->set_image("x");
         }
       },
       kInvalid, "too_many_images", "messages"},
      {"a picture of the system",
       [](R& r) {
         v1::ChatMessage user = r.messages(0);
         r.mutable_messages(0)->set_role("system");
         r.mutable_messages(0)->add_content()->set_image("x");
         *r.add_messages() = user;
       },
       kInvalid, "image_not_allowed", "messages[0].content[1].image"},
      {"temperature", [](R& r) { SetNumber(r, &S::set_temperature, 2.5f); }, kInvalid,
       "temperature_out_of_range", "sampling.temperature"},
      {"temperature NaN", [=](R& r) { SetNumber(r, &S::set_temperature, nan); }, kInvalid,
       "temperature_out_of_range", "sampling.temperature"},
      {"top_p", [](R& r) { SetNumber(r, &S::set_top_p, 1.25f); }, kInvalid, "top_p_out_of_range",
       "sampling.top_p"},
      {"top_p below 0", [](R& r) { SetNumber(r, &S::set_top_p, -0.5f); }, kInvalid,
       "top_p_out_of_range", "sampling.top_p"},
      {"min_p", [](R& r) { SetNumber(r, &S::set_min_p, 2); }, kInvalid, "min_p_out_of_range",
       "sampling.min_p"},
      {"top_k", [](R& r) { r.mutable_sampling()->set_top_k(-2); }, kInvalid, "top_k_out_of_range",
       "sampling.top_k"},
      {"repetition_penalty", [](R& r) { SetNumber(r, &S::set_repetition_penalty, -1); }, kInvalid,
       "repetition_penalty_out_of_range", "sampling.repetition_penalty"},
      {"presence_penalty", [](R& r) { SetNumber(r, &S::set_presence_penalty, 3); }, kInvalid,
       "presence_penalty_out_of_range", "sampling.presence_penalty"},
      {"frequency_penalty infinite",
       [](R& r) {
         SetNumber(r, &S::set_frequency_penalty, -std::numeric_limits<float>::infinity());
       },
       kInvalid, "frequency_penalty_out_of_range", "sampling.frequency_penalty"},
      {"max_tokens", [](R& r) { r.set_max_tokens(4'000'000'000U); }, kInvalid,
       "max_tokens_out_of_range", "max_tokens"},
      {"five stops",
       [](R& r) {
         for (int i = 0; i < 5; ++i) {
           r.add_stop("x");
         }
       },
       kInvalid, "invalid_stop", "stop"},
      {"an empty stop", [](R& r) { r.add_stop(""); }, kInvalid, "invalid_stop", "stop"},
      {"a long stop", [](R& r) { r.add_stop(std::string(65, 'x')); }, kInvalid, "invalid_stop",
       "stop"},
  };
}

TEST(ChatWireTest, EveryBadFieldHasTheReasonThatHttpGivesAndItsPlace) {
  for (const BadRow& row : BadRows()) {
    SCOPED_TRACE(row.what);
    v1::ChatRequest request = Question();
    row.spoil(request);
    const absl::Status status = Read(request).status();
    EXPECT_EQ(status.code(), row.code) << status;
    EXPECT_EQ(ReasonOf(status), row.reason);
    EXPECT_EQ(ParamOf(status), row.param);
    EXPECT_THAT(MessageOf(status), testing::StartsWith(row.param));
  }
}

TEST(ChatWireTest, ATextModelTakesNoPictures) {
  v1::ChatRequest request = Question();
  request.mutable_messages(0)->add_content()->set_image("x");
  ModelCard card = Card();
  card.has_vision = false;
  EXPECT_EQ(ReasonOf(Read(request, card).status()), "image_not_allowed");
}

TEST(ChatWireTest, R03BytesThatAreNoRequestAreRefused) {
  const auto reason = [](const std::string& bytes) {
    return ReasonOf(ReadChat(Bytes(bytes), HttpLimits(), Card()).status());
  };
  const std::string good = Question("text").SerializeAsString();
  for (size_t size = 1; size < good.size(); ++size) {
    EXPECT_EQ(reason(good.substr(0, size)), "protobuf_syntax") << size;
  }
  EXPECT_EQ(reason(""), "messages_required");
  // A string that is no UTF-8; a field number of 0; the end of a group that never began.
  EXPECT_EQ(reason(Question("a").SerializeAsString() + "\x0a\x01\xff"), "protobuf_syntax");
  EXPECT_EQ(reason(std::string("\x00\x00", 2)), "protobuf_syntax");
  EXPECT_EQ(reason("\x0c"), "protobuf_syntax");
  // Groups within groups, deeper than any parser should follow.
  EXPECT_EQ(reason(std::string(1 << 20, '\x0b')), "protobuf_syntax");
}

TEST(ChatWireTest, R03FieldsOfLaterVersionsArePassedOver) {
  const std::string later = Question().SerializeAsString() + "\xf8\x07\x01\x82\x08\x03new";
  EXPECT_TRUE(ReadChat(Bytes(later), HttpLimits(), Card()).ok());
}

TEST(ChatWireTest, R03MillionsOfEmptyMessagesAreCountedAndNotMade) {
  std::string bytes;
  for (int i = 0; i < 4'000'000; ++i) {
    bytes += std::string_view("\x12\x00", 2);
  }
  const absl::Status status = ReadChat(Bytes(bytes), HttpLimits(), Card()).status();
  EXPECT_EQ(ReasonOf(status), "too_many_fields");
  EXPECT_THAT(MessageOf(status), HasSubstr("expected at most"));
}

TEST(ChatWireTest, R03RandomBytesNeverPassForARequest) {
  const unsigned seed = std::random_device()();
  std::mt19937 random(seed);
  for (int i = 0; i < 20'000; ++i) {
    std::string bytes(random() % 64, '\0');
    for (char& c : bytes) {
      c = static_cast<char>(random());
    }
    const absl::Status status = ReadChat(Bytes(bytes), HttpLimits(), Card()).status();
    ASSERT_FALSE(status.ok()) << "seed " << seed;
    ASSERT_NE(ReasonOf(status), "") << "seed " << seed;
  }
}

TEST(ChatWireTest, APieceIsAResponse) {
  const auto parse = [](grpc::ByteBuffer bytes) {
    v1::ChatResponse response;
    EXPECT_TRUE(grpc::SerializationTraits<v1::ChatResponse>::Deserialize(&bytes, &response).ok());
    return response;
  };
  ChatPiece piece;
  piece.text = "Hallo";
  piece.token_ids = {3, 100'000};
  const v1::ChatResponse some = parse(WritePiece(piece));
  EXPECT_EQ(some.text(), "Hallo");
  EXPECT_THAT(some.token_ids(), ElementsAre(3, 100'000));
  EXPECT_EQ(some.finish_reason(), "");
  EXPECT_FALSE(some.has_usage());

  ChatPiece last;
  last.reason = FinishReason::kLength;
  last.usage = Usage{10, 6, 4, 3};
  const v1::ChatResponse end = parse(WritePiece(last));
  EXPECT_EQ(end.finish_reason(), "length");
  EXPECT_EQ(end.usage().prompt_tokens(), 10u);
  EXPECT_EQ(end.usage().cached_tokens(), 4u);
  EXPECT_EQ(end.usage().completion_tokens(), 3u);
}

}  // namespace
}  // namespace conclave::frontend
