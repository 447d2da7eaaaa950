// Recorded tokenizers and templates.
#include <algorithm>
#include <filesystem>
#include <optional>

#include "checks.h"
#include "conclave/base/status.h"
#include "conclave/text/prompt_template.h"
#include "conclave/text/tokenizer.h"
#include "recording.h"

namespace conclave::golden {
namespace {

namespace json = boost::json;

std::string TokenizerFileIn(const std::string& folder) {
  const std::string within = folder + "/";
  for (const char* name : {"arcade100k.tiktoken", "qwen.tiktoken", "tokenizer.model", "vocab.json",
                           "tokenizer.json"}) {
    if (Exists(within + name)) {
      return name;
    }
  }
  return "";
}

// Counts lines for which `holds` is false and remembers the first.
class Tally {
 public:
  void Add(bool holds, const std::string& text) {
    ++num_;
    if (!holds && first_.empty()) {
      first_ = text;
    }
    num_bad_ += holds ? 0 : 1;
  }
  void Report(golden::Report& report, const std::string& name, const std::string& what) const {
    report.Exact(name, what + " (" + std::to_string(num_) + ")", num_ > 0 && num_bad_ == 0,
                 std::to_string(num_bad_) + " differ, first: " + first_);
  }

  int num() const { return num_; }

 private:
  int num_ = 0;
  int num_bad_ = 0;
  std::string first_;
};

void CheckStrings(const std::string& folder, const std::string& name,
                  const text::Tokenizer& tokenizer, Report& report) {
  const auto lines = ReadJsonLines(folder + "/strings.jsonl");
  if (!lines.ok()) {
    report.Error(name, "strings.jsonl", MessageOf(lines.status()));
    return;
  }
  Tally ids, plain, clean, decoded, kept;
  for (const json::value& value : *lines) {
    const json::object& line = value.as_object();
    const std::string text = Str(line.at("text"));
    const std::vector<int32_t> expected = Ints(line.at("ids"));
    ids.Add(tokenizer.EncodeWithSpecials(text) == expected, text);
    plain.Add(tokenizer.Encode(text) == Ints(line.at("ids_plain")), text);
    if (line.contains("decoded_clean")) {
      clean.Add(tokenizer.Decode(expected) == Str(line.at("decoded_clean")), text);
    }
    decoded.Add(tokenizer.DecodeAsOriginal(expected) == Str(line.at("decoded")), text);
    kept.Add(tokenizer.DecodeAsOriginal(expected, true) == Str(line.at("decoded_keep_special")),
             text);
  }
  ids.Report(report, name, "ids, special strings live");
  plain.Report(report, name, "ids, plain text");
  if (clean.num() > 0) {
    clean.Report(report, name, "decoded");
  }
  decoded.Report(report, name, "decoded as the original");
  kept.Report(report, name, "decoded as the original, with specials");
}

void CheckImagePrompts(const std::string& folder, const std::string& name,
                       const text::Tokenizer& tokenizer, Report& report) {
  const auto lines = ReadJsonLines(folder + "/image_prompts.jsonl");
  if (!lines.ok()) {
    report.Error(name, "image_prompts.jsonl", MessageOf(lines.status()));
    return;
  }
  Tally ids;
  for (const json::value& value : *lines) {
    const std::string prompt = Str(value.as_object().at("prompt"));
    const std::vector<int32_t> found = text::EncodeAsOriginal(tokenizer, prompt);
    ids.Add(found == Ints(value.as_object().at("ids")), prompt);
  }
  ids.Report(report, name, "ids of image prompts");
}

std::vector<text::Turn> TurnsOf(const json::value& dialogue) {
  std::vector<text::Turn> turns;
  for (const json::value& value : dialogue.as_array()) {
    text::Turn turn;
    turn.is_user = turns.size() % 2 == 0;
    if (!value.is_null()) {
      std::vector<std::string> pieces;
      std::string rest = Str(value);
      for (size_t at = rest.find("<image>"); at != std::string::npos; at = rest.find("<image>")) {
        pieces.push_back(rest.substr(0, at));
        rest = rest.substr(at + 7);
      }
      pieces.push_back(rest);
      turn.text_pieces = std::move(pieces);
    }
    turns.push_back(std::move(turn));
  }
  return turns;
}

// A vocabulary without tokens: templates are compared as text.
class NoTokenizer : public text::Tokenizer {
 public:
  std::vector<int32_t> Encode(std::string_view /*text*/) const override { return {}; }
  std::vector<int32_t> EncodeWithSpecials(std::string_view /*text*/) const override { return {}; }
  std::string_view TokenBytes(int32_t /*id*/, bool /*keep_special*/) const override { return {}; }
  int32_t size() const override { return 0; }
  bool IsSpecial(int32_t /*id*/) const override { return false; }
  int32_t SpecialId(std::string_view /*special*/) const override { return -1; }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return -1; }
};

}  // namespace

void CheckTokenizer(const std::string& folder, Report& report) {
  const std::string name = "tokenizers/" + std::filesystem::path(folder).filename().string();
  const std::string file = TokenizerFileIn(folder);
  if (file.empty()) {
    report.NotSupported(name, "tokenizer kind");
    return;
  }
  const auto tokenizer = text::LoadTokenizerFromFolder(folder, file);
  if (!tokenizer.ok()) {
    report.Error(name, "load", MessageOf(tokenizer.status()));
    return;
  }
  if (const auto meta = ReadJson(folder + "/tokenizer_case.json"); meta.ok()) {
    report.Exact(name, "length",
                 (*tokenizer)->size() == meta->as_object().at("length").to_number<int32_t>(),
                 "found " + std::to_string((*tokenizer)->size()));
  }
  CheckStrings(folder, name, **tokenizer, report);
  if (Exists(folder + "/image_prompts.jsonl")) {
    CheckImagePrompts(folder, name, **tokenizer, report);
  }
}

void CheckTemplates(const std::string& root, Report& report) {
  const absl::StatusOr<json::value> file = ReadJson(root + "/templates.json");
  if (!file.ok()) {
    report.Error("templates", "templates.json", MessageOf(file.status()));
    return;
  }
  const json::object& dialogues = file->as_object().at("dialogues").as_object();
  const NoTokenizer tokenizer;
  for (const auto& [key, value] : file->as_object().at("templates").as_object()) {
    const std::string name = "templates/" + std::string(key);
    const text::PromptTemplate* prompt_template =
        text::FindTemplate(std::string_view(key.data(), key.size()));
    if (prompt_template == nullptr) {
      report.Error(name, "lookup", "no such template");
      continue;
    }
    Tally rendered;
    for (const auto& [dialogue, expected] : value.as_object().at("rendered").as_object()) {
      if (expected.is_null()) {
        continue;  // The original raises on this dialogue: there is nothing to reproduce.
      }
      const std::string found = text::Flatten(
          text::Render(*prompt_template, TurnsOf(dialogues.at(dialogue)), std::nullopt, tokenizer));
      rendered.Add(found == Str(expected), std::string(dialogue));
    }
    rendered.Report(report, name, "rendered dialogues");
  }
}

}  // namespace conclave::golden
