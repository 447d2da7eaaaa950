#include "conclave/text/tokenizer.h"

#include "byte_level_files.h"
#include "conclave/base/status.h"
#include "conclave/text/detokenizer.h"
#include "quote.h"
#include "sentencepiece_file.h"
#include "tokenizer_json.h"

namespace conclave::text {

std::string_view Tokenizer::DecodeNext(int32_t id, bool keep_special,
                                       DecodeState& /*state*/) const {
  return TokenBytes(id, keep_special);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool keep_special) const {
  std::string bytes;
  DecodeState state;
  for (const int32_t id : ids) bytes.append(DecodeNext(id, keep_special, state));
  return ReplaceInvalidUtf8(bytes);
}

std::string Tokenizer::DecodeAsOriginal(std::span<const int32_t> ids, bool keep_special) const {
  return Decode(ids, keep_special);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizerFromFolder(const std::string& folder,
                                                                   std::string_view file) {
  // Whole names only: the special tokens are not in the file, its name is all that says which they
  // are. It also keeps a name such as "../x" from leaving the folder.
  if (file == "arcade100k.tiktoken") {
    return LoadTiktoken(folder + "/" + std::string(file), TiktokenFlavor::kArcade100k);
  }
  if (file == "qwen.tiktoken")
    return LoadTiktoken(folder + "/" + std::string(file), TiktokenFlavor::kQwen);
  if (file == "vocab.json") return LoadByteLevelFolder(folder);
  if (file == "tokenizer.model") return LoadSentencePieceFolder(folder);
  if (file == "tokenizer.json") return LoadTokenizerJson(folder);
  return InvalidArgument(
      "tokenizer_unsupported",
      folder +
          ": tokenizer file is of an unsupported kind; expected arcade100k.tiktoken, "
          "qwen.tiktoken, vocab.json, tokenizer.model or tokenizer.json, found " +
          Quote(file));
}

absl::Status CheckTokenizer(const Tokenizer& tokenizer, int32_t vocab_rows, int32_t eos_token) {
  if (tokenizer.size() > vocab_rows) {
    return InvalidArgument(
        "tokenizer_invalid",
        "tokenizer: more ids than the model has embedding rows; expected at most " +
            std::to_string(vocab_rows) + ", found " + std::to_string(tokenizer.size()));
  }
  if (eos_token >= 0 && tokenizer.eos() != eos_token) {
    return InvalidArgument("tokenizer_invalid",
                           "tokenizer: end-of-text id is not the model's; expected " +
                               std::to_string(eos_token) + ", found " +
                               std::to_string(tokenizer.eos()));
  }
  return absl::OkStatus();
}

}  // namespace conclave::text
