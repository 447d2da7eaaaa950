// SentencePiece's tokenizer.model: a protocol buffer, read here because Debian's library brings a
// copy of libprotobuf that cannot live in one process with gRPC's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/text/tokenizer.h"
#include "vocab_tokenizer.h"

namespace conclave::text {

// sentencepiece_model.proto, ModelProto.SentencePiece.Type.
enum class PieceType {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct Piece {
  std::string text;  // spaces as U+2581
  float score = 0;
  PieceType type = PieceType::kNormal;
};

// The pieces of a BPE model with byte fallback, by id. `where` is the file, for messages.
// "tokenizer_invalid" for broken bytes, twins and missing byte pieces; "tokenizer_unsupported" for
// a unigram or word model, for another normalizer than the identity and for other rules of white
// space than Llama's.
absl::StatusOr<std::vector<Piece>> ParseSentencePiece(const std::string& where,
                                                      std::string_view bytes);

// The vocabulary's part of a spec.
absl::Status ApplyPieces(const std::string& where, const std::vector<Piece>& pieces,
                         VocabSpec& spec);

// Of a vocabulary in SentencePiece's spelling: id_of_byte, token_bytes, and a symbol for every
// character that some token holds. `is_merged[id]`: whether merges may make the token.
absl::Status ApplySpelledTokens(const std::string& where, const std::vector<std::string>& tokens,
                                const std::vector<bool>& is_merged, VocabSpec& spec);

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePieceFolder(const std::string& folder);

}  // namespace conclave::text
