// Which tokenizer files a checkpoint has, and what they say about its template (spec 2.4, 5.2, 6).
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/base/status.h"
#include "model_config.h"

namespace conclave::checkpoint {
namespace {

constexpr std::string_view kEndOfTurn = "<|end_of_turn|>";

// The first file name of the folder with that ending, empty when there is none.
std::string FirstWithSuffix(const std::vector<std::string>& names, std::string_view suffix) {
  const auto found = std::find_if(names.begin(), names.end(), [suffix](const std::string& name) {
    return name.ends_with(suffix);
  });
  return found == names.end() ? std::string() : *found;
}

absl::StatusOr<TokenizerSpec> FindTokenizer(const ModelFolder& folder) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> names, folder.List());
  const std::string ranks = folder.Has("arcade100k.tiktoken") ? "arcade100k.tiktoken"
                                                              : FirstWithSuffix(names, ".tiktoken");
  if (!ranks.empty()) {
    return TokenizerSpec{.kind = TokenizerKind::kTiktoken, .file = ranks};
  }
  if (folder.Has("tokenizer.model")) {
    return TokenizerSpec{.kind = TokenizerKind::kSentencePiece, .file = "tokenizer.model"};
  }
  // A vocabulary is half of a byte-level BPE; some folders keep it without its merges beside a
  // tokenizer.json.
  if (folder.Has("vocab.json") && (folder.Has("merges.txt") || !folder.Has("tokenizer.json"))) {
    return TokenizerSpec{.kind = TokenizerKind::kByteLevelBpe, .file = "vocab.json"};
  }
  if (folder.Has("tokenizer.json")) {
    return TokenizerSpec{.kind = TokenizerKind::kTokenizerJson, .file = "tokenizer.json"};
  }
  return TokenizerSpec{};
}

// Whether the file lists `token` as an added one: as a key (added_tokens.json), or as the content
// of an entry of added_tokens_decoder (tokenizer_config.json).
absl::StatusOr<bool> Lists(const ModelFolder& folder, const std::string& file,
                           std::string_view token) {
  if (!folder.Has(file)) {
    return false;
  }
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text,
                            folder.ReadText(file, kConfigBytesMax, "config_key"));
  CONCLAVE_ASSIGN_OR_RETURN(const boost::json::value value, ParseConfig(file, text));
  const boost::json::object& object = value.get_object();
  if (object.contains({token.data(), token.size()})) {
    return true;
  }
  const boost::json::value* added = object.if_contains("added_tokens_decoder");
  if (added == nullptr || !added->is_object()) {
    return false;
  }
  for (const auto& entry : added->get_object()) {
    const boost::json::object* description = entry.value().if_object();
    const boost::json::value* content =
        description != nullptr ? description->if_contains("content") : nullptr;
    if (content != nullptr && content->is_string() &&
        std::string_view(content->get_string()) == token) {
      return true;
    }
  }
  return false;
}

// tokenizer.json is the tokenizer's own reader's to check: here it is only searched.
absl::StatusOr<bool> Mentions(const ModelFolder& folder, const std::string& file,
                              std::string_view token) {
  constexpr int64_t kBytesMax = 64 << 20;
  CONCLAVE_ASSIGN_OR_RETURN(const std::string text, folder.ReadText(file, kBytesMax, "config_key"));
  return text.find("\"" + std::string(token) + "\"") != std::string::npos;
}

absl::StatusOr<bool> KnowsEndOfTurn(const ModelFolder& folder, const TokenizerSpec& tokenizer) {
  for (const std::string file : {"added_tokens.json", "tokenizer_config.json"}) {
    CONCLAVE_ASSIGN_OR_RETURN(const bool is_listed, Lists(folder, file, kEndOfTurn));
    if (is_listed) {
      return true;
    }
  }
  if (tokenizer.kind == TokenizerKind::kTokenizerJson) {
    return Mentions(folder, tokenizer.file, kEndOfTurn);
  }
  return false;
}

}  // namespace

absl::Status ReadTokenizer(const ModelFolder& folder, bool may_be_openchat, ModelDesc& desc) {
  CONCLAVE_ASSIGN_OR_RETURN(desc.tokenizer, FindTokenizer(folder));
  if (desc.tokenizer.file.empty()) {
    desc.warnings.push_back(
        "no tokenizer file (.tiktoken, tokenizer.json, tokenizer.model or vocab.json) in the "
        "folder");
  }
  if (may_be_openchat) {
    CONCLAVE_ASSIGN_OR_RETURN(const bool is_openchat, KnowsEndOfTurn(folder, desc.tokenizer));
    desc.prompt_template = is_openchat ? "openchat" : "mistral";
  }
  return absl::OkStatus();
}

}  // namespace conclave::checkpoint
