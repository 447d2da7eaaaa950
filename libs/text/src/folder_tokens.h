// What the JSON files beside a vocabulary say about added and control tokens:
// tokenizer_config.json, added_tokens.json, special_tokens_map.json.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "added_tokens.h"
#include "vocab_tokenizer.h"

namespace conclave::text {

struct FolderTokens {
  std::string tokenizer_class;  // empty: the files name none
  std::vector<AddedToken> added;
  // Contents; empty: none.
  std::string bos, eos, unk, pad;
  std::vector<std::string> additional;
  bool adds_bos = false;
  bool cleans_up_spaces = true;
};

struct FolderDefaults {
  std::string_view bos, eos, unk;  // of the tokenizer class, where the files name none
  bool adds_bos = false;
  // Values of tokenizer_class that go with the vocabulary, without "Fast"; empty: any.
  std::vector<std::string_view> classes;
};

// Every file may be absent. Errors name file and key: "tokenizer_invalid", and
// "tokenizer_unsupported" for a token that is only found as a whole word (single_word), another
// class, and keys that change how text is read.
absl::StatusOr<FolderTokens> ReadFolderTokens(const std::string& folder,
                                              const FolderDefaults& defaults);

// Brings `tokens` into `spec`, whose vocabulary is complete: added tokens, a control token that has
// no id yet gets the next one, as the original's tokenizers do. `id_of` finds a token in the
// vocabulary (-1: none). "tokenizer_invalid" for two tokens of one id, two ids of one token, an id
// that is another token's in the vocabulary, and where there is no end-of-text token. Merges that
// would make a control token are taken out: text of a user never becomes one.
absl::Status ApplyFolderTokens(const std::string& folder, const FolderTokens& tokens,
                               const std::function<int32_t(std::string_view)>& id_of,
                               VocabSpec& spec);

// The checks at the end of it, and what it does to merges, for a spec whose added tokens come from
// another file.
absl::Status FinishAdded(const std::string& folder,
                         const std::function<int32_t(std::string_view)>& id_of, VocabSpec& spec);

}  // namespace conclave::text
