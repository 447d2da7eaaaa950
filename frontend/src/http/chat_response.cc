#include "http/chat_response.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "conclave/base/check.h"
#include "conclave/base/json_writer.h"
#include "http/base64.h"
#include "http/npy.h"

namespace conclave::frontend {
namespace {

// JSON has no -inf; clients know this value from OpenAI.
constexpr float kLogprobMin = -9999.0f;

void WriteHead(const ReplyShape& shape, std::string_view object, JsonWriter& json) {
  json.BeginObject();
  json.Key("id").String(shape.id);
  json.Key("object").String(object);
  json.Key("created").Int(shape.created);
  json.Key("model").String(shape.model);
  json.Key("system_fingerprint").String(shape.fingerprint);
}

void WriteToken(float logprob, std::string_view bytes, JsonWriter& json) {
  json.Key("token").String(bytes);
  json.Key("logprob").Float(logprob >= kLogprobMin ? logprob : kLogprobMin);
  json.Key("bytes").BeginArray();
  for (const char c : bytes) {
    json.Int(static_cast<uint8_t>(c));
  }
  json.EndArray();
}

void WriteLogprobs(const std::vector<TokenLogprob>& logprobs, JsonWriter& json) {
  json.Key("logprobs").BeginObject().Key("content").BeginArray();
  for (const TokenLogprob& entry : logprobs) {
    json.BeginObject();
    WriteToken(entry.logprob, entry.bytes, json);
    json.Key("top_logprobs").BeginArray();
    for (const TokenLogprob::Alternative& other : entry.top) {
      json.BeginObject();
      WriteToken(other.logprob, other.bytes, json);
      json.EndObject();
    }
    json.EndArray().EndObject();
  }
  json.EndArray().Key("refusal").Null().EndObject();
}

void WriteTokenIds(const std::vector<int32_t>& ids, JsonWriter& json) {
  json.Key("token_ids").BeginArray();
  for (const int32_t id : ids) {
    json.Int(id);
  }
  json.EndArray();
}

// base64 of a NumPy file, as vLLM encodes it; int16 [positions, MoE layers, top_k]. Beside it what
// vLLM has not: where the pictures are, and f32 [positions, MoE layers, experts].
void WriteRoutedExperts(const ReplyShape& shape, const ChoiceEnd& end, JsonWriter& json) {
  if (!end.routed_experts.empty()) {
    json.Key("routed_experts")
        .String(EncodeBase64(NpyFile(end.routed_experts, shape.num_moe_layers, shape.moe_top_k)));
  }
  if (end.routed_experts.empty() && end.gate_probabilities.empty()) {
    return;
  }
  // Which positions are patches, so that a picture can be drawn with what its gates chose.
  json.Key("conclave").BeginObject().Key("image_rows").BeginArray();
  for (const auto& [first, count] : end.image_spans) {
    json.BeginArray().Int(first).Int(count).EndArray();
  }
  json.EndArray();
  if (!end.gate_probabilities.empty()) {
    json.Key("gate_probabilities")
        .String(
            EncodeBase64(NpyFile(end.gate_probabilities, shape.num_moe_layers, shape.experts_max)));
  }
  json.EndObject();
}

void WriteUsage(const Usage& usage, JsonWriter& json) {
  json.Key("usage").BeginObject();
  json.Key("prompt_tokens").Int(usage.prompt_tokens);
  json.Key("completion_tokens").Int(usage.completion_tokens);
  json.Key("total_tokens").Int(int64_t{usage.prompt_tokens} + usage.completion_tokens);
  json.Key("prompt_tokens_details").BeginObject();
  json.Key("cached_tokens").Int(usage.cached_tokens);
  json.Key("image_tokens").Int(usage.image_tokens);
  json.EndObject().EndObject();
}

// Microseconds are enough, and spare clients seventeen digits.
double Rounded(double ms) { return std::round(ms * 1000) / 1000; }

void WriteExtension(const ReplyShape& shape, const Timings& timings, JsonWriter& json) {
  json.Key("conclave").BeginObject().Key("timings").BeginObject();
  json.Key("image_ms").Double(Rounded(timings.image_ms));
  json.Key("queue_ms").Double(Rounded(timings.queue_ms));
  json.Key("prefill_ms").Double(Rounded(timings.prefill_ms));
  json.Key("decode_ms").Double(Rounded(timings.decode_ms));
  json.Key("first_token_ms").Double(Rounded(timings.first_token_ms));
  json.EndObject();
  json.Key("numeric_mode").String(shape.numeric_mode);
  json.EndObject();
}

}  // namespace

std::string_view FinishText(FinishReason reason) {
  return reason == FinishReason::kLength ? "length" : "stop";
}

std::optional<HttpError> FailureIn(const ChatEvents& events) {
  for (const ChatEvents::Choice& choice : events.choices) {
    if (!choice.end.has_value()) {
      continue;
    }
    if (choice.end->reason == FinishReason::kError) {
      const absl::Status& status = choice.end->status;
      return ErrorFromBackend(status.ok() ? absl::InternalError("error without a status") : status);
    }
    if (choice.end->reason == FinishReason::kCancelled) {
      return HttpError{503, "request_cancelled",
                       "the server cancelled the request; try again later", ""};
    }
  }
  return std::nullopt;
}

void ChatStreamWriter::Chunk(int32_t choice, const ChatDelta* delta, bool is_first,
                             const ChoiceEnd* end, std::string& out) const {
  out += "data: ";
  JsonWriter json(out);
  WriteHead(shape_, "chat.completion.chunk", json);
  json.Key("choices").BeginArray().BeginObject();
  json.Key("index").Int(choice).Key("delta").BeginObject();
  if (is_first) {
    json.Key("role").String("assistant");
  }
  if (is_first || delta != nullptr) {
    json.Key("content").String(delta == nullptr ? std::string_view() : delta->text);
  }
  json.EndObject();
  if (delta != nullptr && shape_.has_logprobs) {
    WriteLogprobs(delta->logprobs, json);
  } else {
    json.Key("logprobs").Null();
  }
  json.Key("finish_reason");
  if (end == nullptr) {
    json.Null();
  } else {
    json.String(FinishText(end->reason));
    WriteRoutedExperts(shape_, *end, json);
  }
  if (delta != nullptr && shape_.has_token_ids) {
    WriteTokenIds(delta->token_ids, json);
  }
  json.EndObject().EndArray();
  if (shape_.include_usage) {
    json.Key("usage").Null();
  }
  json.EndObject();
  out += "\n\n";
}

void ChatStreamWriter::UsageChunk(const ChatEvents::Done& done, std::string& out) const {
  out += "data: ";
  JsonWriter json(out);
  WriteHead(shape_, "chat.completion.chunk", json);
  json.Key("choices").BeginArray().EndArray();
  WriteUsage(done.usage, json);
  WriteExtension(shape_, done.timings, json);
  json.EndObject();
  out += "\n\n";
}

void ChatStreamWriter::Begin(std::string& out) const {
  for (int32_t choice = 0; choice < shape_.num_choices; ++choice) {
    Chunk(choice, nullptr, true, nullptr, out);
  }
}

void ChatStreamWriter::Add(const ChatEvents& events, std::string& out) const {
  for (size_t i = 0; i < events.choices.size(); ++i) {
    const ChatEvents::Choice& choice = events.choices[i];
    // While text is held back a delta may be empty: it says nothing to a client that asked for text
    // only.
    if (choice.delta.has_value() && (!choice.delta->text.empty() ||
                                     (shape_.has_token_ids && !choice.delta->token_ids.empty()) ||
                                     (shape_.has_logprobs && !choice.delta->logprobs.empty()))) {
      Chunk(static_cast<int32_t>(i), &*choice.delta, false, nullptr, out);
    }
    if (choice.end.has_value() && choice.end->reason != FinishReason::kError &&
        choice.end->reason != FinishReason::kCancelled) {
      Chunk(static_cast<int32_t>(i), nullptr, false, &*choice.end, out);
    }
  }
  if (events.done.has_value()) {
    if (shape_.include_usage) {
      UsageChunk(*events.done, out);
    }
    out += "data: [DONE]\n\n";
  }
}

void ChatStreamWriter::Fail(const HttpError& error, std::string& out) {
  out += "data: ";
  JsonWriter json(out);
  json.BeginObject().Key("error");
  WriteErrorObject(error, json);
  json.EndObject();
  out += "\n\ndata: [DONE]\n\n";
}

ChatReplyBuilder::ChatReplyBuilder(ReplyShape shape)
    : shape_(std::move(shape)), choices_(static_cast<size_t>(shape_.num_choices)) {
  for (ChatEvents::Choice& choice : choices_) {
    choice.delta.emplace();
  }
}

void ChatReplyBuilder::Add(ChatEvents events) {
  for (size_t i = 0; i < choices_.size() && i < events.choices.size(); ++i) {
    ChatEvents::Choice& from = events.choices[i];
    ChatDelta& to = *choices_[i].delta;
    if (from.delta.has_value()) {
      to.text += from.delta->text;
      to.token_ids.insert(to.token_ids.end(), from.delta->token_ids.begin(),
                          from.delta->token_ids.end());
      std::move(from.delta->logprobs.begin(), from.delta->logprobs.end(),
                std::back_inserter(to.logprobs));
    }
    if (from.end.has_value()) {
      choices_[i].end = std::move(from.end);
    }
  }
  if (events.done.has_value()) {
    done_ = events.done;
  }
}

std::string ChatReplyBuilder::Body() const {
  CONCLAVE_CHECK(done_.has_value());
  std::string out;
  JsonWriter json(out);
  WriteHead(shape_, "chat.completion", json);
  json.Key("choices").BeginArray();
  for (size_t i = 0; i < choices_.size(); ++i) {
    const ChatDelta& delta = *choices_[i].delta;
    json.BeginObject().Key("index").Int(static_cast<int64_t>(i));
    json.Key("message").BeginObject();
    json.Key("role").String("assistant").Key("content").String(delta.text);
    json.Key("refusal").Null().EndObject();
    if (shape_.has_logprobs) {
      WriteLogprobs(delta.logprobs, json);
    } else {
      json.Key("logprobs").Null();
    }
    json.Key("finish_reason")
        .String(choices_[i].end.has_value() ? FinishText(choices_[i].end->reason) : "stop");
    if (choices_[i].end.has_value()) {
      WriteRoutedExperts(shape_, *choices_[i].end, json);
    }
    if (shape_.has_token_ids) {
      WriteTokenIds(delta.token_ids, json);
    }
    json.EndObject();
  }
  json.EndArray();
  WriteUsage(done_->usage, json);
  WriteExtension(shape_, done_->timings, json);
  json.EndObject();
  return out;
}

}  // namespace conclave::frontend
