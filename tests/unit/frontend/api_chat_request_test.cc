// Goal: a chat request is either understood exactly or refused with a stable code and the field's
// name; never a crash. Method: tables of bodies with the row of the bad-input catalogue they belong
// to.
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "conclave/base/status.h"
#include "http/base64.h"
#include "http/chat_request.h"

namespace conclave::frontend {
namespace {

constexpr char kMessages[] = R"("messages":[{"role":"user","content":"hi"}])";

ModelCard Card() {
  ModelCard card;
  card.id = "demo";
  card.max_model_len = 2048;
  card.vocab_size = 1000;
  card.has_vision = true;
  return card;
}

// A good request with `fields` added.
std::string With(const std::string& fields) {
  return R"({"model":"demo",)" + std::string(kMessages) + (fields.empty() ? "" : ",") + fields +
         "}";
}

std::string WithMessages(const std::string& messages) {
  return R"({"model":"demo","messages":)" + messages + "}";
}

std::string WithContent(const std::string& content) {
  return WithMessages(R"([{"role":"user","content":)" + content + "}]");
}

std::string WithImageUrl(const std::string& url) {
  return WithContent(R"([{"type":"image_url","image_url":{"url":")" + url + R"("}}])");
}

std::string Repeat(const std::string& text, int count, const std::string& separator = "") {
  std::string out;
  for (int i = 0; i < count; ++i) {
    out += (i == 0 ? "" : separator) + text;
  }
  return out;
}

absl::StatusOr<ParsedChat> Parse(const std::string& body) {
  return ParseChatRequest(body, HttpLimits(), Card());
}

struct BadCase {
  std::string row;
  std::string body;
  std::string code;
  std::string param;
  absl::StatusCode status = absl::StatusCode::kInvalidArgument;
};

void PrintTo(const BadCase& bad, std::ostream* os) {
  *os << bad.row << " " << bad.body.substr(0, 160);
}

class BadRequestTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadRequestTest, IsRefusedWithCodeAndParamBetweenTwoGoodOnes) {
  const BadCase& bad = GetParam();
  ASSERT_TRUE(Parse(With("")).ok());
  const absl::StatusOr<ParsedChat> result = Parse(bad.body);
  ASSERT_FALSE(result.ok());
  EXPECT_EQ(result.status().code(), bad.status);
  EXPECT_EQ(ReasonOf(result.status()), bad.code);
  EXPECT_EQ(ParamOf(result.status()), bad.param);
  EXPECT_FALSE(MessageOf(result.status()).empty());
  EXPECT_LT(MessageOf(result.status()).size(), 300u);
  EXPECT_TRUE(Parse(With("")).ok());
}

INSTANTIATE_TEST_SUITE_P(
    H18ToH24Json, BadRequestTest,
    testing::Values(
        BadCase{"H18", "", "body_not_object", ""}, BadCase{"H18", "null", "body_not_object", ""},
        BadCase{"H18", "[]", "body_not_object", ""}, BadCase{"H18", "\"x\"", "body_not_object", ""},
        BadCase{"H18", "42", "body_not_object", ""},
        BadCase{"H20", Repeat("[", 100'000), "json_too_deep", ""},
        BadCase{"H20", Repeat("{\"a\":", 100'000), "json_too_deep", ""},
        BadCase{"H20", With("\"x\":" + Repeat("[", 32) + Repeat("]", 32)), "json_too_deep", ""},
        BadCase{"H21", With("") + "x", "json_syntax", ""},
        BadCase{"H21", With("") + With(""), "json_syntax", ""},
        BadCase{"H21", "\xEF\xBB\xBF" + With(""), "json_syntax", ""},
        BadCase{"H21", "/* c */" + With(""), "json_syntax", ""},
        BadCase{"H21", With("\"x\":1 // c\n"), "json_syntax", ""},
        BadCase{"H21", With("\"temperature\":NaN"), "json_syntax", ""},
        BadCase{"H21", With("\"temperature\":Infinity"), "json_syntax", ""},
        BadCase{"H21", "{'model':'demo'}", "json_syntax", ""},
        BadCase{"H21", With("\"x\":1,"), "json_syntax", ""},
        BadCase{"H21", With("\"x\":\"a\nb\""), "json_syntax", ""},
        BadCase{"H22", WithContent("\"\xFF\""), "invalid_utf8", ""},
        BadCase{"H22", WithContent("\"\xC0\xAF\""), "invalid_utf8", ""},
        BadCase{"H22", WithContent("\"\xED\xA0\x80\""), "invalid_utf8", ""},
        BadCase{"H22", WithContent("\"\xF4\x90\x80\x80\""), "invalid_utf8", ""},
        BadCase{"H22", WithContent("\"abc\xE2\x82"), "invalid_utf8", ""},
        BadCase{"H22", WithContent(R"("\ud800")"), "invalid_utf8", ""},
        BadCase{"H22", WithContent(R"("\udc00")"), "invalid_utf8", ""},
        BadCase{"H22", WithContent(R"("\ud800A")"), "invalid_utf8", ""},
        BadCase{"H23", With(R"("model":"other")"), "duplicate_key", ""},
        BadCase{"H23", With(R"("mod\u0065l":"other")"), "duplicate_key", ""},
        BadCase{"H23", WithContent(R"([{"type":"text","text":"a","text":"b"}])"), "duplicate_key",
                ""},
        BadCase{"memory", With("\"x\":[" + Repeat("0", 1'100'000, ",") + "]"), "json_too_large",
                ""}));

INSTANTIATE_TEST_SUITE_P(
    H25Model, BadRequestTest,
    testing::Values(
        BadCase{"H25", "{" + std::string(kMessages) + "}", "model_required", "model"},
        BadCase{"H25", "{\"model\":3," + std::string(kMessages) + "}", "invalid_model", "model"},
        BadCase{"H25", "{\"model\":\"no\"," + std::string(kMessages) + "}", "model_not_found",
                "model", absl::StatusCode::kNotFound},
        BadCase{"H25", "{\"model\":\"" + Repeat("m", 10'240) + "\"," + std::string(kMessages) + "}",
                "model_not_found", "model", absl::StatusCode::kNotFound},
        BadCase{"H25", "{\"model\":\"../../etc\"," + std::string(kMessages) + "}",
                "model_not_found", "model", absl::StatusCode::kNotFound}));

constexpr char kUser[] = R"({"role":"user","content":"q"})";
constexpr char kAssistant[] = R"({"role":"assistant","content":"a"})";
constexpr char kSystem[] = R"({"role":"system","content":"s"})";

std::string Dialogue(const std::vector<std::string>& messages) {
  std::string out;
  for (const std::string& message : messages) {
    out += (out.empty() ? "[" : ",") + message;
  }
  return WithMessages(out + "]");
}

INSTANTIATE_TEST_SUITE_P(
    H26H27Messages, BadRequestTest,
    testing::Values(
        BadCase{"H26", R"({"model":"demo"})", "messages_required", "messages"},
        BadCase{"H26", WithMessages("[]"), "messages_required", "messages"},
        BadCase{"H26", WithMessages("{}"), "messages_required", "messages"},
        BadCase{"H26", WithMessages("null"), "messages_required", "messages"},
        BadCase{"H26", WithMessages("[" + Repeat(kUser, 257, ",") + "]"), "too_many_messages",
                "messages"},
        BadCase{"H26", WithMessages("[3]"), "invalid_message", "messages[0]"},
        BadCase{"H27", WithMessages(R"([{"content":"q"}])"), "invalid_role", "messages[0].role"},
        BadCase{"H27", WithMessages(R"([{"role":7,"content":"q"}])"), "invalid_role",
                "messages[0].role"},
        BadCase{"H27", WithMessages(R"([{"role":"tool","content":"q"}])"), "invalid_role",
                "messages[0].role"},
        BadCase{"H27", WithMessages(R"([{"role":"User","content":"q"}])"), "invalid_role",
                "messages[0].role"},
        BadCase{"H27", Dialogue({kSystem, kSystem, kUser}), "invalid_role", "messages[1].role"},
        BadCase{"H27", Dialogue({kUser, kSystem, kUser}), "invalid_role", "messages[1].role"},
        BadCase{"H27", Dialogue({kAssistant, kUser}), "invalid_role", "messages[0].role"},
        BadCase{"H27", Dialogue({kUser, kUser}), "invalid_role", "messages[1].role"},
        BadCase{"H27", Dialogue({kUser, kAssistant}), "invalid_role", "messages[1].role"},
        BadCase{"H27", Dialogue({kSystem}), "invalid_role", "messages[0].role"}));

INSTANTIATE_TEST_SUITE_P(
    H28H29Content, BadRequestTest,
    testing::Values(
        BadCase{"H28", WithMessages(R"([{"role":"user"}])"), "invalid_content",
                "messages[0].content"},
        BadCase{"H28", WithContent("null"), "invalid_content", "messages[0].content"},
        BadCase{"H28", WithContent("5"), "invalid_content", "messages[0].content"},
        BadCase{"H28", WithContent("\"\""), "invalid_content", "messages[0].content"},
        BadCase{"H28", WithContent("[]"), "invalid_content", "messages[0].content"},
        BadCase{"H28", WithContent("[[]]"), "invalid_content", "messages[0].content[0]"},
        BadCase{"H28", WithContent(R"([{"type":"text","text":""}])"), "invalid_content",
                "messages[0].content"},
        BadCase{"H28", WithContent("[" + Repeat(R"({"type":"text","text":"a"})", 65, ",") + "]"),
                "too_many_content_parts", "messages[0].content"},
        BadCase{"H29", WithContent("[{}]"), "invalid_content_part", "messages[0].content[0].type"},
        BadCase{"H29", WithContent(R"([{"type":"audio"}])"), "invalid_content_part",
                "messages[0].content[0].type"},
        BadCase{"H29", WithContent(R"([{"type":"text","text":4}])"), "invalid_content_part",
                "messages[0].content[0].text"},
        BadCase{"H29", WithContent(R"([{"type":"text","text":"a"},{"type":"image_url"}])"),
                "invalid_content_part", "messages[0].content[1].image_url"},
        BadCase{"H29", WithContent(R"([{"type":"image_url","image_url":{}}])"),
                "invalid_content_part", "messages[0].content[0].image_url.url"},
        BadCase{
            "H29",
            WithContent(R"([{"type":"image_url","image_url":{"url":"data:,","detail":"huge"}}])"),
            "invalid_content_part", "messages[0].content[0].image_url.detail"}));

constexpr char kImagePart[] =
    R"({"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}})";

INSTANTIATE_TEST_SUITE_P(
    H30Images, BadRequestTest,
    testing::Values(
        BadCase{"H30", WithContent("[" + Repeat(kImagePart, 5, ",") + "]"), "too_many_images",
                "messages"},
        BadCase{
            "H30",
            Dialogue({R"({"role":"system","content":[)" + std::string(kImagePart) + "]}", kUser}),
            "image_not_allowed", "messages[0].content[0].image_url"},
        BadCase{
            "H30",
            Dialogue({kUser, R"({"role":"assistant","content":[)" + std::string(kImagePart) + "]}",
                      kUser}),
            "image_not_allowed", "messages[1].content[0].image_url"}));

INSTANTIATE_TEST_SUITE_P(
    H31MaxTokens, BadRequestTest,
    testing::Values(
        BadCase{"H31", With("\"max_tokens\":0"), "max_tokens_out_of_range", "max_tokens"},
        BadCase{"H31", With("\"max_tokens\":-1"), "max_tokens_out_of_range", "max_tokens"},
        BadCase{"H31", With("\"max_tokens\":1.5"), "max_tokens_out_of_range", "max_tokens"},
        BadCase{"H31", With("\"max_tokens\":9223372036854775808"), "max_tokens_out_of_range",
                "max_tokens"},
        BadCase{"H31", With("\"max_tokens\":\"10\""), "max_tokens_out_of_range", "max_tokens"},
        BadCase{"H31", With("\"max_tokens\":1e400"), "max_tokens_out_of_range", "max_tokens"},
        BadCase{"H31", With("\"max_tokens\":2049"), "max_tokens_out_of_range", "max_tokens"},
        BadCase{"H31", With("\"max_completion_tokens\":0"), "max_tokens_out_of_range",
                "max_completion_tokens"}));

INSTANTIATE_TEST_SUITE_P(
    H32H33H37H38Numbers, BadRequestTest,
    testing::Values(
        BadCase{"H32", With("\"temperature\":-0.1"), "temperature_out_of_range", "temperature"},
        BadCase{"H32", With("\"temperature\":2.1"), "temperature_out_of_range", "temperature"},
        BadCase{"H32", With("\"temperature\":1e-400"), "temperature_out_of_range", "temperature"},
        BadCase{"H32", With("\"temperature\":\"NaN\""), "temperature_out_of_range", "temperature"},
        BadCase{"H32", With("\"temperature\":true"), "temperature_out_of_range", "temperature"},
        BadCase{"H32", With("\"top_p\":0"), "top_p_out_of_range", "top_p"},
        BadCase{"H32", With("\"top_p\":1.1"), "top_p_out_of_range", "top_p"},
        BadCase{"H32", With("\"top_k\":-2"), "top_k_out_of_range", "top_k"},
        BadCase{"H32", With("\"top_k\":2147483648"), "top_k_out_of_range", "top_k"},
        BadCase{"H32", With("\"min_p\":-0.5"), "min_p_out_of_range", "min_p"},
        BadCase{"H32", With("\"repetition_penalty\":0"), "repetition_penalty_out_of_range",
                "repetition_penalty"},
        BadCase{"H33", With("\"n\":0"), "n_out_of_range", "n"},
        BadCase{"H33", With("\"n\":-1"), "n_out_of_range", "n"},
        BadCase{"H33", With("\"n\":5"), "n_out_of_range", "n"},
        BadCase{"H33", With("\"n\":1000000000"), "n_out_of_range", "n"},
        BadCase{"H37", With("\"seed\":18446744073709551616"), "seed_out_of_range", "seed"},
        BadCase{"H37", With("\"seed\":-1"), "seed_out_of_range", "seed"},
        BadCase{"H37", With("\"seed\":1.0"), "seed_out_of_range", "seed"},
        BadCase{"H38", With("\"presence_penalty\":3"), "presence_penalty_out_of_range",
                "presence_penalty"},
        BadCase{"H38", With("\"frequency_penalty\":\"x\""), "frequency_penalty_out_of_range",
                "frequency_penalty"}));

std::string Biases(int count) {
  std::string out = "\"logit_bias\":{";
  for (int i = 0; i < count; ++i) {
    out += (i == 0 ? "\"" : ",\"") + std::to_string(i) + "\":1";
  }
  return out + "}";
}

INSTANTIATE_TEST_SUITE_P(
    H35H36StopAndBias, BadRequestTest,
    testing::Values(
        BadCase{"H35", With(R"("stop":["a","b","c","d","e"])"), "invalid_stop", "stop"},
        BadCase{"H35", With(R"("stop":"")"), "invalid_stop", "stop"},
        BadCase{"H35", With(R"("stop":["a",""])"), "invalid_stop", "stop"},
        BadCase{"H35", With("\"stop\":\"" + Repeat("s", 10'240) + "\""), "invalid_stop", "stop"},
        BadCase{"H35", With("\"stop\":\"\xFF\""), "invalid_utf8", ""},
        BadCase{"H35", With("\"stop\":[3]"), "invalid_stop", "stop"},
        BadCase{"H35", With("\"stop\":3"), "invalid_stop", "stop"},
        BadCase{"H36", With(R"("logit_bias":{"abc":1})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":{"-1":1})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":{"1000":1})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":{"1 ":1})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(Biases(301)), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":{"1":"NaN"})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":{"1":1e9})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":{"1":1e400})"), "invalid_logit_bias", "logit_bias"},
        BadCase{"H36", With(R"("logit_bias":[])"), "invalid_logit_bias", "logit_bias"}));

INSTANTIATE_TEST_SUITE_P(
    H39ToH43Others, BadRequestTest,
    testing::Values(
        BadCase{"H39", With(R"("stream":"yes")"), "invalid_stream", "stream"},
        BadCase{"H39", With(R"("stream_options":{"include_usage":true})"), "invalid_stream_options",
                "stream_options"},
        BadCase{"H39", With(R"("stream":true,"stream_options":3)"), "invalid_stream_options",
                "stream_options"},
        BadCase{"H39", With(R"("stream":true,"stream_options":{"include_usage":1})"),
                "invalid_include_usage", "stream_options.include_usage"},
        BadCase{"H40", With(R"("logprobs":true,"top_logprobs":21)"), "top_logprobs_out_of_range",
                "top_logprobs"},
        BadCase{"H40", With(R"("logprobs":true,"top_logprobs":-1)"), "top_logprobs_out_of_range",
                "top_logprobs"},
        BadCase{"H40", With(R"("logprobs":5)"), "invalid_logprobs", "logprobs"},
        BadCase{"H40", With(R"("top_logprobs":2)"), "invalid_top_logprobs", "top_logprobs"},
        BadCase{"H41", With(R"("response_format":{"type":"json_object"})"),
                "unsupported_response_format", "response_format"},
        BadCase{"H41", With(R"("response_format":{"type":"json_schema","json_schema":{}})"),
                "unsupported_response_format", "response_format"},
        BadCase{"H41", With(R"("response_format":"text")"), "unsupported_response_format",
                "response_format"},
        BadCase{"H42", With(R"("tools":[{"type":"function"}])"), "unsupported_parameter", "tools"},
        BadCase{"H42", With(R"("tools":"x")"), "unsupported_parameter", "tools"},
        BadCase{"H42", With(R"("tool_choice":"required")"), "unsupported_parameter", "tool_choice"},
        BadCase{"H43", With("\"user\":\"" + Repeat("u", 1 << 20) + "\""), "invalid_user", "user"},
        BadCase{"H43", With(R"("user":"a\nFAKE LOG LINE")"), "invalid_user", "user"},
        BadCase{"H43", With(R"("user":7)"), "invalid_user", "user"},
        BadCase{"extension", With(R"("conclave":{"image_mode":"tile"})"), "invalid_image_mode",
                "conclave.image_mode"},
        BadCase{"extension", With(R"("conclave":{"return_gate_probabilities":1})"),
                "invalid_return_gate_probabilities", "conclave.return_gate_probabilities"},
        BadCase{"extension", With(R"("conclave":[])"), "invalid_conclave", "conclave"}));

constexpr char kUrlParam[] = "messages[0].content[0].image_url.url";

INSTANTIATE_TEST_SUITE_P(
    U01U02U18Schemes, BadRequestTest,
    testing::Values(
        BadCase{"U01", WithImageUrl("http://host/x.png"), "image_url_fetch_disabled", kUrlParam},
        BadCase{"U01", WithImageUrl("HTTPS://host/x.png"), "image_url_fetch_disabled", kUrlParam},
        BadCase{"U02", WithImageUrl("file:///etc/passwd"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl("ftp://host/x"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl("gopher://host/x"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl("data:text/html;base64,QUJD"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl("javascript:alert(1)"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl("picture.png"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl("//host/x"), "image_url_scheme", kUrlParam},
        BadCase{"U02", WithImageUrl(""), "image_url_scheme", kUrlParam},
        BadCase{"U18", WithImageUrl("http://host/" + Repeat("x", 1 << 20)), "image_url_too_long",
                kUrlParam}));

INSTANTIATE_TEST_SUITE_P(
    U14ToU16DataUris, BadRequestTest,
    testing::Values(
        BadCase{"U14", WithImageUrl("data:image/png;base64"), "data_uri_malformed", kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png,QUJD"), "data_uri_malformed", kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,QU*D"), "data_uri_malformed", kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,QUI"), "data_uri_malformed", kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,QUJDQ==="), "data_uri_malformed",
                kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,QQ==QUJD"), "data_uri_malformed",
                kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,QR=="), "data_uri_malformed", kUrlParam},
        BadCase{"U14", WithImageUrl(R"(data:image/png;base64,QUJD\n)"), "data_uri_malformed",
                kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64, QUJDQUI"), "data_uri_malformed",
                kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,-_-_"), "data_uri_malformed", kUrlParam},
        BadCase{"U14", WithImageUrl("data:image/png;base64,QUJD%3D%3D"), "data_uri_malformed",
                kUrlParam},
        BadCase{"U14", WithImageUrl("data:" + Repeat("x", 300) + ";base64,QUJD"),
                "data_uri_malformed", kUrlParam},
        BadCase{"U15", WithImageUrl("data:image/svg+xml;base64,QUJD"), "image_format_unsupported",
                kUrlParam, absl::StatusCode::kUnimplemented},
        BadCase{"U16", WithImageUrl("data:image/png;base64,"), "image_empty", kUrlParam},
        BadCase{"U16", WithImageUrl("data:image/png;base64,QUJDQ"), "data_uri_malformed",
                kUrlParam},
        BadCase{"U16",
                WithImageUrl("data:image/png;base64," +
                             EncodeBase64(std::string((size_t{10} << 20) + 1, 'x'))),
                "image_too_large", kUrlParam}));

TEST(ChatRequestTest, H19EveryTruncationIsASyntaxErrorWithItsOffset) {
  const std::string body =
      R"({"model":"demo","messages":[{"role":"user","content":"h\u00e9 é"}],"seed":12,"stream":true})";
  ASSERT_TRUE(Parse(body).ok());
  for (size_t length = 1; length < body.size(); ++length) {
    SCOPED_TRACE(length);
    const absl::Status status = Parse(body.substr(0, length)).status();
    const std::string reason = ReasonOf(status);
    // Cut inside the two bytes of "é" it is the encoding that is broken first.
    EXPECT_TRUE(reason == "json_syntax" || reason == "invalid_utf8") << status;
    EXPECT_NE(MessageOf(status).find("at byte"), std::string::npos) << status;
  }
}

TEST(ChatRequestTest, H22NamesTheOffsetOfTheFirstBadByte) {
  const absl::Status status = Parse("{\"model\":\"\xFF\"}").status();
  EXPECT_EQ(ReasonOf(status), "invalid_utf8");
  EXPECT_NE(MessageOf(status).find("at byte 10"), std::string::npos) << status;
}

TEST(ChatRequestTest, H25EchoesAtMost64EscapedBytesOfTheModel) {
  const absl::Status status =
      Parse("{\"model\":\"a\\nb" + Repeat("m", 1000) + "\"," + kMessages + "}").status();
  const std::string message = MessageOf(status);
  EXPECT_NE(message.find("a\\x0ab"), std::string::npos) << message;
  EXPECT_LE(message.size(), 120u) << message;
}

TEST(ChatRequestTest, H30ATextModelTakesNoPicture) {
  ModelCard card = Card();
  card.has_vision = false;
  const auto result =
      ParseChatRequest(WithImageUrl("data:image/png;base64,QUJD"), HttpLimits(), card);
  EXPECT_EQ(ReasonOf(result.status()), "image_not_allowed");
}

TEST(ChatRequestTest, H24H45UnknownFieldsAreIgnoredAndTheFirstFewReported) {
  std::vector<std::string> reported;
  const UnknownFieldFn report = [&reported](const std::string& name) { reported.push_back(name); };
  const std::string body =
      R"({"model":"demo","n_discard":-1,"messages":[{"role":"user","weird\n":1,"content":"hi"}],)"
      R"("conclave":{"deadline_ms":5}})";
  const auto result = ParseChatRequest(body, HttpLimits(), Card(), report);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(reported, (std::vector<std::string>{"conclave.deadline_ms", "messages[].weird\\x0a",
                                                "n_discard"}));
}

TEST(ChatRequestTest, H24AHundredThousandUnknownKeysAndALongOneAreBounded) {
  std::string fields = "\"" + Repeat("k", 1 << 20) + "\":1";
  for (int i = 0; i < 100'000; ++i) {
    fields += ",\"u" + std::to_string(i) + "\":0";
  }
  std::vector<std::string> reported;
  const UnknownFieldFn report = [&reported](const std::string& name) { reported.push_back(name); };
  const auto result = ParseChatRequest(With(fields), HttpLimits(), Card(), report);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(reported.size(), 8u);
  for (const std::string& name : reported) {
    EXPECT_LE(name.size(), 64u + 3u);
  }
}

TEST(ChatRequestTest, DefaultsAreGreedyOneChoiceAndNoStream) {
  const auto result = Parse(With(""));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->is_stream);
  EXPECT_FALSE(result->has_seed);
  EXPECT_EQ(result->request.num_choices, 1);
  EXPECT_EQ(result->request.max_tokens, 0);
  EXPECT_EQ(result->request.sampling.temperature, 0.0f);
  EXPECT_EQ(result->request.sampling.num_top_logprobs, -1);
  ASSERT_EQ(result->request.messages.size(), 1u);
  EXPECT_EQ(result->request.messages[0].parts[0].bytes, "hi");
  EXPECT_EQ(result->request.messages[0].parts[0].param, "messages[0].content");
}

TEST(ChatRequestTest, EveryFieldReachesTheEngine) {
  const auto result = Parse(With(
      R"("temperature":0.7,"top_p":0.9,"top_k":40,"min_p":0.05,"repetition_penalty":1.1,)"
      R"("presence_penalty":-2,"frequency_penalty":2,"seed":18446744073709551615,"max_tokens":5,)"
      R"("max_completion_tokens":7,"n":2,"stop":["END","\n"],"stream":true,)"
      R"("stream_options":{"include_usage":true},"logit_bias":{"5":-100,"999":1.5},"logprobs":true,)"
      R"("top_logprobs":20,"ignore_eos":true,"return_token_ids":true,"return_routed_experts":true,)"
      R"("response_format":{"type":"text"},"tools":[],"tool_choice":"auto","user":"me",)"
      R"("conclave":{"image_mode":"crop","return_gate_probabilities":true})"));
  ASSERT_TRUE(result.ok()) << result.status();
  const ChatRequest& request = result->request;
  EXPECT_FLOAT_EQ(request.sampling.temperature, 0.7f);
  EXPECT_FLOAT_EQ(request.sampling.top_p, 0.9f);
  EXPECT_EQ(request.sampling.top_k, 40);
  EXPECT_FLOAT_EQ(request.sampling.min_p, 0.05f);
  EXPECT_FLOAT_EQ(request.sampling.repetition_penalty, 1.1f);
  EXPECT_EQ(request.sampling.presence_penalty, -2.0f);
  EXPECT_EQ(request.sampling.frequency_penalty, 2.0f);
  EXPECT_TRUE(result->has_seed);
  EXPECT_EQ(request.sampling.seed, UINT64_MAX);
  EXPECT_EQ(request.max_tokens, 7);
  EXPECT_EQ(request.num_choices, 2);
  EXPECT_EQ(request.stops, (std::vector<std::string>{"END", "\n"}));
  EXPECT_TRUE(result->is_stream);
  EXPECT_TRUE(result->include_usage);
  EXPECT_EQ(request.sampling.logit_bias,
            (std::vector<std::pair<int32_t, float>>{{5, -100.0f}, {999, 1.5f}}));
  EXPECT_EQ(request.sampling.num_top_logprobs, 20);
  EXPECT_TRUE(request.ignore_eos);
  EXPECT_TRUE(request.return_token_ids);
  EXPECT_TRUE(request.return_routed_experts);
  EXPECT_EQ(request.image_mode, ImageMode::kCrop);
  EXPECT_TRUE(request.return_gate_probabilities);
}

TEST(ChatRequestTest, NullMeansAbsent) {
  const auto result = Parse(With(
      R"("temperature":null,"stop":null,"stream":null,"stream_options":null,"n":null,"seed":null,)"
      R"("logit_bias":null,"tools":null,"response_format":null,"user":null,"conclave":null)"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_FALSE(result->has_seed);
  EXPECT_EQ(result->request.num_choices, 1);
}

TEST(ChatRequestTest, ADialogueKeepsItsOrderAndPictures) {
  const auto result =
      Parse(Dialogue({kSystem,
                      R"({"role":"user","name":"ann","content":[{"type":"text","text":""},)" +
                          std::string(kImagePart) + R"(,{"type":"text","text":"what?"}]})",
                      kAssistant, kUser}));
  ASSERT_TRUE(result.ok()) << result.status();
  const std::vector<Message>& messages = result->request.messages;
  ASSERT_EQ(messages.size(), 4u);
  EXPECT_EQ(messages[0].role, Message::Role::kSystem);
  EXPECT_EQ(messages[2].role, Message::Role::kAssistant);
  ASSERT_EQ(messages[1].parts.size(), 3u);
  EXPECT_EQ(messages[1].parts[1].kind, ContentPart::Kind::kImage);
  EXPECT_EQ(messages[1].parts[1].bytes, "ABC");
  EXPECT_EQ(messages[1].parts[1].param, "messages[1].content[1].image_url.url");
}

TEST(ChatRequestTest, U15TheDeclaredMediaTypeDoesNotMatterIfItMayBeAPicture) {
  for (const std::string type : {"image/jpeg", "image/png", "IMAGE/WebP", "image/png;charset=x",
                                 "application/octet-stream", ""}) {
    const auto result = Parse(WithImageUrl("data:" + type + ";base64,QUJD"));
    ASSERT_TRUE(result.ok()) << type << ": " << result.status();
    EXPECT_EQ(result->request.messages[0].parts[0].bytes, "ABC");
  }
}

// The first bytes of a JPEG, a PNG, a GIF and a WebP, in base64.
constexpr char kJpeg[] = "/9j/4AAQSkZJRgAB";
constexpr char kPng[] = "iVBORw0KGgoAAAAN";
constexpr char kGif[] = "R0lGODlhAQABAAAA";
constexpr char kWebp[] = "UklGRgAAAABXRUJQ";

TEST(ChatRequestTest, I04AMediaTypeThatTheBytesContradictIsTakenAndCounted) {
  for (const auto& [type, bytes] :
       std::vector<std::pair<std::string, std::string>>{{"image/png", kJpeg},
                                                        {"IMAGE/PNG;charset=x", kJpeg},
                                                        {"image/jpeg", kPng},
                                                        {"image/bmp", kGif},
                                                        {"image/gif", kWebp},
                                                        {"image/tiff", kPng}}) {
    const auto result = Parse(WithImageUrl("data:" + type + ";base64," + bytes));
    ASSERT_TRUE(result.ok()) << type << ": " << result.status();
    EXPECT_EQ(result->num_mislabelled_images, 1) << type << " " << bytes;
  }
}

TEST(ChatRequestTest, I04AMediaTypeThatIsRightOrSaysNothingIsNotCounted) {
  for (const auto& [type, bytes] :
       std::vector<std::pair<std::string, std::string>>{{"image/jpeg", kJpeg},
                                                        {"image/jpg", kJpeg},
                                                        {"image/PNG", kPng},
                                                        {"image/gif", kGif},
                                                        {"image/webp;q=1", kWebp},
                                                        {"", kPng},
                                                        {"application/octet-stream", kPng},
                                                        {"image/*", kPng},
                                                        {"image/png", "QUJD"}}) {
    const auto result = Parse(WithImageUrl("data:" + type + ";base64," + bytes));
    ASSERT_TRUE(result.ok()) << type << ": " << result.status();
    EXPECT_EQ(result->num_mislabelled_images, 0) << type << " " << bytes;
  }
}

TEST(ChatRequestTest, U16APictureOfExactlyTheLimitIsTaken) {
  const std::string picture(size_t{10} << 20, 'x');
  const auto result = Parse(WithImageUrl("data:image/png;base64," + EncodeBase64(picture)));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->request.messages[0].parts[0].bytes, picture);
}

TEST(ChatRequestTest, U17MarkdownPicturesInTextStayText) {
  const auto result = Parse(WithContent("\"![](http://evil/x.png)\""));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->request.messages[0].parts[0].bytes, "![](http://evil/x.png)");
}

TEST(ChatRequestTest, EscapesAreDecoded) {
  const auto result = Parse(WithContent(R"("\u00e9\ud83d\ude00\n\u0000")"));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->request.messages[0].parts[0].bytes,
            std::string("\xC3\xA9\xF0\x9F\x98\x80\n") + '\0');
}

// Found by comparing with Boost.JSON 1.81, which reads such a zero as NaN.
TEST(ChatRequestTest, ZeroWithAnExponentIsZero) {
  const absl::StatusOr<ParsedChat> parsed = Parse(With("\"temperature\":0e400"));
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->request.sampling.temperature, 0.0F);
}

}  // namespace
}  // namespace conclave::frontend
