#include "vocab_tokenizer.h"

#include <algorithm>
#include <utility>

#include "code_point_map.h"
#include "conclave/text/detokenizer.h"
#include "nfc.h"
#include "utf8.h"

namespace conclave::text {
namespace {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

bool IsAsciiSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

void StripLeft(std::string_view& text) {
  while (!text.empty() && IsAsciiSpace(text.front())) text.remove_prefix(1);
}
void StripRight(std::string_view& text) {
  while (!text.empty() && IsAsciiSpace(text.back())) text.remove_suffix(1);
}

void ReplaceAll(std::string& text, std::string_view from, std::string_view to) {
  std::string out;
  size_t copied = 0;
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, copied)) {
    out.append(text, copied, at - copied).append(to);
    copied = at + from.size();
  }
  text = out.append(text, copied);
}

// Hugging Face's clean_up_tokenization, for English.
void CleanUpSpaces(std::string& text) {
  constexpr std::pair<std::string_view, std::string_view> kRules[] = {
      {" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
      {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kRules) ReplaceAll(text, from, to);
}

// The character at `pos` of valid UTF-8. Called for each, so without DecodeUtf8's checks.
Utf8Unit UnitAt(std::string_view text, size_t pos) {
  const auto byte = [&](size_t i) {
    return static_cast<int32_t>(static_cast<uint8_t>(text[pos + i]));
  };
  const auto trail = [&](size_t i) { return byte(i) & 0x3F; };
  const int32_t lead = byte(0);
  if (lead < 0x80) return {Utf8Kind::kValid, 1, lead};
  if (lead < 0xE0) return {Utf8Kind::kValid, 2, (lead & 0x1F) << 6 | trail(1)};
  if (lead < 0xF0) return {Utf8Kind::kValid, 3, (lead & 0xF) << 12 | trail(1) << 6 | trail(2)};
  return {Utf8Kind::kValid, 4, (lead & 7) << 18 | trail(1) << 12 | trail(2) << 6 | trail(3)};
}

CodePointMap SymbolsOf(const VocabSpec& spec) {
  CodePointMap symbols;
  for (const auto& [code_point, symbol] : spec.symbol_of_character) symbols.Set(code_point, symbol);
  return symbols;
}

// Bytes of every token in SentencePiece's spelling, where a space is three.
std::vector<uint32_t> SpelledLengthsOf(const VocabSpec& spec) {
  std::vector<uint32_t> lengths;
  for (const std::string& bytes : spec.token_bytes) {
    const auto num_spaces = static_cast<size_t>(std::count(bytes.begin(), bytes.end(), ' '));
    lengths.push_back(static_cast<uint32_t>(bytes.size() + (kSpaceMark.size() - 1) * num_spaces));
  }
  return lengths;
}

class VocabTokenizer final : public Tokenizer {
 public:
  explicit VocabTokenizer(VocabSpec spec)
      : spec_(std::move(spec)),
        added_(spec_.added),
        symbols_(SymbolsOf(spec_)),
        spelled_lengths_(spec_.pattern.has_value() ? std::vector<uint32_t>()
                                                   : SpelledLengthsOf(spec_)),
        merger_(std::move(spec_.symbol_lengths), std::exchange(spec_.pairs, {})),
        is_hidden_(static_cast<size_t>(NumIds()), false) {
    if (spec_.pattern.has_value()) pre_tokenizer_.emplace(*spec_.pattern);
    if (spec_.takes_whole_pieces) {
      for (size_t id = 0; id < spec_.token_bytes.size(); ++id) {
        if (added_.Find(static_cast<int32_t>(id)) == nullptr)
          whole_pieces_.emplace(spec_.token_bytes[id], static_cast<int32_t>(id));
      }
    }
    std::sort(spec_.spaced.begin(), spec_.spaced.end());
    for (const int32_t id : spec_.hidden) is_hidden_[static_cast<size_t>(id)] = true;
  }

  std::vector<int32_t> Encode(std::string_view text) const override { return Run(text, false); }
  std::vector<int32_t> EncodeWithSpecials(std::string_view text) const override {
    return Run(text, true);
  }

  std::string_view TokenBytes(int32_t id, bool keep_special) const override {
    if (id < 0 || id >= size() || (!keep_special && IsSpecial(id))) return {};
    if (const AddedToken* token = added_.Find(id)) return token->content;
    return spec_.token_bytes[static_cast<size_t>(id)];
  }

  std::string_view DecodeNext(int32_t id, bool keep_special, DecodeState& state) const override {
    std::string_view bytes = TokenBytes(id, keep_special);
    if (spec_.decode_style == DecodeStyle::kBytes || (IsSpecial(id) && !keep_special)) return bytes;
    const bool is_slow = spec_.decode_style == DecodeStyle::kSlowLlama;
    if (!std::exchange(state.has_begun, true)) state.num_spaces_left = is_slow ? 2 : 1;
    if (is_slow && (IsSpaced(id) || IsSpecial(id))) {
      // A run of its own begins behind it.
      state.num_spaces_left = IsSpaced(id) ? 2 : 1;
      return bytes;
    }
    while (state.num_spaces_left > 0 && bytes.starts_with(' ')) {
      bytes.remove_prefix(1);
      --state.num_spaces_left;
    }
    if (!bytes.empty()) state.num_spaces_left = 0;
    return bytes;
  }
  std::string DecodeAsOriginal(std::span<const int32_t> ids, bool keep_special) const override {
    std::string text = Join(ids, keep_special);
    if (spec_.cleans_up_spaces) CleanUpSpaces(text);
    return text;
  }

  int32_t size() const override { return static_cast<int32_t>(is_hidden_.size()); }
  bool IsSpecial(int32_t id) const override {
    return id >= 0 && id < size() && is_hidden_[static_cast<size_t>(id)];
  }
  int32_t SpecialId(std::string_view special) const override {
    const AddedToken* token = added_.Find(special);
    return token == nullptr || !token->is_special ? -1 : token->id;
  }
  int32_t bos() const override { return spec_.bos; }
  int32_t eos() const override { return spec_.eos; }

 private:
  struct Scratch {
    PairMerger::Scratch merger;
    std::vector<int32_t> start, symbols;
    std::string spelled;
  };

  int32_t NumIds() const {
    auto count = static_cast<int32_t>(spec_.token_bytes.size());
    for (const AddedToken& token : added_.all()) count = std::max(count, token.id + 1);
    return count;
  }

  std::vector<int32_t> Run(std::string_view raw, bool with_specials) const {
    std::string text =
        ValidUtf8Prefix(raw) == raw.size() ? std::string(raw) : ReplaceInvalidUtf8(raw);
    if (spec_.uses_nfc && spec_.nfc_before_added) text = ToNfc(text);
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 2 + 1);
    if (spec_.bos >= 0) ids.push_back(spec_.bos);
    Scratch scratch;
    size_t begin = 0;
    bool strip_left = false;
    while (true) {
      const AddedTokens::Found found = added_.Next(text, begin, with_specials);
      std::string_view segment = std::string_view(text).substr(begin, found.begin - begin);
      if (strip_left) StripLeft(segment);
      if (found.token != nullptr && found.token->strips_left) StripRight(segment);
      if (!segment.empty()) EncodeSegment(segment, scratch, ids);
      if (found.token == nullptr) return ids;
      ids.push_back(found.token->id);
      strip_left = found.token->strips_right;
      begin = found.begin + found.token->content.size();
    }
  }

  void EncodeSegment(std::string_view segment, Scratch& scratch, std::vector<int32_t>& ids) const {
    if (!pre_tokenizer_.has_value()) {
      EncodeSpelled(segment, scratch, ids);
      return;
    }
    std::string normal;
    if (spec_.uses_nfc && !spec_.nfc_before_added) {
      normal = ToNfc(segment);
      segment = normal;
    }
    PreTokenizer::Cursor cursor(*pre_tokenizer_, segment);
    for (std::string_view piece = cursor.Next(); !piece.empty(); piece = cursor.Next()) {
      if (const auto whole = whole_pieces_.find(piece); whole != whole_pieces_.end()) {
        ids.push_back(whole->second);
        continue;
      }
      merger_.MergeBytes(piece, spec_.id_of_byte, scratch.merger, ids);
    }
  }

  // SentencePiece: merges run over stretches of characters that the vocabulary knows; others are
  // their bytes.
  void EncodeSpelled(std::string_view segment, Scratch& scratch, std::vector<int32_t>& ids) const {
    scratch.spelled.assign(kSpaceMark);
    for (const char c : segment) {
      if (c == ' ') {
        scratch.spelled.append(kSpaceMark);
      } else {
        scratch.spelled.push_back(c);
      }
    }
    const std::string_view text = scratch.spelled;
    scratch.start.clear();
    size_t stretch = 0;  // where the characters of `start` begin
    for (size_t pos = 0; pos < text.size();) {
      const Utf8Unit unit = UnitAt(text, pos);
      const int32_t symbol = symbols_.Find(unit.code_point);
      if (symbol < 0) {
        MergeStretch(text.substr(stretch, pos - stretch), scratch, ids);
        EmitBytes(text.substr(pos, unit.num_bytes), ids);
        stretch = pos + unit.num_bytes;
      } else {
        if (!scratch.start.empty() && !merger_.Joins(scratch.start.back(), symbol)) {
          MergeStretch(text.substr(stretch, pos - stretch), scratch, ids);
          stretch = pos;
        }
        scratch.start.push_back(symbol);
      }
      pos += unit.num_bytes;
    }
    MergeStretch(text.substr(stretch), scratch, ids);
  }

  void MergeStretch(std::string_view text, Scratch& scratch, std::vector<int32_t>& ids) const {
    scratch.symbols.clear();
    if (scratch.start.size() == 1) {
      scratch.symbols.push_back(scratch.start.front());
    } else {
      merger_.Merge(scratch.start, scratch.merger, scratch.symbols);
    }
    scratch.start.clear();
    size_t pos = 0;
    for (const int32_t symbol : scratch.symbols) {
      if (symbol < static_cast<int32_t>(spec_.token_bytes.size())) {
        ids.push_back(symbol);
        pos += spelled_lengths_[static_cast<size_t>(symbol)];
        continue;
      }
      const size_t length = UnitAt(text, pos).num_bytes;
      EmitBytes(text.substr(pos, length), ids);
      pos += length;
    }
  }

  void EmitBytes(std::string_view bytes, std::vector<int32_t>& ids) const {
    for (const char c : bytes) ids.push_back(spec_.id_of_byte[static_cast<uint8_t>(c)]);
  }

  bool IsSpaced(int32_t id) const {
    return std::binary_search(spec_.spaced.begin(), spec_.spaced.end(), id);
  }

  // Text of a run of tokens without spaced ones in between.
  std::string RunText(std::span<const int32_t> run, bool keep_special) const {
    if (spec_.decode_style != DecodeStyle::kSlowLlama) {
      std::string bytes;
      for (const int32_t id : run) bytes.append(TokenBytes(id, keep_special));
      return ReplaceInvalidUtf8(bytes);
    }
    // LlamaTokenizer.convert_tokens_to_string: the first token and then what SentencePiece decodes
    // lose one leading space each; a control token stands behind a space, unless another one or
    // nothing is before it.
    std::string text;
    std::string piece;
    bool after_special = false;
    const auto flush = [&](bool is_first) {
      std::string_view rest = piece;
      if (is_first && rest.starts_with(' ')) rest.remove_prefix(1);
      if (rest.starts_with(' ')) rest.remove_prefix(1);
      text.append(ReplaceInvalidUtf8(rest));
      piece.clear();
    };
    bool is_first = true;
    for (size_t i = 0; i < run.size(); ++i) {
      if (!IsSpecial(run[i])) {
        piece.append(TokenBytes(run[i], true));
        after_special = false;
        continue;
      }
      if (!after_special && i != 0) text.push_back(' ');
      flush(is_first && i != 0);
      is_first = false;
      text.append(TokenBytes(run[i], true));
      after_special = true;
    }
    flush(is_first);
    return text;
  }

  std::string Join(std::span<const int32_t> ids, bool keep_special) const {
    std::vector<std::string> parts;
    std::vector<int32_t> run;
    // The original drops an empty run between added tokens, but not the last one.
    const auto end_run = [&](bool is_last) {
      if (run.empty()) return;
      std::string text = RunText(run, keep_special);
      if (!text.empty() || is_last) parts.push_back(std::move(text));
      run.clear();
    };
    for (const int32_t id : ids) {
      if (id < 0 || id >= size() || (!keep_special && IsSpecial(id))) continue;
      if (!IsSpaced(id)) {
        run.push_back(id);
        continue;
      }
      end_run(false);
      parts.emplace_back(TokenBytes(id, true));
    }
    end_run(true);
    std::string joined;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (i > 0 && spec_.puts_spaces_between_added) joined.push_back(' ');
      joined.append(parts[i]);
    }
    if (spec_.decode_style == DecodeStyle::kFastLlama && joined.starts_with(' '))
      joined.erase(0, 1);
    return joined;
  }

  VocabSpec spec_;
  const AddedTokens added_;
  const CodePointMap symbols_;
  const std::vector<uint32_t> spelled_lengths_;  // by id
  const PairMerger merger_;
  std::optional<PreTokenizer> pre_tokenizer_;
  std::unordered_map<std::string_view, int32_t> whole_pieces_;  // views into spec_
  std::vector<bool> is_hidden_;                                 // by id
};

}  // namespace

std::unique_ptr<Tokenizer> MakeVocabTokenizer(VocabSpec spec) {
  return std::make_unique<VocabTokenizer>(std::move(spec));
}

}  // namespace conclave::text
