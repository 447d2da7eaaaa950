#include "http/chat_request.h"

#include <boost/json/value.hpp>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "chat_rules.h"
#include "conclave/base/status.h"
#include "http/chat_messages.h"
#include "http/json_reader.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

namespace json = boost::json;

constexpr size_t kUserBytesMax = 512;
constexpr int64_t kTopLogprobsMax = 20;
constexpr double kLogitBiasMax = 100;

std::string_view View(const json::string& text) { return {text.data(), text.size()}; }

absl::Status CheckModel(FieldReader& fields, const ModelCard& card) {
  const json::value* model = fields.Find("model");
  if (model == nullptr) {
    return FieldError("model_required", "model", "missing; expected the name of a served model");
  }
  if (!model->is_string()) {
    return FieldError("invalid_model", "model", "expected a string, found " + Describe(*model));
  }
  return CheckModelName(View(model->get_string()), card);
}

absl::Status ParseSampling(FieldReader& fields, ParsedChat& chat) {
  SamplingParams& sampling = chat.request.sampling;
  CONCLAVE_RETURN_IF_ERROR(fields.Number("temperature", kTemperatureRange, sampling.temperature));
  CONCLAVE_RETURN_IF_ERROR(fields.Number("top_p", kTopPRange, sampling.top_p));
  CONCLAVE_RETURN_IF_ERROR(
      fields.Integer("top_k", kTopKMin, std::numeric_limits<int32_t>::max(), sampling.top_k));
  CONCLAVE_RETURN_IF_ERROR(fields.Number("min_p", kMinPRange, sampling.min_p));
  CONCLAVE_RETURN_IF_ERROR(
      fields.Number("repetition_penalty", kRepetitionPenaltyRange, sampling.repetition_penalty));
  CONCLAVE_RETURN_IF_ERROR(
      fields.Number("presence_penalty", kPenaltyRange, sampling.presence_penalty));
  CONCLAVE_RETURN_IF_ERROR(
      fields.Number("frequency_penalty", kPenaltyRange, sampling.frequency_penalty));
  chat.has_seed = fields.Find("seed") != nullptr;
  return fields.Unsigned("seed", sampling.seed);
}

absl::Status ParseLogprobs(FieldReader& fields, SamplingParams& sampling) {
  bool is_on = false;
  int32_t num_top = -1;
  CONCLAVE_RETURN_IF_ERROR(fields.Bool("logprobs", is_on));
  CONCLAVE_RETURN_IF_ERROR(fields.Integer("top_logprobs", 0, kTopLogprobsMax, num_top));
  if (num_top >= 0 && !is_on) {
    return FieldError("invalid_top_logprobs", "top_logprobs",
                      "expected \"logprobs\": true beside it");
  }
  sampling.num_top_logprobs = is_on ? (num_top < 0 ? 0 : num_top) : -1;
  return absl::OkStatus();
}

absl::StatusOr<std::pair<int32_t, float>> ParseBias(std::string_view key, const json::value& value,
                                                    int32_t vocab_size) {
  int32_t token = -1;
  const auto end = std::from_chars(key.data(), key.data() + key.size(), token);
  if (end.ec != std::errc() || end.ptr != key.data() + key.size() || token < 0 ||
      token >= vocab_size) {
    return FieldError("invalid_logit_bias", "logit_bias",
                      "expected token ids below " + std::to_string(vocab_size) +
                          " as keys, found \"" + Excerpt(key) + "\"");
  }
  const double bias = value.is_double()  ? value.get_double()
                      : value.is_int64() ? static_cast<double>(value.get_int64())
                                         : std::nan("");
  if (!(std::abs(bias) <= kLogitBiasMax)) {
    return FieldError("invalid_logit_bias", "logit_bias",
                      "expected numbers in [-100, 100], found " + Describe(value));
  }
  return std::make_pair(token, static_cast<float>(bias));
}

absl::Status ParseLogitBias(FieldReader& fields, const HttpLimits& limits, const ModelCard& card,
                            SamplingParams& sampling) {
  const json::value* value = fields.Find("logit_bias");
  if (value == nullptr) {
    return absl::OkStatus();
  }
  if (!value->is_object() ||
      value->get_object().size() > static_cast<size_t>(limits.logit_bias_max)) {
    return FieldError(
        "invalid_logit_bias", "logit_bias",
        "expected an object with at most " + std::to_string(limits.logit_bias_max) + " entries");
  }
  for (const auto& entry : value->get_object()) {
    CONCLAVE_ASSIGN_OR_RETURN(const auto bias, ParseBias({entry.key().data(), entry.key().size()},
                                                         entry.value(), card.vocab_size));
    sampling.logit_bias.push_back(bias);
  }
  return absl::OkStatus();
}

// What is no string is refused as an empty one is.
std::string_view StopText(const json::value& value) {
  return value.is_string() ? View(value.get_string()) : std::string_view();
}

absl::Status ParseStop(FieldReader& fields, const HttpLimits& limits,
                       std::vector<std::string>& stops) {
  const json::value* value = fields.Find("stop");
  if (value == nullptr) {
    return absl::OkStatus();
  }
  if (!value->is_array()) {
    return AddStop(StopText(*value), limits, stops);
  }
  CONCLAVE_RETURN_IF_ERROR(CheckNumStops(value->get_array().size(), limits));
  for (const json::value& stop : value->get_array()) {
    CONCLAVE_RETURN_IF_ERROR(AddStop(StopText(stop), limits, stops));
  }
  return absl::OkStatus();
}

absl::Status ParseStream(FieldReader& fields, UnknownFields& unknown, ParsedChat& chat) {
  CONCLAVE_RETURN_IF_ERROR(fields.Bool("stream", chat.is_stream));
  const json::value* options = fields.Find("stream_options");
  if (options == nullptr) {
    return absl::OkStatus();
  }
  if (!options->is_object()) {
    return FieldError("invalid_stream_options", "stream_options",
                      "expected an object, found " + Describe(*options));
  }
  if (!chat.is_stream) {
    return FieldError("invalid_stream_options", "stream_options",
                      "expected \"stream\": true beside it");
  }
  FieldReader option_fields(options->get_object(), "stream_options.", "stream_options.", unknown);
  CONCLAVE_RETURN_IF_ERROR(option_fields.Bool("include_usage", chat.include_usage));
  option_fields.ReportUnknown();
  return absl::OkStatus();
}

// What would change the answer and cannot be done is refused, not ignored.
absl::Status CheckUnsupported(FieldReader& fields) {
  if (const json::value* format = fields.Find("response_format"); format != nullptr) {
    const json::value* type =
        format->is_object() ? format->get_object().if_contains("type") : nullptr;
    if (type == nullptr || !type->is_string() || View(type->get_string()) != "text") {
      return FieldError("unsupported_response_format", "response_format",
                        "not supported; expected {\"type\":\"text\"}");
    }
  }
  for (const std::string_view name : {"tools", "functions"}) {
    const json::value* tools = fields.Find(name);
    if (tools != nullptr && !(tools->is_array() && tools->get_array().empty())) {
      return FieldError("unsupported_parameter", name, "not supported; leave it out");
    }
  }
  for (const std::string_view name : {"tool_choice", "function_call"}) {
    const json::value* choice = fields.Find(name);
    if (choice != nullptr && !(choice->is_string() && (View(choice->get_string()) == "none" ||
                                                       View(choice->get_string()) == "auto"))) {
      return FieldError("unsupported_parameter", name,
                        "not supported; expected \"none\" or \"auto\"");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckUser(FieldReader& fields) {
  const json::value* user = fields.Find("user");
  if (user == nullptr) {
    return absl::OkStatus();
  }
  if (!user->is_string() || user->get_string().size() > kUserBytesMax) {
    return FieldError("invalid_user", "user",
                      "expected a string of at most " + std::to_string(kUserBytesMax) + " bytes");
  }
  for (const char c : View(user->get_string())) {
    if (static_cast<uint8_t>(c) < 0x20 || c == 0x7F) {
      return FieldError("invalid_user", "user", "control characters are not allowed");
    }
  }
  return absl::OkStatus();
}

absl::Status ParseExtensions(FieldReader& fields, UnknownFields& unknown, ChatRequest& request) {
  const json::value* value = fields.Find("conclave");
  if (value == nullptr) {
    return absl::OkStatus();
  }
  if (!value->is_object()) {
    return FieldError("invalid_conclave", "conclave",
                      "expected an object, found " + Describe(*value));
  }
  FieldReader extension(value->get_object(), "conclave.", "conclave.", unknown);
  if (const json::value* mode = extension.Find("image_mode"); mode != nullptr) {
    const std::string_view name = mode->is_string() ? View(mode->get_string()) : "";
    if (name == "pad") {
      request.image_mode = ImageMode::kPad;
    } else if (name == "crop") {
      request.image_mode = ImageMode::kCrop;
    } else if (name == "stretch") {
      request.image_mode = ImageMode::kStretch;
    } else {
      return FieldError("invalid_image_mode", "conclave.image_mode",
                        "expected \"pad\", \"crop\" or \"stretch\"");
    }
  }
  CONCLAVE_RETURN_IF_ERROR(
      extension.Bool("return_gate_probabilities", request.return_gate_probabilities));
  extension.ReportUnknown();
  return absl::OkStatus();
}

absl::Status ParseLengths(FieldReader& fields, const HttpLimits& limits, const ModelCard& card,
                          ChatRequest& request) {
  CONCLAVE_RETURN_IF_ERROR(fields.Integer("max_tokens", 1, card.max_model_len, request.max_tokens));
  // An own reason only for the field's name would split one mistake in two: both are
  // max_tokens_out_of_range.
  int32_t max_completion_tokens = 0;
  if (absl::Status status =
          fields.Integer("max_completion_tokens", 1, card.max_model_len, max_completion_tokens);
      !status.ok()) {
    return WithParam(InvalidArgument("max_tokens_out_of_range", MessageOf(status)),
                     "max_completion_tokens");
  }
  if (max_completion_tokens > 0) {
    request.max_tokens = max_completion_tokens;
  }
  return fields.Integer("n", 1, limits.choices_max, request.num_choices);
}

}  // namespace

absl::StatusOr<ParsedChat> ParseChatRequest(std::string_view body, const HttpLimits& limits,
                                            const ModelCard& card,
                                            const UnknownFieldFn& on_unknown) {
  CONCLAVE_ASSIGN_OR_RETURN(const json::object object,
                            ParseJsonObject(body, limits.json_depth_max));
  UnknownFields unknown(on_unknown);
  FieldReader fields(object, "", "", unknown);
  ParsedChat chat;
  ChatRequest& request = chat.request;
  CONCLAVE_RETURN_IF_ERROR(CheckModel(fields, card));
  CONCLAVE_RETURN_IF_ERROR(ParseSampling(fields, chat));
  CONCLAVE_RETURN_IF_ERROR(ParseLogprobs(fields, request.sampling));
  CONCLAVE_RETURN_IF_ERROR(ParseLogitBias(fields, limits, card, request.sampling));
  CONCLAVE_RETURN_IF_ERROR(ParseLengths(fields, limits, card, request));
  CONCLAVE_RETURN_IF_ERROR(ParseStop(fields, limits, request.stops));
  CONCLAVE_RETURN_IF_ERROR(ParseStream(fields, unknown, chat));
  CONCLAVE_RETURN_IF_ERROR(fields.Bool("ignore_eos", request.ignore_eos));
  CONCLAVE_RETURN_IF_ERROR(fields.Bool("return_token_ids", request.return_token_ids));
  CONCLAVE_RETURN_IF_ERROR(fields.Bool("return_routed_experts", request.return_routed_experts));
  CONCLAVE_RETURN_IF_ERROR(CheckUnsupported(fields));
  CONCLAVE_RETURN_IF_ERROR(CheckUser(fields));
  CONCLAVE_RETURN_IF_ERROR(ParseExtensions(fields, unknown, request));
  CONCLAVE_ASSIGN_OR_RETURN(request.messages,
                            ParseMessages(fields.Find("messages"), limits, card, unknown));
  // Fields without an effect on the answer are known, so that no log line is written for them.
  fields.Know({"metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
               "prompt_cache_key"});
  fields.ReportUnknown();
  CONCLAVE_ASSIGN_OR_RETURN(chat.num_mislabelled_images, DecodeImages(limits, request.messages));
  return chat;
}

}  // namespace conclave::frontend
