// A tokenizer that was read from files: added tokens, then pre-tokens or SentencePiece's spelling,
// then merges.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "added_tokens.h"
#include "conclave/text/tokenizer.h"
#include "pair_merger.h"
#include "pre_tokenizer.h"

namespace conclave::text {

// How the library that made the files puts decoded text together (spec 6.3, 6.4).
enum class DecodeStyle {
  kBytes,      // bytes of all tokens, joined
  kSlowLlama,  // runs between added tokens lose up to two leading spaces
  kFastLlama,  // the whole text loses one leading space
};

struct VocabSpec {
  // What an id decodes to; empty for ids that are added tokens alone or unused.
  std::vector<std::string> token_bytes;
  std::vector<AddedToken> added;

  // Normal form C first. `nfc_before_added`: before added tokens are looked for (as slow tokenizers
  // do), else of what stands between them.
  bool uses_nfc = false;
  bool nfc_before_added = false;
  // Byte-level: text is cut by this pattern and merges start from bytes. Otherwise SentencePiece's
  // spelling: "▁" in front of every piece of text and for every space, merges start from
  // characters.
  std::optional<SplitPattern> pattern;

  // Symbols below token_bytes.size() are ids. Those from there on are characters that are no token
  // of their own; their bytes are emitted as byte tokens.
  std::vector<uint32_t> symbol_lengths;
  std::vector<PairMerger::Pair> pairs;
  std::array<int32_t, 256> id_of_byte{};                     // also SentencePiece's byte tokens
  std::unordered_map<int32_t, int32_t> symbol_of_character;  // SentencePiece; absent: unknown

  // A pre-token that is a token is that token, whatever merges make of it ("ignore_merges").
  bool takes_whole_pieces = false;

  int32_t bos = -1;  // put in front of every encoded text; -1: none
  int32_t eos = -1;
  std::vector<int32_t> hidden;  // ids that decoding leaves out: what the files call special
  DecodeStyle decode_style = DecodeStyle::kBytes;
  // The original's own decoding (Tokenizer::DecodeAsOriginal).
  bool puts_spaces_between_added = false;
  std::vector<int32_t> spaced;  // the added tokens that this concerns
  bool cleans_up_spaces = false;
};

std::unique_ptr<Tokenizer> MakeVocabTokenizer(VocabSpec spec);

}  // namespace conclave::text
