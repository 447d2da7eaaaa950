// One choice of a chat request on its way from tokens to text.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "conclave/frontend/chat.h"
#include "conclave/frontend/engine.h"
#include "conclave/text/detokenizer.h"
#include "conclave/text/tokenizer.h"

namespace conclave::frontend {

// Turns a sequence's tokens into deltas. White space at both ends of the answer is dropped, as the
// original does (spec 5.3): the model was trained to begin with a space.
class Answer : public SequenceSink {
 public:
  // `on_end(choice end, stats)` is called once, after the last delta.
  Answer(int32_t choice, const ChatRequest& request, const text::Tokenizer& tokenizer,
         const std::vector<std::string>& stops, std::shared_ptr<ChatSink> sink,
         std::function<void(const ChoiceEnd&, const SequenceStats&)> on_end);

  bool OnToken(const SequenceToken& token) override;
  void OnEnd(FinishReason reason, const absl::Status& status, const SequenceStats& stats) override;

 private:
  // What of `text` may be shown now: leading white space of the answer never, trailing white space
  // only when more text follows.
  std::string Trim(std::string text);
  TokenLogprob LogprobOf(const SequenceToken& token) const;

  const int32_t choice_;
  const bool wants_ids_;
  const bool wants_logprobs_;
  const text::Tokenizer& tokenizer_;
  text::IncrementalDetokenizer detokenizer_;
  const std::shared_ptr<ChatSink> sink_;
  const std::function<void(const ChoiceEnd&, const SequenceStats&)> on_end_;
  bool has_text_ = false;
  std::string held_space_;
};

}  // namespace conclave::frontend
