#include "prompt.h"

#include <optional>
#include <string>
#include <utility>

#include "conclave/base/status.h"

namespace conclave::frontend {
namespace {

std::string JoinTexts(const Message& message) {
  std::string joined;
  bool is_first = true;
  for (const ContentPart& part : message.parts) {
    if (part.kind == ContentPart::Kind::kText) {
      joined += (is_first ? "" : "\n") + part.bytes;
      is_first = false;
    }
  }
  return joined;
}

text::Turn ToTurn(const Message& message) {
  text::Turn turn;
  turn.is_user = message.role == Message::Role::kUser;
  size_t num_images = 0;
  for (const ContentPart& part : message.parts) {
    num_images += part.kind == ContentPart::Kind::kImage ? 1 : 0;
  }
  std::vector<std::string> pieces(num_images);
  pieces.push_back((num_images > 0 ? "\n" : "") + JoinTexts(message));
  turn.text_pieces = std::move(pieces);
  return turn;
}

// Pictures between their two marks, which are template text: special ids where the tokenizer has
// them.
std::vector<text::PromptSpan> WithMarks(std::vector<text::PromptSpan> spans) {
  std::vector<text::PromptSpan> marked;
  for (text::PromptSpan& span : spans) {
    const bool is_image = span.kind == text::PromptSpan::Kind::kImage;
    if (is_image) {
      marked.push_back({text::PromptSpan::Kind::kSpecial, "<im_start>"});
    }
    marked.push_back(std::move(span));
    if (is_image) {
      marked.push_back({text::PromptSpan::Kind::kSpecial, "<im_end>"});
    }
  }
  return marked;
}

}  // namespace

absl::StatusOr<std::vector<int32_t>> BuildPrompt(std::span<const Message> messages,
                                                 const text::PromptTemplate& prompt_template,
                                                 const checkpoint::SpliceSpec& splice,
                                                 const text::Tokenizer& tokenizer) {
  std::optional<std::string> system;
  std::vector<text::Turn> turns;
  for (const Message& message : messages) {
    if (message.role == Message::Role::kSystem) {
      system = JoinTexts(message);
    } else {
      turns.push_back(ToTurn(message));
    }
  }
  if (turns.empty() || !turns.back().is_user) {
    return WithParam(InvalidArgument("invalid_role", "the last message must be the user's"),
                     "messages");
  }
  turns.push_back({false, std::nullopt});
  std::vector<text::PromptSpan> spans = text::Render(prompt_template, turns, system, tokenizer);
  if (splice.use_start_end_tokens) {
    spans = WithMarks(std::move(spans));
  }
  return text::EncodePrompt(tokenizer, spans);
}

}  // namespace conclave::frontend
