#include "byte_level_files.h"

#include <algorithm>
#include <optional>

#include "byte_alphabet.h"
#include "conclave/base/status.h"
#include "folder_tokens.h"
#include "quote.h"
#include "tokenizer_files.h"
#include "utf8.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

// The published files have at most 152,000 tokens in 4 MB.
constexpr int64_t kVocabBytesMax = 64 << 20;

absl::StatusOr<std::vector<Merge>> ParseMerges(const std::string& file, std::string_view content) {
  std::vector<Merge> merges;
  size_t number = 0;
  while (!content.empty()) {
    ++number;
    const size_t end = content.find('\n');
    std::string_view line = content.substr(0, end);
    content.remove_prefix(end == std::string_view::npos ? content.size() : end + 1);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
    const size_t space = line.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == line.size() ||
        line.find(' ', space + 1) != std::string_view::npos) {
      return InvalidTokenizer(
          file + ":" + std::to_string(number),
          "expected two tokens with a space between them, found " + Quote(line));
    }
    merges.emplace_back(line.substr(0, space), line.substr(space + 1));
  }
  return merges;
}

// What stands where an id belongs, as a message may show it.
std::string Shown(const json::value& value) {
  if (const json::string* text = value.if_string()) return Quote(*text);
  const std::string text = json::serialize(value);
  return value.is_structured() ? Quote(text) : text;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> TokensOf(const std::string& where,
                                                  const json::object& vocab) {
  if (vocab.empty()) return InvalidTokenizer(where, "no token; expected tokens with their ids");
  std::vector<std::string> tokens(vocab.size());
  std::vector<bool> is_seen(vocab.size(), false);
  for (const auto& entry : vocab) {
    const int32_t id = IdOf(entry.value());
    const std::string content(entry.key());
    if (id < 0 || static_cast<size_t>(id) >= vocab.size()) {
      return InvalidTokenizer(where, "token " + Quote(content) + ": expected each id of 0 to " +
                                         std::to_string(vocab.size() - 1) + " once, found " +
                                         Shown(entry.value()));
    }
    if (is_seen[static_cast<size_t>(id)]) {
      return InvalidTokenizer(where, "token " + Quote(content) + ": its id " + std::to_string(id) +
                                         " is there twice; expected once");
    }
    if (content.empty() || content.size() > kTokenBytesMax) {
      return InvalidTokenizer(where, "id " + std::to_string(id) + ": expected a token of 1 to " +
                                         std::to_string(kTokenBytesMax) + " bytes, found " +
                                         std::to_string(content.size()));
    }
    is_seen[static_cast<size_t>(id)] = true;
    tokens[static_cast<size_t>(id)] = content;
  }
  return tokens;
}

absl::Status ApplyByteLevel(const std::string& vocab_where, const std::vector<std::string>& tokens,
                            const std::string& merges_where, const std::vector<Merge>& merges,
                            VocabSpec& spec) {
  std::unordered_map<std::string_view, int32_t> id_of;
  for (size_t id = 0; id < tokens.size(); ++id) {
    id_of.emplace(tokens[id], static_cast<int32_t>(id));
    const std::optional<std::string> bytes = BytesOfSpelling(tokens[id]);
    spec.token_bytes.push_back(bytes.value_or(tokens[id]));
    spec.symbol_lengths.push_back(static_cast<uint32_t>(spec.token_bytes.back().size()));
  }
  for (int byte = 0; byte < 256; ++byte) {
    std::string character;
    AppendUtf8(CharacterOfByte(static_cast<uint8_t>(byte)), character);
    const auto found = id_of.find(character);
    if (found == id_of.end()) {
      return InvalidTokenizer(vocab_where, "no token of the single byte " + std::to_string(byte) +
                                               "; expected all 256");
    }
    spec.id_of_byte[static_cast<size_t>(byte)] = found->second;
  }
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const auto a = id_of.find(left);
    const auto b = id_of.find(right);
    const std::string joined = std::string(left) + std::string(right);
    const auto c = id_of.find(joined);
    if (a == id_of.end() || b == id_of.end() || c == id_of.end()) {
      return InvalidTokenizer(merges_where,
                              "merge " + std::to_string(rank) + ": " +
                                  Quote(a == id_of.end()   ? left
                                        : b == id_of.end() ? right
                                                           : std::string_view(joined)) +
                                  " is no token of the vocabulary");
    }
    if (!BytesOfSpelling(joined).has_value()) {
      return InvalidTokenizer(merges_where, "merge " + std::to_string(rank) + ": " + Quote(joined) +
                                                " does not spell bytes");
    }
    spec.pairs.push_back({a->second, b->second, static_cast<int32_t>(rank), c->second});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadByteLevelFolder(const std::string& folder) {
  const std::string vocab_file = folder + "/vocab.json";
  const std::string merges_file = folder + "/merges.txt";
  CONCLAVE_ASSIGN_OR_RETURN(
      const json::object vocab,
      ReadJsonObject(vocab_file, kVocabBytesMax, "the tokens of a byte-level BPE"));
  CONCLAVE_ASSIGN_OR_RETURN(
      const std::string content,
      ReadTokenizerFile(merges_file, kVocabBytesMax, "the merges that belong to vocab.json"));
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> tokens, TokensOf(vocab_file, vocab));
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<Merge> merges, ParseMerges(merges_file, content));
  constexpr std::string_view kEndOfText = "<|endoftext|>";
  CONCLAVE_ASSIGN_OR_RETURN(
      const FolderTokens added,
      ReadFolderTokens(folder,
                       {.bos = kEndOfText,
                        .eos = kEndOfText,
                        .unk = kEndOfText,
                        .classes = {"CodeGenTokenizer", "GPT2Tokenizer", "Qwen2Tokenizer"}}));
  VocabSpec spec;
  CONCLAVE_RETURN_IF_ERROR(ApplyByteLevel(vocab_file, tokens, merges_file, merges, spec));
  const bool is_qwen = added.tokenizer_class.starts_with("Qwen2");
  spec.pattern = is_qwen ? SplitPattern::kQwen : SplitPattern::kGpt2;
  spec.uses_nfc = is_qwen;
  spec.nfc_before_added = is_qwen;
  spec.puts_spaces_between_added = !is_qwen;
  CONCLAVE_RETURN_IF_ERROR(ApplyFolderTokens(
      folder, added,
      [&](std::string_view wanted) {
        const json::value* id = vocab.if_contains({wanted.data(), wanted.size()});
        return id == nullptr ? -1 : IdOf(*id);
      },
      spec));
  return MakeVocabTokenizer(std::move(spec));
}

}  // namespace conclave::text
