// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::text {

// Immutable after loading; any thread.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  // Ids of `text`, special strings inside it being ordinary text (what a server does with user
  // text). Invalid UTF-8 becomes U+FFFD per maximal subpart. Linear in the input: hostile text has
  // no quadratic path. A tokenizer that adds BOS does so here, once per call (the splice of
  // docs/models, spec 3.6, drops the extra ones).
  virtual std::vector<int32_t> Encode(std::string_view text) const = 0;

  // The same, special strings in the text becoming special ids: what the original does. For parity
  // tests and for text that a template produced.
  virtual std::vector<int32_t> EncodeWithSpecials(std::string_view text) const = 0;

  // Raw bytes of one token. Special tokens give their string when `keep_special`, nothing
  // otherwise; an id that is no token gives nothing.
  virtual std::string_view TokenBytes(int32_t id, bool keep_special = false) const = 0;

  // What a tokenizer remembers between two tokens of one text that it decodes.
  struct DecodeState {
    bool has_begun = false;
    int32_t num_spaces_left = 0;  // leading spaces that are still to be dropped
  };

  // What the next token `id` of a text adds to it: TokenBytes, without the spaces in front that
  // SentencePiece's encoding put there (spec 6.4).
  virtual std::string_view DecodeNext(int32_t id, bool keep_special, DecodeState& state) const;

  // Whole text of `ids`: DecodeNext of each, joined, then invalid UTF-8 replaced by U+FFFD.
  std::string Decode(std::span<const int32_t> ids, bool keep_special = false) const;

  // The same with what the original does on top: spaces around added tokens, white space "cleaned
  // up" (spec 6.3). For comparisons with it; a server's answers keep their spaces.
  virtual std::string DecodeAsOriginal(std::span<const int32_t> ids,
                                       bool keep_special = false) const;

  // Ids below this exist; logits at and beyond are masked (spec 2.3).
  virtual int32_t size() const = 0;
  virtual bool IsSpecial(int32_t id) const = 0;
  // The id of a special string such as "<|endoftext|>", or -1.
  virtual int32_t SpecialId(std::string_view special) const = 0;
  virtual int32_t bos() const = 0;  // -1: none is added
  virtual int32_t eos() const = 0;
};

// Which set of special tokens and which pattern a .tiktoken file goes with (spec 6.1, 6.2).
enum class TiktokenFlavor { kArcade100k, kQwen };

// Reads a .tiktoken rank file. "tokenizer_invalid" with file:line on a bad line, a duplicate or
// missing rank, a missing single byte; "tokenizer_missing" when there is no such file.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTiktoken(const std::string& file,
                                                        TiktokenFlavor flavor);

// The tokenizer of a checkpoint folder; `file` is the name of its tokenizer file, which says which
// kind it is: "arcade100k.tiktoken", "qwen.tiktoken", "vocab.json" (with merges.txt beside it),
// "tokenizer.model" or "tokenizer.json". Added and control tokens of the latter three come from
// tokenizer_config.json, added_tokens.json and special_tokens_map.json, as far as they are there.
// "tokenizer_missing" for a file that is not there, "tokenizer_invalid" with file and place for
// what is broken in it, "tokenizer_unsupported" for what is whole but of another kind.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFromFolder(const std::string& folder,
                                                                   std::string_view file);

// Whether a tokenizer and a model belong together: every id has one of `vocab_rows` embedding rows
// (more rows than ids are usual, spec 2.3), and the end-of-text id is `eos_token` (-1: the model
// names none). The second finds a rank file that was cut at a line end, since the special ids
// follow the ranks. "tokenizer_invalid" when not.
absl::Status CheckTokenizer(const Tokenizer& tokenizer, int32_t vocab_rows, int32_t eos_token);

}  // namespace conclave::text
