// Tokens to text while they are generated: holds back what may still change.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/text/tokenizer.h"

namespace conclave::text {

// What Push and Finish return, joined, is Tokenizer::Decode of all tokens, cut before the stop
// string: how the text was divided into tokens changes nothing.
//
// Of several stop strings the one that is complete first ends the text; of those that become
// complete at the same character, the longest. Time is linear in the text, whatever the stop
// strings.
//
// Not thread-safe; one per choice. `tokenizer` outlives it.
class IncrementalDetokenizer {
 public:
  // Generation stops before the first of `stops` that appears in the text; the stop string itself
  // is never emitted. Empty ones are ignored.
  IncrementalDetokenizer(const Tokenizer& tokenizer, const std::vector<std::string>& stops,
                         bool keep_special = false);

  struct Delta {
    std::string text;       // valid UTF-8, final
    bool hit_stop = false;  // a stop string is complete: generation ends here
  };

  // Adds one token. Incomplete UTF-8 and text that may be the beginning of a stop string stay
  // inside. After a stop string nothing more comes out.
  Delta Push(int32_t token);

  // What is still held back when generation ends for another reason; incomplete UTF-8 becomes
  // U+FFFD.
  std::string Finish();

 private:
  // Knuth-Morris-Pratt matcher of one stop string over the decoded text.
  struct Stop {
    std::string text;
    std::vector<size_t> fallback;  // [i]: longest proper border of the first i + 1 bytes
    size_t num_matched = 0;        // bytes of `text` that the decoded text ends with
  };

  Delta Advance(std::string_view decoded);

  const Tokenizer& tokenizer_;
  std::vector<Stop> stops_;
  bool keep_special_;
  bool stopped_ = false;
  Tokenizer::DecodeState state_;
  std::string bytes_;    // not yet decoded: an incomplete code point
  std::string pending_;  // decoded, held back for a stop string
};

// `bytes` with every maximal invalid subpart replaced by U+FFFD (Unicode 15, section 3.9, as
// Python's "replace").
std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace conclave::text
