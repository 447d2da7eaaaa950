#include "conclave/text/prompt_template.h"

#include <algorithm>
#include <utility>

namespace conclave::text {
namespace {

constexpr std::string_view kImageString = "<image>";
constexpr std::string_view kMptSystemMarker = "<|im_start|>system\n";
// Every control string that occurs in a separator or role marker of spec 5.2.
constexpr std::string_view kControlStrings[] = {
    "<|endoftext|>", "<|end_of_turn|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"};

bool IsEmpty(const Turn& turn) {
  return !turn.text_pieces.has_value() || turn.text_pieces->empty() ||
         (turn.text_pieces->size() == 1 && turn.text_pieces->front().empty());
}

class SpanBuilder {
 public:
  explicit SpanBuilder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void AddText(std::string_view text) {
    if (text.empty()) return;
    if (spans_.empty() || spans_.back().kind != PromptSpan::Kind::kText) {
      spans_.push_back({PromptSpan::Kind::kText, ""});
    }
    spans_.back().text.append(text);
  }

  // A marker of the template: the only source of special spans.
  void AddMarker(std::string_view marker) {
    size_t text_begin = 0;
    for (size_t pos = 0; pos < marker.size();) {
      const std::string_view control = ControlAt(marker.substr(pos));
      if (control.empty()) {
        ++pos;
        continue;
      }
      AddText(marker.substr(text_begin, pos - text_begin));
      spans_.push_back({PromptSpan::Kind::kSpecial, std::string(control)});
      pos += control.size();
      text_begin = pos;
    }
    AddText(marker.substr(text_begin));
  }

  void AddTurn(const Turn& turn) {
    if (!turn.text_pieces.has_value()) return;
    for (size_t i = 0; i < turn.text_pieces->size(); ++i) {
      if (i > 0) spans_.push_back({PromptSpan::Kind::kImage, std::string(kImageString)});
      AddText((*turn.text_pieces)[i]);
    }
  }

  bool empty() const { return spans_.empty(); }
  std::vector<PromptSpan> Take() { return std::move(spans_); }

 private:
  std::string_view ControlAt(std::string_view text) const {
    for (const std::string_view control : kControlStrings) {
      if (text.starts_with(control) && tokenizer_.SpecialId(control) >= 0) return control;
    }
    return {};
  }

  const Tokenizer& tokenizer_;
  std::vector<PromptSpan> spans_;
};

// kTwo, kSingle: "role: text<sep>".
void AddColonTurn(const PromptTemplate& prompt_template, const Turn& turn, SpanBuilder& spans) {
  spans.AddMarker(turn.is_user ? prompt_template.user_role : prompt_template.assistant_role);
  if (IsEmpty(turn)) {
    spans.AddText(":");
    return;
  }
  spans.AddText(": ");
  spans.AddTurn(turn);
  const bool uses_second = prompt_template.style == TemplateStyle::kTwo && !turn.is_user;
  spans.AddMarker(uses_second ? prompt_template.sep2 : prompt_template.sep);
}

void AddMptTurn(const PromptTemplate& prompt_template, const Turn& turn, SpanBuilder& spans) {
  spans.AddMarker(turn.is_user ? prompt_template.user_role : prompt_template.assistant_role);
  if (IsEmpty(turn)) return;
  spans.AddTurn(turn);
  spans.AddMarker(prompt_template.sep);
}

void AddPlainTurn(const PromptTemplate& prompt_template, const Turn& turn, SpanBuilder& spans) {
  if (IsEmpty(turn)) return;
  spans.AddTurn(turn);
  spans.AddMarker(turn.is_user ? prompt_template.sep : prompt_template.sep2);
}

// `system` goes into the first user turn; nullopt for the others. The very first separator is left
// out: the original strips it, as the tokenizer adds it again as BOS.
void AddLlama2Turn(const PromptTemplate& prompt_template, const Turn& turn,
                   std::optional<std::string_view> system, SpanBuilder& spans) {
  if (IsEmpty(turn) && !system.has_value()) return;
  if (!turn.is_user) {
    spans.AddText(" ");
    spans.AddTurn(turn);
    spans.AddText(" ");
    spans.AddMarker(prompt_template.sep2);
    return;
  }
  if (!spans.empty()) spans.AddMarker(prompt_template.sep);
  spans.AddText("[INST] ");
  if (system.has_value()) {
    spans.AddText("<<SYS>>\n");
    spans.AddText(*system);
    spans.AddText("\n<</SYS>>\n\n");
  }
  spans.AddTurn(turn);
  spans.AddText(" [/INST]");
}

void AddSystem(const PromptTemplate& prompt_template, std::string_view system, SpanBuilder& spans) {
  if (prompt_template.style == TemplateStyle::kMpt) spans.AddMarker(kMptSystemMarker);
  spans.AddText(system);
  if (prompt_template.style != TemplateStyle::kPlain) spans.AddMarker(prompt_template.sep);
}

void AddTurnOfStyle(const PromptTemplate& prompt_template, const Turn& turn,
                    std::optional<std::string_view> system, SpanBuilder& spans) {
  switch (prompt_template.style) {
    case TemplateStyle::kTwo:
    case TemplateStyle::kSingle:
      return AddColonTurn(prompt_template, turn, spans);
    case TemplateStyle::kMpt:
      return AddMptTurn(prompt_template, turn, spans);
    case TemplateStyle::kPlain:
      return AddPlainTurn(prompt_template, turn, spans);
    case TemplateStyle::kLlama2:
      return AddLlama2Turn(prompt_template, turn, system, spans);
  }
}

// The template's system text without the marker that stands in front of it in "mpt".
std::string_view SystemText(const PromptTemplate& prompt_template) {
  std::string_view text = prompt_template.system;
  if (prompt_template.style == TemplateStyle::kMpt && text.starts_with(kMptSystemMarker)) {
    text.remove_prefix(kMptSystemMarker.size());
  }
  return text;
}

// Ids of pieces that are tokenised alone, joined: a BOS that the tokenizer puts in front of every
// piece is kept once.
class IdJoiner {
 public:
  explicit IdJoiner(const Tokenizer& tokenizer) : bos_(tokenizer.bos()) {
    if (bos_ >= 0) ids_.push_back(bos_);
  }

  void AddPiece(const std::vector<int32_t>& piece) {
    const bool drops_bos = bos_ >= 0 && !piece.empty() && piece.front() == bos_;
    ids_.insert(ids_.end(), piece.begin() + (drops_bos ? 1 : 0), piece.end());
  }
  void AddId(int32_t id) { ids_.push_back(id); }
  std::vector<int32_t> Take() { return std::move(ids_); }

 private:
  const int32_t bos_;
  std::vector<int32_t> ids_;
};

}  // namespace

std::string_view StopString(const PromptTemplate& prompt_template) {
  const bool uses_second = prompt_template.style == TemplateStyle::kTwo ||
                           prompt_template.style == TemplateStyle::kLlama2;
  return uses_second ? prompt_template.sep2 : prompt_template.sep;
}

Turn UserTurn(std::string text, int32_t num_images) {
  std::vector<std::string> pieces(std::max(num_images, 0));
  pieces.push_back(num_images > 0 ? "\n" + text : std::move(text));
  return {true, std::move(pieces)};
}

Turn AssistantTurn(std::string text) { return {false, std::vector<std::string>{std::move(text)}}; }

Turn OpenTurn() { return {false, std::nullopt}; }

std::vector<PromptSpan> Render(const PromptTemplate& prompt_template, std::span<const Turn> turns,
                               const std::optional<std::string>& system,
                               const Tokenizer& tokenizer) {
  SpanBuilder spans(tokenizer);
  const std::string_view system_text =
      system.has_value() ? std::string_view(*system) : SystemText(prompt_template);
  std::optional<std::string_view> carried;  // system text that the next user turn begins with
  if (prompt_template.style == TemplateStyle::kLlama2) {
    carried = system_text;
  } else {
    AddSystem(prompt_template, system_text, spans);
  }
  if (!prompt_template.preset_question.empty()) {
    AddTurnOfStyle(prompt_template, UserTurn(std::string(prompt_template.preset_question)),
                   std::nullopt, spans);
    AddTurnOfStyle(prompt_template, AssistantTurn(std::string(prompt_template.preset_answer)),
                   std::nullopt, spans);
  }
  for (const Turn& turn : turns) {
    AddTurnOfStyle(prompt_template, turn,
                   turn.is_user ? std::exchange(carried, std::nullopt) : std::nullopt, spans);
  }
  return spans.Take();
}

std::string Flatten(std::span<const PromptSpan> spans) {
  std::string text;
  for (const PromptSpan& span : spans) text.append(span.text);
  return text;
}

std::vector<int32_t> EncodePrompt(const Tokenizer& tokenizer, std::span<const PromptSpan> spans) {
  IdJoiner ids(tokenizer);
  std::string text;
  const auto flush_text = [&] {
    if (!text.empty()) ids.AddPiece(tokenizer.Encode(text));
    text.clear();
  };
  for (const PromptSpan& span : spans) {
    if (span.kind == PromptSpan::Kind::kImage) {
      flush_text();
      ids.AddId(kImageToken);
      continue;
    }
    const int32_t special =
        span.kind == PromptSpan::Kind::kSpecial ? tokenizer.SpecialId(span.text) : -1;
    if (special < 0) {
      text.append(span.text);
      continue;
    }
    flush_text();
    ids.AddId(special);
  }
  flush_text();
  return ids.Take();
}

std::vector<int32_t> EncodeAsOriginal(const Tokenizer& tokenizer, std::string_view prompt) {
  IdJoiner ids(tokenizer);
  while (true) {
    const size_t image = prompt.find(kImageString);
    ids.AddPiece(tokenizer.EncodeWithSpecials(prompt.substr(0, image)));
    if (image == std::string_view::npos) return ids.Take();
    ids.AddId(kImageToken);
    prompt.remove_prefix(image + kImageString.size());
  }
}

}  // namespace conclave::text
