// tokenizer.json of the Hugging Face `tokenizers` library.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/text/tokenizer.h"

namespace conclave::text {

// Reads the BPE models of Phi's, Qwen's and Llama's kind: byte-level with GPT-2's or Qwen's
// pattern, or SentencePiece's spelling with byte fallback. Any other part of the format is refused
// by name ("tokenizer_unsupported"). The end-of-text token comes from the JSON files beside it.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerJson(const std::string& folder);

}  // namespace conclave::text
