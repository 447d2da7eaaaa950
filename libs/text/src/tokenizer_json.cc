#include "tokenizer_json.h"

#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "byte_level_files.h"
#include "conclave/base/status.h"
#include "folder_tokens.h"
#include "quote.h"
#include "sentencepiece_file.h"
#include "tokenizer_files.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr int64_t kJsonBytesMax = 64 << 20;
constexpr std::string_view kQwenRegex =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

class JsonReader {
 public:
  JsonReader(std::string folder, const json::object& root)
      : folder_(std::move(folder)), file_(folder_ + "/tokenizer.json"), root_(root) {}

  absl::StatusOr<std::unique_ptr<Tokenizer>> Read() {
    CONCLAVE_RETURN_IF_ERROR(ReadModel());
    CONCLAVE_RETURN_IF_ERROR(ReadNormalizer());
    CONCLAVE_RETURN_IF_ERROR(ReadPreTokenizer());
    CONCLAVE_RETURN_IF_ERROR(is_spelled_ ? ApplySpelled()
                                         : ApplyByteLevel(file_, tokens_, file_, merges_, spec_));
    CONCLAVE_RETURN_IF_ERROR(ReadAdded());
    CONCLAVE_RETURN_IF_ERROR(ReadPostProcessor());
    CONCLAVE_RETURN_IF_ERROR(CheckDecoder());
    CONCLAVE_RETURN_IF_ERROR(FindEnd());
    CONCLAVE_RETURN_IF_ERROR(FinishAdded(
        file_,
        [&](std::string_view content) {
          const auto found = id_of_.find(content);
          return found == id_of_.end() ? -1 : found->second;
        },
        spec_));
    return MakeVocabTokenizer(std::move(spec_));
  }

 private:
  absl::Status Unsupported(const std::string& key, std::string_view found,
                           const std::string& expected) const {
    return UnsupportedTokenizer(file_, key + ": expected " + expected + ", found " + Quote(found));
  }

  absl::Status ReadModel() {
    const json::object* model = ObjectAt(root_, "model");
    if (model == nullptr) return InvalidTokenizer(file_, "model: is missing; expected a BPE model");
    if (TextAt(*model, "type") != "BPE")
      return Unsupported("model.type", TextAt(*model, "type"), "BPE");
    for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!TextAt(*model, key).empty())
        return Unsupported("model." + std::string(key), TextAt(*model, key), "none");
    }
    if (const json::value* dropout = model->if_contains("dropout");
        dropout != nullptr && !dropout->is_null()) {
      return Unsupported("model.dropout", json::serialize(*dropout), "null");
    }
    for (const std::string_view key : {"truncation", "padding"}) {
      if (const json::value* value = root_.if_contains({key.data(), key.size()});
          value != nullptr && !value->is_null()) {
        return Unsupported(std::string(key), json::serialize(*value), "null");
      }
    }
    spec_.takes_whole_pieces = FlagAt(*model, "ignore_merges", false);
    is_spelled_ = FlagAt(*model, "byte_fallback", false);
    const json::object* vocab = ObjectAt(*model, "vocab");
    const json::array* merges = ArrayAt(*model, "merges");
    if (vocab == nullptr || merges == nullptr)
      return InvalidTokenizer(file_, "model: expected an object vocab and an array merges");
    if (is_spelled_ && spec_.takes_whole_pieces)
      return Unsupported("model.ignore_merges", "true", "false beside byte_fallback");
    CONCLAVE_ASSIGN_OR_RETURN(tokens_, TokensOf(file_ + ": model.vocab", *vocab));
    for (size_t id = 0; id < tokens_.size(); ++id)
      id_of_.emplace(tokens_[id], static_cast<int32_t>(id));
    for (const json::value& value : *merges) CONCLAVE_RETURN_IF_ERROR(ReadMerge(value));
    return absl::OkStatus();
  }

  // "left right", or ["left", "right"] in later versions.
  absl::Status ReadMerge(const json::value& value) {
    if (const json::array* pair = value.if_array(); pair != nullptr && pair->size() == 2 &&
                                                    pair->at(0).is_string() &&
                                                    pair->at(1).is_string()) {
      merges_.emplace_back(pair->at(0).get_string(), pair->at(1).get_string());
      return absl::OkStatus();
    }
    const json::string* text = value.if_string();
    const size_t space = text == nullptr ? json::string::npos : text->find(' ');
    if (space == json::string::npos) {
      return InvalidTokenizer(
          file_, "model.merges[" + std::to_string(merges_.size()) + "]: expected two tokens");
    }
    const std::string_view both(text->data(), text->size());
    merges_.emplace_back(both.substr(0, space), both.substr(space + 1));
    return absl::OkStatus();
  }

  // The parts of a Sequence, or the one part itself; none for null.
  static std::vector<const json::object*> PartsOf(const json::object* part, std::string_view list) {
    if (part == nullptr) return {};
    if (TextAt(*part, "type") != "Sequence") return {part};
    std::vector<const json::object*> parts;
    if (const json::array* array = ArrayAt(*part, list)) {
      for (const json::value& value : *array) {
        // Nothing is passed over: what is no object has no type either, and is refused by that.
        static const json::object no_part;
        const json::object* object = value.if_object();
        parts.push_back(object == nullptr ? &no_part : object);
      }
    }
    return parts;
  }

  static bool IsPrepend(const json::object& part) {
    return TextAt(part, "type") == "Prepend" && TextAt(part, "prepend") == "\xE2\x96\x81";
  }
  static bool IsReplaceSpace(const json::object& part) {
    const json::object* pattern = ObjectAt(part, "pattern");
    return TextAt(part, "type") == "Replace" && pattern != nullptr &&
           TextAt(*pattern, "String") == " " && TextAt(part, "content") == "\xE2\x96\x81";
  }

  absl::Status ReadNormalizer() {
    const std::vector<const json::object*> parts =
        PartsOf(ObjectAt(root_, "normalizer"), "normalizers");
    if (is_spelled_) {
      if (parts.size() != 2 || !IsPrepend(*parts[0]) || !IsReplaceSpace(*parts[1])) {
        return Unsupported("normalizer", parts.empty() ? "none" : TextAt(*parts[0], "type"),
                           "Prepend and Replace of spaces, as Llama's");
      }
      return absl::OkStatus();
    }
    for (const json::object* part : parts) {
      if (TextAt(*part, "type") != "NFC")
        return Unsupported("normalizer", TextAt(*part, "type"), "NFC or none");
      spec_.uses_nfc = true;
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer() {
    const std::vector<const json::object*> parts =
        PartsOf(ObjectAt(root_, "pre_tokenizer"), "pretokenizers");
    if (is_spelled_) {
      return parts.empty() ? absl::OkStatus()
                           : Unsupported("pre_tokenizer", TextAt(*parts[0], "type"), "none");
    }
    if (parts.empty() || parts.size() > 2)
      return Unsupported("pre_tokenizer", "none", "ByteLevel, or Split and ByteLevel");
    const json::object& last = *parts.back();
    if (TextAt(last, "type") != "ByteLevel" || FlagAt(last, "add_prefix_space", true))
      return Unsupported("pre_tokenizer", TextAt(last, "type"), "ByteLevel without a prefix space");
    const bool uses_own_regex = FlagAt(last, "use_regex", true);
    if (parts.size() == 1) {
      spec_.pattern = SplitPattern::kGpt2;
      return uses_own_regex ? absl::OkStatus()
                            : Unsupported("pre_tokenizer.use_regex", "false", "true");
    }
    const json::object* pattern = ObjectAt(*parts[0], "pattern");
    const std::string_view regex = pattern == nullptr ? "" : TextAt(*pattern, "Regex");
    if (TextAt(*parts[0], "type") != "Split" || TextAt(*parts[0], "behavior") != "Isolated" ||
        FlagAt(*parts[0], "invert", false) || uses_own_regex || regex != kQwenRegex) {
      return Unsupported("pre_tokenizer.pattern", regex, "a Split by Qwen's pattern, isolated");
    }
    spec_.pattern = SplitPattern::kQwen;
    return absl::OkStatus();
  }

  absl::Status ApplySpelled() {
    // A token that looks like a byte, or that the file calls special, is not made by merges.
    std::vector<bool> is_merged(tokens_.size(), false);
    const auto& id_of = id_of_;
    for (size_t i = 0; i < tokens_.size(); ++i) {
      is_merged[i] = !(tokens_[i].size() == 6 && tokens_[i].starts_with("<0x"));
    }
    if (const json::array* added = ArrayAt(root_, "added_tokens")) {
      for (const json::value& value : *added) {
        const json::object* object = value.if_object();
        const auto found = object == nullptr ? id_of.end() : id_of.find(TextAt(*object, "content"));
        if (found != id_of.end()) is_merged[static_cast<size_t>(found->second)] = false;
      }
    }
    CONCLAVE_RETURN_IF_ERROR(ApplySpelledTokens(file_, tokens_, is_merged, spec_));
    for (size_t rank = 0; rank < merges_.size(); ++rank) {
      const auto& [left, right] = merges_[rank];
      const std::string joined = std::string(left) + std::string(right);
      const auto a = id_of.find(left);
      const auto b = id_of.find(right);
      const auto c = id_of.find(joined);
      if (a == id_of.end() || b == id_of.end() || c == id_of.end()) {
        return InvalidTokenizer(file_, "model.merges[" + std::to_string(rank) +
                                           "]: " + Quote(joined) +
                                           " or one of its halves is no token of the vocabulary");
      }
      spec_.pairs.push_back({a->second, b->second, static_cast<int32_t>(rank), c->second});
    }
    spec_.decode_style = DecodeStyle::kFastLlama;
    return absl::OkStatus();
  }

  absl::Status ReadAdded() {
    const json::array* added = ArrayAt(root_, "added_tokens");
    for (size_t i = 0; added != nullptr && i < added->size(); ++i) {
      const std::string where = file_ + ": added_tokens[" + std::to_string(i) + "]";
      const json::object* object = added->at(i).if_object();
      const json::value* id = object == nullptr ? nullptr : object->if_contains("id");
      AddedToken token;
      token.id = id == nullptr ? -1 : IdOf(*id);
      if (token.id < 0 || TextAt(*object, "content").empty())
        return InvalidTokenizer(where, "expected an id and a content");
      if (FlagAt(*object, "single_word", false)) {
        return UnsupportedTokenizer(where, "single_word; expected a token that is found anywhere");
      }
      token.content = TextAt(*object, "content");
      token.is_special = FlagAt(*object, "special", false);
      token.strips_left = FlagAt(*object, "lstrip", false);
      token.strips_right = FlagAt(*object, "rstrip", false);
      if (token.is_special) spec_.hidden.push_back(token.id);
      spec_.added.push_back(std::move(token));
    }
    return absl::OkStatus();
  }

  int32_t AddedId(std::string_view content) const {
    for (const AddedToken& token : spec_.added) {
      if (token.content == content) return token.id;
    }
    return -1;
  }

  // A template of one control token and the text: BOS.
  absl::Status ReadPostProcessor() {
    const json::object* part = ObjectAt(root_, "post_processor");
    if (part == nullptr || TextAt(*part, "type") == "ByteLevel") return absl::OkStatus();
    if (TextAt(*part, "type") != "TemplateProcessing")
      return Unsupported("post_processor", TextAt(*part, "type"),
                         "TemplateProcessing or ByteLevel");
    const json::array* single = ArrayAt(*part, "single");
    const auto special = [&](size_t i) -> std::string_view {
      const json::object* item = single->at(i).if_object();
      const json::object* token = item == nullptr ? nullptr : ObjectAt(*item, "SpecialToken");
      return token == nullptr ? "" : TextAt(*token, "id");
    };
    const bool is_text_alone = single != nullptr && single->size() == 1 && special(0).empty();
    const bool has_bos =
        single != nullptr && single->size() == 2 && !special(0).empty() && special(1).empty();
    if (!is_text_alone && !has_bos)
      return Unsupported("post_processor.single", "another template", "a BOS token and the text");
    if (has_bos) {
      spec_.bos = AddedId(special(0));
      if (spec_.bos < 0)
        return InvalidTokenizer(file_,
                                "post_processor: " + Quote(special(0)) + " is no added token");
    }
    return absl::OkStatus();
  }

  // The decoder has to be the one that goes with the model.
  absl::Status CheckDecoder() const {
    std::string types;
    for (const json::object* part : PartsOf(ObjectAt(root_, "decoder"), "decoders"))
      types += (types.empty() ? "" : " ") + std::string(TextAt(*part, "type"));
    const std::string_view expected = is_spelled_ ? "Replace ByteFallback Fuse Strip" : "ByteLevel";
    return types == expected ? absl::OkStatus()
                             : Unsupported("decoder", types, std::string(expected));
  }

  // tokenizer.json does not say which token ends a text.
  absl::Status FindEnd() {
    CONCLAVE_ASSIGN_OR_RETURN(const FolderTokens beside, ReadFolderTokens(folder_, {}));
    for (const std::string_view candidate :
         {std::string_view(beside.eos), std::string_view("<|endoftext|>"),
          std::string_view("</s>")}) {
      if (spec_.eos < 0 && !candidate.empty()) spec_.eos = AddedId(candidate);
    }
    return absl::OkStatus();
  }

  const std::string folder_;
  const std::string file_;
  const json::object& root_;
  std::vector<std::string> tokens_;
  std::vector<Merge> merges_;                            // views into root_
  std::unordered_map<std::string_view, int32_t> id_of_;  // views into tokens_
  bool is_spelled_ = false;
  VocabSpec spec_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& folder) {
  CONCLAVE_ASSIGN_OR_RETURN(
      const json::object root,
      ReadJsonObject(folder + "/tokenizer.json", kJsonBytesMax, "a tokenizer.json"));
  return JsonReader(folder, root).Read();
}

}  // namespace conclave::text
