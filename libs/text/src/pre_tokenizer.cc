#include "pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

#include "conclave/base/check.h"
#include "utf8.h"

namespace conclave::text {
namespace {

// What Unicode 15 has and PCRE2 10.42, built on Unicode 14, does not know yet: the tokenizers' own
// regular expressions are of Unicode 15. A later PCRE2 finds these ranges twice, which changes
// nothing.
constexpr std::string_view kLetters =
    R"(\p{L}\x{1123F}-\x{11240}\x{11F02}\x{11F04}-\x{11F10}\x{11F12}-\x{11F33}\x{1342F}\x{13441}-\x{13446})"
    R"(\x{1B132}\x{1B155}\x{1DF25}-\x{1DF2A}\x{1E030}-\x{1E06D}\x{1E4D0}-\x{1E4EB}\x{2B739}\x{31350}-\x{323AF})";
constexpr std::string_view kNumbers =
    R"(\p{N}\x{11F50}-\x{11F59}\x{1D2C0}-\x{1D2D3}\x{1E4F0}-\x{1E4F9})";
// Not \s: PCRE2's also takes U+180E, which Unicode no longer counts as white space.
constexpr std::string_view kSpaces = R"(\p{White_Space})";
constexpr std::string_view kNoSpace = R"(\P{White_Space})";

std::string Concat(std::initializer_list<std::string_view> parts) {
  std::string joined;
  for (const std::string_view part : parts) joined.append(part);
  return joined;
}

// |\s+(?!\S)|\s+: a run of white space without its last character, or all of it.
std::string SpaceRuns() { return Concat({"|", kSpaces, "+(?!", kNoSpace, ")", "|", kSpaces, "+"}); }

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|
// ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ Every alternative is a chain of character
// classes, so a match costs a small multiple of its length.
std::string QwenPattern() {
  return Concat({"(?i:'s|'t|'re|'ve|'m|'ll|'d)",  //
                 R"(|[^\r\n)", kLetters, kNumbers, "]?[", kLetters,
                 "]+",  //
                 "|[", kNumbers,
                 "]",  //
                 "| ?[^", kSpaces, kLetters, kNumbers,
                 R"(]+[\r\n]*)",  //
                 "|", kSpaces,
                 R"(*[\r\n]+)",  //
                 SpaceRuns()});
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
std::string Gpt2Pattern() {
  return Concat({"'s|'t|'re|'ve|'m|'ll|'d",  //
                 "| ?[", kLetters,
                 "]+",  //
                 "| ?[", kNumbers,
                 "]+",  //
                 "| ?[^", kSpaces, kLetters, kNumbers,
                 "]+",  //
                 SpaceRuns()});
}

PCRE2_SPTR Bytes(std::string_view text) { return reinterpret_cast<PCRE2_SPTR>(text.data()); }

}  // namespace

PreTokenizer::PreTokenizer(SplitPattern split) {
  const std::string pattern = split == SplitPattern::kQwen ? QwenPattern() : Gpt2Pattern();
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  // Anchored here and not per match, which the JIT could not do.
  code_ = pcre2_compile(Bytes(pattern), pattern.size(), PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED,
                        &error, &error_offset, nullptr);
  CONCLAVE_CHECK(code_ != nullptr);
  has_jit_ = pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE) == 0;
}

PreTokenizer::~PreTokenizer() { pcre2_code_free(code_); }

PreTokenizer::Cursor::Cursor(const PreTokenizer& pre_tokenizer, std::string_view text)
    : pre_tokenizer_(pre_tokenizer),
      text_(text),
      match_(pcre2_match_data_create(1, nullptr)),
      context_(pcre2_match_context_create(nullptr)) {
  CONCLAVE_CHECK(match_ != nullptr && context_ != nullptr);
  // A match backtracks over at most the whole text a few times (white space before a line end);
  // more is a bug.
  const uint64_t limit = 1'000'000 + 16 * static_cast<uint64_t>(text.size());
  pcre2_set_match_limit(context_, static_cast<uint32_t>(std::min<uint64_t>(
                                      limit, std::numeric_limits<uint32_t>::max())));
}

PreTokenizer::Cursor::~Cursor() {
  pcre2_match_context_free(context_);
  pcre2_match_data_free(match_);
}

size_t PreTokenizer::Cursor::MatchLength() const {
  const int result = pre_tokenizer_.has_jit_
                         ? pcre2_jit_match(pre_tokenizer_.code_, Bytes(text_), text_.size(), pos_,
                                           PCRE2_NO_UTF_CHECK, match_, context_)
                         : pcre2_match(pre_tokenizer_.code_, Bytes(text_), text_.size(), pos_,
                                       PCRE2_NO_UTF_CHECK, match_, context_);
  if (result < 0) return 0;
  const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(match_);
  return bounds[1] - pos_;
}

std::string_view PreTokenizer::Cursor::Next() {
  if (pos_ == text_.size()) return {};
  size_t length = MatchLength();
  // The pattern takes every character; only a limit of PCRE2 leads here, and no text may be lost
  // then.
  if (length == 0) length = DecodeUtf8(text_, pos_).num_bytes;
  const std::string_view piece = text_.substr(pos_, length);
  pos_ += length;
  return piece;
}

}  // namespace conclave::text
