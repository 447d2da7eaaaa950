// Tokens to text while they are generated: holds back what may still change.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/text/tokenizer.h"

namespace conclave::text {

// Not thread-safe; one per choice. `tokenizer` outlives it.
class IncrementalDetokenizer {
 public:
  // Generation stops before the first of `stops` that appears in the text; the stop string itself is never emitted.
  IncrementalDetokenizer(const Tokenizer& tokenizer, std::vector<std::string> stops, bool keep_special = false);

  struct Delta {
    std::string text;             // valid UTF-8, final
    bool hit_stop = false;        // a stop string is complete: generation ends here
  };

  // Adds one token. Incomplete UTF-8 and text that may be the beginning of a stop string stay inside.
  Delta Push(int32_t token);

  // What is still held back when generation ends for another reason; incomplete UTF-8 becomes U+FFFD.
  std::string Finish();

 private:
  std::string TakeSafe(bool is_final);

  const Tokenizer& tokenizer_;
  std::vector<std::string> stops_;
  bool keep_special_;
  bool stopped_ = false;
  std::string bytes_;    // not yet decoded: an incomplete code point
  std::string pending_;  // decoded, held back for a stop string
};

// `bytes` with every maximal invalid subpart replaced by U+FFFD (Unicode 15, section 3.9, as Python's "replace").
std::string ReplaceInvalidUtf8(std::string_view bytes);

}  // namespace conclave::text
