// Tokens that are found in raw text before anything else: control strings, and others that a
// tokenizer was given on top of its vocabulary (runs of spaces in Phi's, spec 6.3).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace conclave::text {

struct AddedToken {
  int32_t id = 0;
  std::string content;      // not empty
  bool is_special = false;  // a control string: found only where the text may hold them
  // White space beside it belongs to it and is dropped.
  bool strips_left = false;
  bool strips_right = false;
};

// Immutable; any thread.
class AddedTokens {
 public:
  explicit AddedTokens(std::vector<AddedToken> tokens);
  AddedTokens(const AddedTokens&) = delete;
  AddedTokens& operator=(const AddedTokens&) = delete;

  struct Found {
    size_t begin;             // the size of the text when there is none
    const AddedToken* token;  // null: none
  };
  // The first token in `text` from `from` on, the longest that begins there. Special ones count
  // only `with_specials`. Linear in the text for a given set of tokens.
  Found Next(std::string_view text, size_t from, bool with_specials) const;

  const AddedToken* Find(int32_t id) const;  // null: none
  const AddedToken* Find(std::string_view content) const;
  const std::vector<AddedToken>& all() const { return tokens_; }

 private:
  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string_view, size_t> by_content_;  // keys are views into tokens_
  std::unordered_map<int32_t, size_t> by_id_;

  // Trie of the contents: a text is walked once from every place where a token may begin.
  struct Node {
    const AddedToken* token = nullptr;  // that ends here
    std::vector<std::pair<char, int32_t>> children;
  };
  int32_t ChildOf(int32_t node, char c) const;

  std::vector<Node> nodes_;
  std::array<int32_t, 256> first_;  // nodes of the first bytes; -1: no token begins so
};

}  // namespace conclave::text
