#include "answer.h"

#include <utility>

namespace conclave::frontend {
namespace {

constexpr std::string_view kSpace = " \t\n\r\v\f";

}  // namespace

Answer::Answer(int32_t choice, const ChatRequest& request, const text::Tokenizer& tokenizer,
               const std::vector<std::string>& stops, std::shared_ptr<ChatSink> sink,
               std::function<void(const ChoiceEnd&, const SequenceStats&)> on_end)
    : choice_(choice),
      wants_ids_(request.return_token_ids),
      wants_logprobs_(request.sampling.num_top_logprobs >= 0),
      tokenizer_(tokenizer),
      detokenizer_(tokenizer, stops),
      sink_(std::move(sink)),
      on_end_(std::move(on_end)) {}

std::string Answer::Trim(std::string text) {
  if (!has_text_) {
    const size_t first = text.find_first_not_of(kSpace);
    if (first == std::string::npos) {
      return "";
    }
    text.erase(0, first);
    has_text_ = true;
  }
  text = std::exchange(held_space_, "") + text;
  const size_t last = text.find_last_not_of(kSpace);
  const size_t end = last == std::string::npos ? 0 : last + 1;
  held_space_ = text.substr(end);
  text.resize(end);
  return text;
}

TokenLogprob Answer::LogprobOf(const SequenceToken& token) const {
  TokenLogprob out;
  out.token = token.token;
  out.logprob = token.choice.logprob;
  out.bytes = std::string(tokenizer_.TokenBytes(token.token, /*keep_special=*/true));
  for (const auto& [id, logprob] : token.choice.top_logprobs) {
    out.top.push_back({id, logprob, std::string(tokenizer_.TokenBytes(id, /*keep_special=*/true))});
  }
  return out;
}

bool Answer::OnToken(const SequenceToken& token) {
  ChatDelta delta;
  delta.choice = choice_;
  bool goes_on = true;
  if (!token.is_stop) {
    text::IncrementalDetokenizer::Delta text = detokenizer_.Push(token.token);
    delta.text = Trim(std::move(text.text));
    goes_on = !text.hit_stop;
  }
  if (wants_ids_) {
    delta.token_ids.push_back(token.token);
  }
  if (wants_logprobs_ && !token.is_stop) {
    delta.logprobs.push_back(LogprobOf(token));
  }
  if (!delta.text.empty() || !delta.token_ids.empty() || !delta.logprobs.empty()) {
    sink_->OnDelta(std::move(delta));
  }
  return goes_on;
}

void Answer::OnEnd(FinishReason reason, const absl::Status& status, const SequenceStats& stats) {
  if (reason == FinishReason::kStop || reason == FinishReason::kLength) {
    if (std::string rest = Trim(detokenizer_.Finish()); !rest.empty()) {
      ChatDelta delta;
      delta.choice = choice_;
      delta.text = std::move(rest);
      sink_->OnDelta(std::move(delta));
    }
  }
  const ChoiceEnd end{
      choice_, reason, status, stats.routed_experts, stats.gate_probabilities, stats.image_spans};
  sink_->OnChoiceEnd(end);
  on_end_(end, stats);
}

}  // namespace conclave::frontend
