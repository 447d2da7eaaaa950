// Byte-level BPE as GPT-2 stores it: vocab.json and merges.txt (spec 6.3), or the same two inside
// of tokenizer.json.
#pragma once

#include <boost/json.hpp>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/text/tokenizer.h"
#include "vocab_tokenizer.h"

namespace conclave::text {

// Tokens by id, in the file's spelling. Every id from 0 is there once.
absl::StatusOr<std::vector<std::string>> TokensOf(const std::string& where,
                                                  const boost::json::object& vocab);

// A merge, in the file's spelling.
using Merge = std::pair<std::string_view, std::string_view>;

// The vocabulary's part of a spec: bytes, symbols and merges, all in GPT-2's spelling of bytes. A
// token whose spelling is no sequence of bytes stays out of merges. `tokens` and `merges` only live
// through the call.
absl::Status ApplyByteLevel(const std::string& vocab_where, const std::vector<std::string>& tokens,
                            const std::string& merges_where, const std::vector<Merge>& merges,
                            VocabSpec& spec);

// The folder's tokenizer.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadByteLevelFolder(const std::string& folder);

}  // namespace conclave::text
