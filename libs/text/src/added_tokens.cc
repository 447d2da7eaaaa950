#include "added_tokens.h"

#include <utility>

namespace conclave::text {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  first_.fill(-1);
  for (size_t i = 0; i < tokens_.size(); ++i) {
    by_content_.emplace(tokens_[i].content, i);
    by_id_.emplace(tokens_[i].id, i);
    int32_t node = -1;
    for (const char c : tokens_[i].content) {
      int32_t next = node < 0 ? first_[static_cast<uint8_t>(c)] : ChildOf(node, c);
      if (next < 0) {
        next = static_cast<int32_t>(nodes_.size());
        nodes_.emplace_back();
        if (node < 0) {
          first_[static_cast<uint8_t>(c)] = next;
        } else {
          nodes_[static_cast<size_t>(node)].children.emplace_back(c, next);
        }
      }
      node = next;
    }
    nodes_[static_cast<size_t>(node)].token = &tokens_[i];
  }
}

int32_t AddedTokens::ChildOf(int32_t node, char c) const {
  for (const auto& [byte, child] : nodes_[static_cast<size_t>(node)].children) {
    if (byte == c) return child;
  }
  return -1;
}

AddedTokens::Found AddedTokens::Next(std::string_view text, size_t from, bool with_specials) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    int32_t node = first_[static_cast<uint8_t>(text[begin])];
    const AddedToken* longest = nullptr;
    for (size_t end = begin + 1; node >= 0; ++end) {
      const AddedToken* token = nodes_[static_cast<size_t>(node)].token;
      if (token != nullptr && (with_specials || !token->is_special)) longest = token;
      if (end == text.size()) break;
      node = ChildOf(node, text[end]);
    }
    if (longest != nullptr) return {begin, longest};
  }
  return {text.size(), nullptr};
}

const AddedToken* AddedTokens::Find(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &tokens_[found->second];
}

const AddedToken* AddedTokens::Find(std::string_view content) const {
  const auto found = by_content_.find(content);
  return found == by_content_.end() ? nullptr : &tokens_[found->second];
}

}  // namespace conclave::text
