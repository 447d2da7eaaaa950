#include "sentencepiece_file.h"

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <map>
#include <unordered_map>

#include "conclave/base/status.h"
#include "folder_tokens.h"
#include "quote.h"
#include "tokenizer_files.h"
#include "utf8.h"
#include "wire_reader.h"

namespace conclave::text {
namespace {

// The published files have at most 122,753 pieces in 2 MB.
constexpr int64_t kModelBytesMax = 32 << 20;
constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581

absl::Status Broken(const std::string& where, const WireReader& reader) {
  return InvalidTokenizer(where, "no protocol buffer at byte " + std::to_string(reader.pos()) +
                                     "; expected a SentencePiece model");
}

absl::StatusOr<Piece> ParsePiece(const std::string& where, std::string_view bytes) {
  Piece piece;
  WireReader reader(bytes);
  for (WireReader::Field field; reader.Next(field);) {
    if (field.number == 1) {
      piece.text = field.bytes;
    } else if (field.number == 2) {
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.varint));
    } else if (field.number == 3) {
      if (field.varint < 1 || field.varint > 6) {
        return InvalidTokenizer(where, "piece of an unknown type " + std::to_string(field.varint) +
                                           "; expected 1 to 6");
      }
      piece.type = static_cast<PieceType>(field.varint);
    }
  }
  if (!reader.ok()) return Broken(where, reader);
  if (piece.text.empty() || piece.text.size() > kTokenBytesMax ||
      ValidUtf8Prefix(piece.text) != piece.text.size() || !std::isfinite(piece.score)) {
    return InvalidTokenizer(where, "piece " + Quote(piece.text) + ": expected 1 to " +
                                       std::to_string(kTokenBytesMax) +
                                       " bytes of UTF-8 and a finite score");
  }
  return piece;
}

// TrainerSpec: fields that decide how a model encodes.
absl::Status CheckTrainer(const std::string& where, std::string_view bytes) {
  uint64_t model_type = 1;
  bool has_byte_fallback = false;
  bool marks_ends = false;
  WireReader reader(bytes);
  for (WireReader::Field field; reader.Next(field);) {
    if (field.number == 3) model_type = field.varint;
    if (field.number == 24) marks_ends = field.varint != 0;
    if (field.number == 35) has_byte_fallback = field.varint != 0;
  }
  if (!reader.ok()) return Broken(where, reader);
  if (model_type != 2 || !has_byte_fallback || marks_ends) {
    return UnsupportedTokenizer(
        where, model_type != 2
                   ? "not a BPE model; expected model_type 2, found " + std::to_string(model_type)
               : marks_ends ? std::string("treat_whitespace_as_suffix; expected marks in front")
                            : std::string("no byte_fallback; expected byte pieces"));
  }
  return absl::OkStatus();
}

absl::Status CheckNormalizer(const std::string& where, std::string_view bytes) {
  std::string name = "identity";
  bool has_table = false;
  bool adds_prefix = true;
  bool removes_spaces = true;
  bool escapes_spaces = true;
  WireReader reader(bytes);
  for (WireReader::Field field; reader.Next(field);) {
    if (field.number == 1) name = field.bytes;
    if (field.number == 2) has_table = !field.bytes.empty();
    if (field.number == 3) adds_prefix = field.varint != 0;
    if (field.number == 4) removes_spaces = field.varint != 0;
    if (field.number == 5) escapes_spaces = field.varint != 0;
  }
  if (!reader.ok()) return Broken(where, reader);
  if (has_table || !adds_prefix || removes_spaces || !escapes_spaces) {
    return UnsupportedTokenizer(
        where, "normalizer " + Quote(name) +
                   "; expected the identity with a dummy prefix and all spaces kept, as Llama's");
  }
  return absl::OkStatus();
}

// "<0x0A>" -> 10; -1: no byte.
int32_t ByteOf(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  uint32_t value = 0;
  const auto [end, error] = std::from_chars(piece.data() + 3, piece.data() + 5, value, 16);
  if (error != std::errc() || end != piece.data() + 5) return -1;
  return static_cast<int32_t>(value);
}

std::string WithSpaces(std::string_view spelled) {
  std::string text;
  for (size_t at = spelled.find(kSpaceMark); at != std::string_view::npos;
       at = spelled.find(kSpaceMark)) {
    text.append(spelled.substr(0, at)).push_back(' ');
    spelled.remove_prefix(at + kSpaceMark.size());
  }
  return text.append(spelled);
}

// Every way to cut a token that merges may make into two symbols.
void AddCuts(int32_t id, std::string_view token, int32_t rank,
             const std::unordered_map<std::string_view, int32_t>& symbol_of, VocabSpec& spec) {
  for (size_t cut = DecodeUtf8(token, 0).num_bytes; cut < token.size();
       cut += DecodeUtf8(token, cut).num_bytes) {
    const auto left = symbol_of.find(token.substr(0, cut));
    const auto right = symbol_of.find(token.substr(cut));
    if (left != symbol_of.end() && right != symbol_of.end())
      spec.pairs.push_back({left->second, right->second, rank, id});
  }
}

}  // namespace

absl::StatusOr<std::vector<Piece>> ParseSentencePiece(const std::string& where,
                                                      std::string_view bytes) {
  std::vector<Piece> pieces;
  bool has_trainer = false;
  bool has_normalizer = false;
  WireReader reader(bytes);
  for (WireReader::Field field; reader.Next(field);) {
    if (field.number == 1) {
      CONCLAVE_ASSIGN_OR_RETURN(Piece piece, ParsePiece(where, field.bytes));
      pieces.push_back(std::move(piece));
      if (pieces.size() >= static_cast<size_t>(kIdsMax)) {
        return InvalidTokenizer(where, "expected less than " + std::to_string(kIdsMax) + " pieces");
      }
    } else if (field.number == 2) {
      has_trainer = true;
      CONCLAVE_RETURN_IF_ERROR(CheckTrainer(where, field.bytes));
    } else if (field.number == 3) {
      has_normalizer = true;
      CONCLAVE_RETURN_IF_ERROR(CheckNormalizer(where, field.bytes));
    }
  }
  if (!reader.ok()) return Broken(where, reader);
  if (pieces.empty() || !has_trainer || !has_normalizer) {
    return InvalidTokenizer(
        where, "is cut or no SentencePiece model; expected pieces, a trainer and a normalizer");
  }
  return pieces;
}

absl::Status ApplySpelledTokens(const std::string& where, const std::vector<std::string>& tokens,
                                const std::vector<bool>& is_merged, VocabSpec& spec) {
  spec.id_of_byte.fill(-1);
  std::unordered_map<std::string_view, int32_t> id_of;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const int32_t byte = is_merged[i] ? -1 : ByteOf(tokens[i]);
    if (!id_of.emplace(tokens[i], id).second)
      return InvalidTokenizer(where, "piece " + Quote(tokens[i]) + " is there twice");
    std::string& bytes = spec.token_bytes.emplace_back();
    if (byte >= 0) {
      spec.id_of_byte[static_cast<size_t>(byte)] = id;
      bytes = static_cast<char>(byte);
    } else if (is_merged[i]) {
      bytes = WithSpaces(tokens[i]);
    }
    uint32_t length = 0;
    for (size_t pos = 0; pos < tokens[i].size(); pos += DecodeUtf8(tokens[i], pos).num_bytes)
      ++length;
    spec.symbol_lengths.push_back(length);
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (spec.id_of_byte[static_cast<size_t>(byte)] < 0) {
      return InvalidTokenizer(
          where, "no piece of the single byte " + std::to_string(byte) + "; expected all 256");
    }
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (size_t pos = 0; is_merged[i] && pos < tokens[i].size();) {
      const Utf8Unit unit = DecodeUtf8(tokens[i], pos);
      const auto own = id_of.find(std::string_view(tokens[i]).substr(pos, unit.num_bytes));
      const bool is_token = own != id_of.end() && is_merged[static_cast<size_t>(own->second)];
      const auto next = static_cast<int32_t>(spec.symbol_lengths.size());
      if (spec.symbol_of_character.emplace(unit.code_point, is_token ? own->second : next).second &&
          !is_token) {
        spec.symbol_lengths.push_back(1);
      }
      pos += unit.num_bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyPieces(const std::string& where, const std::vector<Piece>& pieces,
                         VocabSpec& spec) {
  std::vector<std::string> tokens;
  std::vector<bool> is_merged;
  std::map<float, int32_t, std::greater<>> rank_of;  // the highest score first
  for (const Piece& piece : pieces) {
    if (piece.type == PieceType::kUserDefined || piece.type == PieceType::kUnused) {
      return UnsupportedTokenizer(where,
                                  "piece " + Quote(piece.text) +
                                      " is user-defined or unused; expected normal, control, "
                                      "unknown and byte pieces");
    }
    tokens.push_back(piece.text);
    is_merged.push_back(piece.type == PieceType::kNormal);
    if (is_merged.back()) rank_of.emplace(piece.score, 0);
  }
  int32_t rank = 0;
  for (auto& [score, number] : rank_of) number = rank++;
  CONCLAVE_RETURN_IF_ERROR(ApplySpelledTokens(where, tokens, is_merged, spec));
  std::unordered_map<std::string_view, int32_t> symbol_of;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (is_merged[i]) symbol_of.emplace(tokens[i], static_cast<int32_t>(i));
  }
  // Characters that are no piece take part in merges too.
  std::vector<std::string> characters;
  characters.reserve(spec.symbol_of_character.size());
  for (const auto& [code_point, symbol] : spec.symbol_of_character) {
    if (symbol < static_cast<int32_t>(tokens.size())) continue;
    characters.emplace_back();
    AppendUtf8(code_point, characters.back());
    symbol_of.emplace(characters.back(), symbol);
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (is_merged[i])
      AddCuts(static_cast<int32_t>(i), tokens[i], rank_of.at(pieces[i].score), symbol_of, spec);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadSentencePieceFolder(const std::string& folder) {
  const std::string file = folder + "/tokenizer.model";
  CONCLAVE_ASSIGN_OR_RETURN(const std::string bytes,
                            ReadTokenizerFile(file, kModelBytesMax, "a SentencePiece model"));
  CONCLAVE_ASSIGN_OR_RETURN(const std::vector<Piece> pieces, ParseSentencePiece(file, bytes));
  CONCLAVE_ASSIGN_OR_RETURN(const FolderTokens added,
                            ReadFolderTokens(folder, {.bos = "<s>",
                                                      .eos = "</s>",
                                                      .unk = "<unk>",
                                                      .adds_bos = true,
                                                      .classes = {"LlamaTokenizer"}}));
  VocabSpec spec;
  CONCLAVE_RETURN_IF_ERROR(ApplyPieces(file, pieces, spec));
  spec.decode_style = DecodeStyle::kSlowLlama;
  std::unordered_map<std::string_view, int32_t> id_of;
  for (size_t id = 0; id < pieces.size(); ++id)
    id_of.emplace(pieces[id].text, static_cast<int32_t>(id));
  spec.puts_spaces_between_added = true;
  CONCLAVE_RETURN_IF_ERROR(ApplyFolderTokens(
      folder, added,
      [&](std::string_view content) {
        const auto found = id_of.find(content);
        return found == id_of.end() ? -1 : found->second;
      },
      spec));
  return MakeVocabTokenizer(std::move(spec));
}

}  // namespace conclave::text
