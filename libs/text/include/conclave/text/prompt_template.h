// Conversation templates (spec section 5): a dialogue becomes pieces, in which what the template wrote, what a user
// wrote and where an image stands are told apart, so that no user text is ever taken for a control string.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/text/tokenizer.h"

namespace conclave::text {

// Id that stands for an image in a token list (spec 3.6). It never reaches an embedding lookup.
inline constexpr int32_t kImageToken = -200;

enum class TemplateStyle { kTwo, kSingle, kMpt, kLlama2, kPlain };

struct PromptTemplate {
  std::string_view key;
  TemplateStyle style;
  std::string_view user_role;
  std::string_view assistant_role;
  std::string_view system;
  std::string_view sep;
  std::string_view sep2;  // empty: none
};

// All templates of spec 5.2, by key ("stablelm", "phi", "qwen", ...). Null when there is none of that name.
const PromptTemplate* FindTemplate(std::string_view key);
std::vector<std::string_view> TemplateKeys();

// The string that ends an answer: sep2 for kTwo and kLlama2, sep otherwise.
std::string_view StopString(const PromptTemplate& prompt_template);

// One turn of a dialogue. `text` of the last assistant turn is nullopt: to be generated.
struct Turn {
  bool is_user = true;
  // Text with images in place: `text_pieces[0] <image> text_pieces[1] <image> ...`; one piece more than images. The
  // caller has put the newlines that the template wants around images (see ImagePrefix).
  std::optional<std::vector<std::string>> text_pieces;
};

// A rendered prompt: spans in order.
struct PromptSpan {
  enum class Kind {
    kText,     // ordinary text, from the template or a user; adjacent ones are tokenised together
    kSpecial,  // a control string that the template produced, to be one special id
    kImage,
  };
  Kind kind;
  std::string text;
};

// Renders a dialogue. `system` overrides the template's when set.
std::vector<PromptSpan> Render(const PromptTemplate& prompt_template, std::span<const Turn> turns,
                               const std::optional<std::string>& system, const Tokenizer& tokenizer);

// The prompt as one string, images as "<image>": what the recordings hold.
std::string Flatten(std::span<const PromptSpan> spans);

// Ids with kImageToken for every image, by the rules of spec 3.6: pieces between images are tokenised alone, BOS kept
// once.
std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, std::span<const PromptSpan> spans);

}  // namespace conclave::text
