#include "added_tokens.h"

#include <algorithm>
#include <functional>
#include <utility>

namespace conclave::text {

AddedTokens::AddedTokens(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i) {
    by_content_.emplace(tokens_[i].content, i);
    by_id_.emplace(tokens_[i].id, i);
    std::vector<size_t>& lengths = lengths_[static_cast<uint8_t>(tokens_[i].content[0])];
    const size_t length = tokens_[i].content.size();
    if (std::find(lengths.begin(), lengths.end(), length) == lengths.end())
      lengths.push_back(length);
  }
  for (std::vector<size_t>& lengths : lengths_)
    std::sort(lengths.begin(), lengths.end(), std::greater<>());
}

AddedTokens::Found AddedTokens::Next(std::string_view text, size_t from, bool with_specials) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    for (const size_t length : lengths_[static_cast<uint8_t>(text[begin])]) {
      if (length > text.size() - begin) continue;
      const auto found = by_content_.find(text.substr(begin, length));
      if (found == by_content_.end()) continue;
      const AddedToken& token = tokens_[found->second];
      if (with_specials || !token.is_special) return {begin, &token};
    }
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
