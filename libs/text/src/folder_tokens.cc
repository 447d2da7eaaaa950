#include "folder_tokens.h"

#include <algorithm>
#include <charconv>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "conclave/base/status.h"
#include "quote.h"
#include "tokenizer_files.h"

namespace conclave::text {
namespace {

namespace json = boost::json;

constexpr int64_t kConfigBytesMax = 16 << 20;

// A token as these files write it: a string, or an object with a content. Empty: neither.
std::string ContentOf(const json::value& value) {
  if (const json::string* text = value.if_string()) return {text->data(), text->size()};
  if (const json::object* object = value.if_object())
    return std::string(TextAt(*object, "content"));
  return {};
}

void ReadRole(const json::object& object, std::string_view key, std::string& role) {
  if (const json::value* value = object.if_contains({key.data(), key.size()})) {
    if (value->is_null()) {
      role.clear();
    } else if (std::string content = ContentOf(*value); !content.empty()) {
      role = std::move(content);
    }
  }
}

void ReadRoles(const json::object& object, FolderTokens& tokens) {
  ReadRole(object, "bos_token", tokens.bos);
  ReadRole(object, "eos_token", tokens.eos);
  ReadRole(object, "unk_token", tokens.unk);
  ReadRole(object, "pad_token", tokens.pad);
  if (const json::array* additional = ArrayAt(object, "additional_special_tokens")) {
    tokens.additional.clear();
    for (const json::value& value : *additional) {
      if (std::string content = ContentOf(value); !content.empty())
        tokens.additional.push_back(std::move(content));
    }
  }
}

absl::StatusOr<AddedToken> ReadAdded(const std::string& file, std::string_view key,
                                     const json::value& value) {
  AddedToken token;
  const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token.id);
  const json::object* object = value.if_object();
  const std::string where = file + ": added_tokens_decoder: " + Quote(key);
  if (error != std::errc() || end != key.data() + key.size() || token.id < 0 ||
      token.id >= kIdsMax || object == nullptr || TextAt(*object, "content").empty()) {
    return InvalidTokenizer(
        where, "expected an id below " + std::to_string(kIdsMax) + " and an object with a content");
  }
  if (FlagAt(*object, "single_word", false)) {
    return UnsupportedTokenizer(where, "single_word; expected a token that is found anywhere");
  }
  token.content = TextAt(*object, "content");
  token.is_special = FlagAt(*object, "special", false);
  token.strips_left = FlagAt(*object, "lstrip", false);
  token.strips_right = FlagAt(*object, "rstrip", false);
  return token;
}

// Keys that change how text is read, with the only value that is known here.
absl::Status CheckSettings(const std::string& file, const json::object& config) {
  struct Setting {
    std::string_view key;
    bool expected;
  };
  for (const Setting& setting :
       {Setting{"legacy", true}, Setting{"add_prefix_space", false},
        Setting{"add_eos_token", false}, Setting{"split_special_tokens", false}}) {
    if (FlagAt(config, setting.key, setting.expected) != setting.expected) {
      return UnsupportedTokenizer(
          file, std::string(setting.key) + ": expected " +
                    (setting.expected ? "true, found false" : "false, found true"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckClass(const std::string& file, std::string_view name,
                        const std::vector<std::string_view>& classes) {
  std::string_view slow = name;
  if (slow.ends_with("Fast")) slow.remove_suffix(4);
  if (name.empty() || classes.empty() ||
      std::find(classes.begin(), classes.end(), slow) != classes.end()) {
    return absl::OkStatus();
  }
  std::string expected;
  for (const std::string_view known : classes)
    expected += (expected.empty() ? "" : ", ") + std::string(known);
  return UnsupportedTokenizer(file,
                              "tokenizer_class: expected " + expected + ", found " + Quote(name));
}

absl::Status ReadConfig(const std::string& file, const FolderDefaults& defaults,
                        FolderTokens& tokens) {
  CONCLAVE_ASSIGN_OR_RETURN(const json::object config,
                            ReadJsonObject(file, kConfigBytesMax, "a tokenizer's settings"));
  tokens.tokenizer_class = TextAt(config, "tokenizer_class");
  CONCLAVE_RETURN_IF_ERROR(CheckClass(file, tokens.tokenizer_class, defaults.classes));
  CONCLAVE_RETURN_IF_ERROR(CheckSettings(file, config));
  tokens.adds_bos = FlagAt(config, "add_bos_token", tokens.adds_bos);
  tokens.cleans_up_spaces = FlagAt(config, "clean_up_tokenization_spaces", true);
  ReadRoles(config, tokens);
  if (const json::object* decoder = ObjectAt(config, "added_tokens_decoder")) {
    for (const auto& entry : *decoder) {
      CONCLAVE_ASSIGN_OR_RETURN(AddedToken token, ReadAdded(file, entry.key(), entry.value()));
      tokens.added.push_back(std::move(token));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadAddedTokensFile(const std::string& file, FolderTokens& tokens) {
  CONCLAVE_ASSIGN_OR_RETURN(const json::object ids,
                            ReadJsonObject(file, kConfigBytesMax, "tokens with their ids"));
  // By id: a search per token would take a file of this size minutes.
  std::unordered_map<int32_t, size_t> at_id;
  for (size_t i = 0; i < tokens.added.size(); ++i) at_id.emplace(tokens.added[i].id, i);
  for (const auto& entry : ids) {
    const std::string content(entry.key());
    const int32_t id = IdOf(entry.value());
    if (id < 0 || content.empty()) {
      return InvalidTokenizer(
          file, "token " + Quote(content) + ": expected an id below " + std::to_string(kIdsMax));
    }
    const auto [same, is_new] = at_id.emplace(id, tokens.added.size());
    if (is_new) {
      tokens.added.push_back({.id = id, .content = content});
    } else if (tokens.added[same->second].content != content) {
      return InvalidTokenizer(file, "token " + Quote(content) + ": its id " + std::to_string(id) +
                                        " is another token's in tokenizer_config.json");
    }
  }
  return absl::OkStatus();
}

// One content per id, and an id of the vocabulary only for its own token.
absl::Status CheckAdded(const std::string& folder, const std::vector<AddedToken>& added,
                        int32_t num_tokens, const std::function<int32_t(std::string_view)>& id_of) {
  std::unordered_map<int32_t, std::string_view> content_of;
  std::unordered_set<std::string_view> contents;
  for (const AddedToken& token : added) {
    const std::string where = folder + ": added token " + Quote(token.content);
    if (token.content.size() > kTokenBytesMax) {
      return InvalidTokenizer(where, "is too long; expected at most " +
                                         std::to_string(kTokenBytesMax) + " bytes, found " +
                                         std::to_string(token.content.size()));
    }
    const auto [same, is_new] = content_of.emplace(token.id, token.content);
    if (!is_new) {
      return InvalidTokenizer(where, "its id " + std::to_string(token.id) +
                                         " is there twice, first for " + Quote(same->second));
    }
    if (!contents.insert(token.content).second)
      return InvalidTokenizer(where, "is there twice, again with id " + std::to_string(token.id));
    const int32_t stored = id_of(token.content);
    if (stored >= 0 ? stored != token.id : token.id < num_tokens) {
      return InvalidTokenizer(where,
                              "its id is not its own; expected " +
                                  (stored >= 0 ? std::to_string(stored) + ", as in the vocabulary"
                                               : std::to_string(num_tokens) + " or more") +
                                  ", found " + std::to_string(token.id));
    }
  }
  return absl::OkStatus();
}

std::vector<std::string> Controls(const FolderTokens& tokens) {
  std::vector<std::string> controls = {tokens.bos, tokens.eos, tokens.unk, tokens.pad};
  controls.insert(controls.end(), tokens.additional.begin(), tokens.additional.end());
  std::erase(controls, std::string());
  return controls;
}

}  // namespace

absl::StatusOr<FolderTokens> ReadFolderTokens(const std::string& folder,
                                              const FolderDefaults& defaults) {
  FolderTokens tokens;
  tokens.bos = defaults.bos;
  tokens.eos = defaults.eos;
  tokens.unk = defaults.unk;
  tokens.adds_bos = defaults.adds_bos;
  if (const std::string file = folder + "/tokenizer_config.json"; HasFile(file))
    CONCLAVE_RETURN_IF_ERROR(ReadConfig(file, defaults, tokens));
  if (const std::string file = folder + "/special_tokens_map.json"; HasFile(file)) {
    CONCLAVE_ASSIGN_OR_RETURN(const json::object map,
                              ReadJsonObject(file, kConfigBytesMax, "a map of control tokens"));
    ReadRoles(map, tokens);
  }
  if (const std::string file = folder + "/added_tokens.json"; HasFile(file))
    CONCLAVE_RETURN_IF_ERROR(ReadAddedTokensFile(file, tokens));
  return tokens;
}

absl::Status ApplyFolderTokens(const std::string& folder, const FolderTokens& tokens,
                               const std::function<int32_t(std::string_view)>& id_of,
                               VocabSpec& spec) {
  CONCLAVE_RETURN_IF_ERROR(
      CheckAdded(folder, tokens.added, static_cast<int32_t>(spec.token_bytes.size()), id_of));
  std::map<int32_t, AddedToken> by_id;
  std::unordered_map<std::string_view, int32_t> id_of_added;  // views into `tokens`
  auto next = static_cast<int32_t>(spec.token_bytes.size());
  for (const AddedToken& token : tokens.added) {
    by_id.emplace(token.id, token);
    id_of_added.emplace(token.content, token.id);
    next = std::max(next, token.id + 1);
  }
  const auto id_of_control = [&](const std::string& content) {
    const auto added = id_of_added.find(content);
    if (added != id_of_added.end()) return added->second;
    const int32_t stored = id_of(content);
    const int32_t id = stored >= 0 ? stored : next++;
    id_of_added.emplace(content, id);
    return id;
  };
  const std::vector<std::string> controls = Controls(tokens);
  for (const std::string& content : controls) {
    const int32_t id = id_of_control(content);
    AddedToken& token = by_id[id];
    token.id = id;
    token.content = content;
    token.is_special = true;
    spec.hidden.push_back(id);
  }
  const auto role = [&](const std::string& content) {
    return content.empty() ? -1 : id_of_control(content);
  };
  spec.bos = tokens.adds_bos ? role(tokens.bos) : -1;
  spec.eos = role(tokens.eos);
  spec.cleans_up_spaces = tokens.cleans_up_spaces;
  const auto vocab = static_cast<int32_t>(spec.token_bytes.size());
  const std::unordered_set<std::string_view> additional(tokens.additional.begin(),
                                                        tokens.additional.end());
  const std::unordered_set<int32_t> hidden(spec.hidden.begin(), spec.hidden.end());
  for (auto& [id, token] : by_id) {
    const bool is_additional = additional.contains(token.content) && id >= vocab;
    if (!hidden.contains(id) || is_additional) spec.spaced.push_back(id);
    spec.added.push_back(std::move(token));
  }
  return FinishAdded(folder, id_of, spec);
}

absl::Status FinishAdded(const std::string& folder,
                         const std::function<int32_t(std::string_view)>& id_of, VocabSpec& spec) {
  const auto num_tokens = static_cast<int32_t>(spec.token_bytes.size());
  CONCLAVE_RETURN_IF_ERROR(CheckAdded(folder, spec.added, num_tokens, id_of));
  if (spec.eos < 0) {
    return InvalidTokenizer(folder,
                            "no end-of-text token; expected eos_token in "
                            "tokenizer_config.json or special_tokens_map.json");
  }
  std::unordered_set<int32_t> control_ids;
  for (const AddedToken& token : spec.added) {
    if (token.is_special) control_ids.insert(token.id);
  }
  std::erase_if(spec.pairs,
                [&](const PairMerger::Pair& pair) { return control_ids.contains(pair.joined); });
  return absl::OkStatus();
}

}  // namespace conclave::text
