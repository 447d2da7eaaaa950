// Messages of a chat become the turns of the model's template and the token ids of its prompt.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/frontend/chat.h"
#include "conclave/text/prompt_template.h"
#include "conclave/text/tokenizer.h"

namespace conclave::frontend {

// Ids with text::kImageToken for every image part, in message order. Within a user message the
// pictures come first, as the model was trained: one placeholder each, back to back, then a
// newline, then the texts joined by newlines (spec 5.2). A system message replaces the template's
// system text. With SpliceSpec::use_start_end_tokens every placeholder stands between <im_start>
// and <im_end> (spec 3.6).
absl::StatusOr<std::vector<int32_t>> BuildPrompt(std::span<const Message> messages,
                                                 const text::PromptTemplate& prompt_template,
                                                 const checkpoint::SpliceSpec& splice,
                                                 const text::Tokenizer& tokenizer);

}  // namespace conclave::frontend
