// Conversation templates (spec section 5): a dialogue becomes pieces, in which what the template
// wrote, what a user wrote and where an image stands are told apart, so that no user text is ever
// taken for a control string.
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
  // An exchange that stands in front of every dialogue ("default", "v0"); empty: none.
  std::string_view preset_question;
  std::string_view preset_answer;
};

// All templates of spec 5.2, by key ("stablelm", "phi", "qwen", ...). Null when there is none of
// that name.
const PromptTemplate* FindTemplate(std::string_view key);
std::vector<std::string_view> TemplateKeys();

// The string that ends an answer: sep2 for kTwo and kLlama2, sep otherwise. (The original's stop
// string for kLlama2 is sep, "<s>", which comes only after an answer has been ended by "</s>".)
std::string_view StopString(const PromptTemplate& prompt_template);

// One turn of a dialogue. `text` of the last assistant turn is nullopt: to be generated.
struct Turn {
  bool is_user = true;
  // Text with images in place: `text_pieces[0] <image> text_pieces[1] <image> ...`; one piece more
  // than images. The caller has put the newlines that the template wants around images (see
  // UserTurn).
  std::optional<std::vector<std::string>> text_pieces;
};

// A user turn in the original's layout (spec 5.2): `num_images` images back to back and one newline
// before the text, or the text alone when there is none.
Turn UserTurn(std::string text, int32_t num_images = 0);
// An answer given before, and the one to be generated.
Turn AssistantTurn(std::string text);
Turn OpenTurn();

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

// Renders a dialogue by the rules of spec 5.1. `system` overrides the template's system text when
// set; the control string in front of it ("mpt") stays.
//
// A separator or role marker becomes a kSpecial span where `tokenizer` has a special id for it and
// ordinary text where not; nothing in `turns` or `system` ever does, nor does it become an image,
// whatever it spells. As in the original a turn without text and image is its role alone, with no
// separator behind it (kLlama2, kPlain: nothing); only the first user turn of kLlama2, which
// carries the system text, is written even when empty. Turns of one side may follow each other.
// Adjacent ordinary text is one span.
std::vector<PromptSpan> Render(const PromptTemplate& prompt_template, std::span<const Turn> turns,
                               const std::optional<std::string>& system,
                               const Tokenizer& tokenizer);

// The prompt as one string, images as "<image>": what the recordings hold.
std::string Flatten(std::span<const PromptSpan> spans);

// Ids with kImageToken for every image, by the rules of spec 3.6: pieces between images are
// tokenised alone, BOS kept once. Special strings in kText spans are ordinary text; a kSpecial span
// that is no special string of `tokenizer` too.
std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, std::span<const PromptSpan> spans);

// The original's reading of a whole prompt: every "<image>" is an image and every special string is
// special, whoever wrote it. For parity with recordings; never for text of a user.
std::vector<int32_t> EncodeAsOriginal(const Tokenizer& tokenizer, std::string_view prompt);

}  // namespace conclave::text
