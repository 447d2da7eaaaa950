#include <algorithm>
#include <unordered_map>
#include <utility>

#include "bpe.h"
#include "conclave/base/status.h"
#include "conclave/text/detokenizer.h"
#include "conclave/text/tokenizer.h"
#include "nfc.h"
#include "pre_tokenizer.h"
#include "special_tokens.h"
#include "tiktoken_file.h"
#include "utf8.h"

namespace conclave::text {
namespace {

std::string Normalize(std::string_view text) {
  if (ValidUtf8Prefix(text) == text.size()) return ToNfc(text);
  return ToNfc(ReplaceInvalidUtf8(text));
}

class TiktokenTokenizer final : public Tokenizer {
 public:
  TiktokenTokenizer(const std::vector<std::string>& tokens, TiktokenFlavor flavor)
      : bpe_(tokens), specials_(SpecialTokensOf(flavor, bpe_.size())) {
    for (size_t i = 0; i < specials_.strings.size(); ++i) {
      const std::string_view special = specials_.strings[i];
      special_ids_.emplace(special, specials_.first_id + static_cast<int32_t>(i));
      special_bytes_max_ = std::max(special_bytes_max_, special.size());
    }
  }

  std::vector<int32_t> Encode(std::string_view text) const override {
    std::vector<int32_t> ids;
    BpeTable::Scratch scratch;
    const std::string normal = Normalize(text);
    ids.reserve(normal.size() / 2 + 1);
    EncodeOrdinary(normal, scratch, ids);
    return ids;
  }

  // Normalizes first and looks for special strings then, as the original does.
  std::vector<int32_t> EncodeWithSpecials(std::string_view text) const override {
    const std::string normal = Normalize(text);
    std::string_view rest = normal;
    std::vector<int32_t> ids;
    BpeTable::Scratch scratch;
    while (!rest.empty()) {
      const auto [begin, special] = FindSpecial(rest);
      EncodeOrdinary(rest.substr(0, begin), scratch, ids);
      if (special < 0) break;
      ids.push_back(special);
      rest.remove_prefix(begin + TokenBytes(special, true).size());
    }
    return ids;
  }

  std::string_view TokenBytes(int32_t id, bool keep_special) const override {
    if (id >= 0 && id < bpe_.size()) return bpe_.Bytes(id);
    if (!keep_special || !IsSpecial(id)) return {};
    return specials_.strings[id - specials_.first_id];
  }

  int32_t size() const override {
    return specials_.first_id + static_cast<int32_t>(specials_.strings.size());
  }
  bool IsSpecial(int32_t id) const override { return id >= specials_.first_id && id < size(); }
  int32_t SpecialId(std::string_view special) const override {
    const auto found = special_ids_.find(special);
    return found == special_ids_.end() ? -1 : found->second;
  }
  int32_t bos() const override { return -1; }
  int32_t eos() const override { return SpecialId("<|endoftext|>"); }

 private:
  struct Found {
    size_t begin;  // the size of the text when there is none
    int32_t special;
  };

  // The first special string in `text`. Each has its only '>' at its end, so a '<' is looked at
  // once.
  Found FindSpecial(std::string_view text) const {
    for (size_t begin = text.find('<'); begin != std::string_view::npos;
         begin = text.find('<', begin + 1)) {
      const std::string_view window = text.substr(begin, special_bytes_max_);
      const size_t end = window.find('>');
      if (end == std::string_view::npos) continue;
      if (const int32_t special = SpecialId(window.substr(0, end + 1)); special >= 0)
        return {begin, special};
    }
    return {text.size(), -1};
  }

  void EncodeOrdinary(std::string_view normal, BpeTable::Scratch& scratch,
                      std::vector<int32_t>& ids) const {
    PreTokenizer::Cursor cursor(pre_tokenizer_, normal);
    for (std::string_view piece = cursor.Next(); !piece.empty(); piece = cursor.Next()) {
      bpe_.EncodePiece(piece, scratch, ids);
    }
  }

  const BpeTable bpe_;
  const PreTokenizer pre_tokenizer_{SplitPattern::kQwen};
  const SpecialTokens specials_;
  std::unordered_map<std::string_view, int32_t> special_ids_;  // keys are views into specials_
  size_t special_bytes_max_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTiktoken(const std::string& file,
                                                        TiktokenFlavor flavor) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<std::string> tokens, ReadTiktokenFile(file));
  return std::make_unique<TiktokenTokenizer>(tokens, flavor);
}

}  // namespace conclave::text
