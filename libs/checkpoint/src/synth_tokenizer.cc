// A made-up vocabulary, in the formats of byte-level and SentencePiece tokenizers.
#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "conclave/base/check.h"
#include "json.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

namespace json = boost::json;

constexpr size_t kPieceBytesMax = 12;

// Words of the chat template and of usual questions: each becomes one token, so that prompts have
// realistic lengths.
constexpr std::array<std::string_view, 72> kFillerWords = {
    " chat",      " between",   " curious",    " user",
    " and",       " an",        " artificial", " intelligence",
    " assistant", " The",       " gives",      " helpful",
    " detailed",  " polite",    " answers",    " to",
    " the",       " questions", " USER",       "USER",
    " ASSISTANT", "ASSISTANT",  " What",       " is",
    " are",       " in",        " this",       " image",
    " picture",   " How",       " many",       " there",
    " of",        " a",         " on",         " with",
    " color",     " shape",     " where",      " which",
    " describe",  " Describe",  " people",     " man",
    " woman",     " dog",       " cat",        " car",
    " red",       " green",     " blue",       " one",
    " two",       " three",     " word",       " single",
    " answer",    " Answer",    " using",      " phrase",
    " or",        " option",    " letter",     " from",
    " given",     " Is",        "What",        "Is",
    "Describe",   "How",        "A",           " for",
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {  // splitmix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
  }
  double Unit() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  // An index below `size`; early ones are more frequent, as short pieces are in real tables.
  size_t Skewed(size_t size) {
    const double u = Unit();
    return static_cast<size_t>(u * u * static_cast<double>(size));
  }

 private:
  uint64_t state_;
};

class RankTable {
 public:
  explicit RankTable(size_t size) : size_(size) {
    for (int byte = 0; byte < 256; ++byte) {
      Add(std::string(1, static_cast<char>(byte)));
    }
  }

  bool is_full() const { return ranks_.size() >= size_; }
  const std::vector<std::string>& ranks() const { return ranks_; }

  // True when `piece` was new.
  bool Add(const std::string& piece) {
    if (is_full() || !known_.insert(piece).second) {
      return false;
    }
    ranks_.push_back(piece);
    return true;
  }

  // Every prefix of `word`: each is the one before it and a single byte.
  void AddWord(std::string_view word) {
    for (size_t length = 2; length <= word.size(); ++length) {
      Add(std::string(word.substr(0, length)));
    }
  }

 private:
  size_t size_;
  std::vector<std::string> ranks_;
  std::unordered_set<std::string> known_;
};

std::string Base64(std::string_view bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<uint8_t>(bytes[i + j]) : 0);
    }
    for (size_t j = 0; j < 4; ++j) {
      out += i + j <= bytes.size() ? kDigits[group >> (18 - 6 * j) & 63] : '=';
    }
  }
  return out;
}

// Byte-level BPE writes every byte as a letter: printable ones as themselves, the others in their
// order as those from U+0100.
bool IsPrintable(int byte) {
  return (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
}

std::array<uint8_t, 256> BytesInOrder() {
  std::array<uint8_t, 256> order{};
  size_t at = 0;
  for (const bool is_printable : {true, false}) {
    for (int byte = 0; byte < 256; ++byte) {
      if (IsPrintable(byte) == is_printable) {
        order[at++] = static_cast<uint8_t>(byte);
      }
    }
  }
  return order;
}

void AddUtf8(uint32_t code, std::string& out) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else {  // All letters used here are below U+0800.
    out += static_cast<char>(0xc0 | code >> 6);
    out += static_cast<char>(0x80 | (code & 0x3f));
  }
}

std::string Letters(std::string_view bytes) {
  static const std::array<uint32_t, 256> letters = [] {
    std::array<uint32_t, 256> table{};
    uint32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      table[static_cast<size_t>(byte)] = IsPrintable(byte) ? static_cast<uint32_t>(byte) : next++;
    }
    return table;
  }();
  std::string out;
  for (const char c : bytes) {
    AddUtf8(letters[static_cast<uint8_t>(c)], out);
  }
  return out;
}

// SentencePiece's model file is a protocol buffer (sentencepiece_model.proto): the numbers below
// are its fields.
constexpr int kNormal = 1;
constexpr int kUnknown = 2;
constexpr int kControl = 3;
constexpr int kByte = 6;

void AddVarint(uint64_t number, std::string& out) {
  for (; number >= 0x80; number >>= 7) {
    out += static_cast<char>(0x80 | (number & 0x7f));
  }
  out += static_cast<char>(number);
}

void AddNumber(int field, uint64_t number, std::string& out) {
  AddVarint(static_cast<uint64_t>(field) << 3, out);
  AddVarint(number, out);
}

void AddBytes(int field, std::string_view bytes, std::string& out) {
  AddVarint(static_cast<uint64_t>(field) << 3 | 2, out);
  AddVarint(bytes.size(), out);
  out += bytes;
}

// One entry: text, score, and its type unless that is the default.
void AddPiece(std::string& model, std::string_view text, float score, int type) {
  std::string piece;
  AddBytes(1, text, piece);
  char raw[sizeof(score)];
  std::memcpy(raw, &score, sizeof(score));
  piece += '\x15';  // field 2, 32 bits
  piece.append(raw, sizeof(raw));
  if (type != kNormal) {
    AddNumber(3, static_cast<uint64_t>(type), piece);
  }
  AddBytes(1, piece, model);
}

// Spaces are written as U+2581.
std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    out += c == ' ' ? std::string("\xe2\x96\x81") : std::string(1, c);
  }
  return out;
}

std::string Trainer(int32_t num) {
  std::string spec;
  AddNumber(3, 2, spec);  // model_type: BPE
  AddNumber(4, static_cast<uint64_t>(num), spec);
  AddNumber(35, 1, spec);  // byte_fallback
  AddNumber(40, 0, spec);  // unk_id, bos_id, eos_id, pad_id (-1)
  AddNumber(41, 1, spec);
  AddNumber(42, 2, spec);
  AddNumber(43, ~uint64_t{0}, spec);
  std::string out;
  AddBytes(2, spec, out);
  return out;
}

std::string Normalizer() {
  std::string spec;
  AddBytes(1, "identity", spec);
  AddNumber(3, 1, spec);  // add_dummy_prefix
  AddNumber(4, 0, spec);  // remove_extra_whitespaces
  std::string out;
  AddBytes(3, spec, out);
  return out;
}

}  // namespace

std::vector<std::string> SynthPieces(int32_t num, uint64_t seed) {
  CONCLAVE_CHECK(num >= 256);
  RankTable table(static_cast<size_t>(num));
  Random random(seed);
  // Letters alone, and letters after a space: the pre-tokeniser never lets a piece cross from
  // letters to anything else.
  std::vector<std::string> stems;
  std::vector<std::string> words = {" "};
  for (char letter = 'a'; letter <= 'z'; ++letter) {
    stems.emplace_back(1, letter);
  }
  // Runs that the pre-tokeniser leaves whole.
  for (const std::string_view run :
       {"  ", "    ", "\n\n", "..", "...", "--", "----", ", ", ". ", "::"}) {
    table.AddWord(run);
  }
  // A table of a few hundred ranks has no room for them besides the random pieces.
  if (num >= 4096) {
    for (const std::string_view word : kFillerWords) {
      table.AddWord(word);
    }
  }
  while (!table.is_full()) {
    const bool is_word = random.Unit() < 0.6;
    std::vector<std::string>& heads = is_word ? words : stems;
    const std::string piece =
        heads[random.Skewed(heads.size())] + stems[random.Skewed(stems.size())];
    if (piece.size() <= kPieceBytesMax && table.Add(piece)) {
      heads.push_back(piece);
    }
  }
  return table.ranks();
}

std::string TiktokenText(std::span<const std::string> pieces) {
  std::string out;
  for (size_t rank = 0; rank < pieces.size(); ++rank) {
    out += Base64(pieces[rank]) + " " + std::to_string(rank) + "\n";
  }
  return out;
}

SynthFile BpeVocabulary(std::span<const std::string> pieces, std::span<const std::string> last) {
  json::object vocabulary;
  int32_t id = 0;
  // Single bytes in the order of their letters, then the others in theirs.
  for (const uint8_t byte : BytesInOrder()) {
    vocabulary[Letters(std::string(1, static_cast<char>(byte)))] = id++;
  }
  for (const std::string& piece : pieces.subspan(256)) {
    vocabulary[Letters(piece)] = id++;
  }
  for (const std::string& entry : last) {
    vocabulary[entry] = id++;
  }
  return {"vocab.json", Pretty(vocabulary)};
}

SynthFile BpeMerges(std::span<const std::string> pieces) {
  std::unordered_set<std::string_view> known;
  std::string out = "#version: 0.2\n";
  for (const std::string& piece : pieces) {
    const std::string_view whole = piece;
    // Every piece of several bytes has been made from two earlier ones.
    for (size_t cut = whole.size() - 1; cut > 0; --cut) {
      if (known.contains(whole.substr(0, cut)) && known.contains(whole.substr(cut))) {
        out += Letters(whole.substr(0, cut)) + " " + Letters(whole.substr(cut)) + "\n";
        break;
      }
    }
    known.insert(whole);
  }
  return {"merges.txt", out};
}

std::string SentencePieceModel(int32_t num, uint64_t seed) {
  std::string out;
  AddPiece(out, "<unk>", 0, kUnknown);
  AddPiece(out, "<s>", 0, kControl);
  AddPiece(out, "</s>", 0, kControl);
  for (int byte = 0; byte < 256; ++byte) {
    constexpr char kDigits[] = "0123456789ABCDEF";
    AddPiece(out, std::string("<0x") + kDigits[byte >> 4] + kDigits[byte & 15] + ">", 0, kByte);
  }
  // Merges by falling score, then the letters that they are made of.
  std::vector<std::string> letters;
  for (char letter = ' '; letter <= '~'; ++letter) {
    letters.push_back(Escaped(std::string(1, letter)));
  }
  const int32_t num_merges = num - 3 - 256 - static_cast<int32_t>(letters.size());
  CONCLAVE_CHECK(num_merges > 0);
  float score = 0;
  // Some of the pieces are no text of one line, which SentencePiece's have to be.
  const std::vector<std::string> pieces = SynthPieces(256 + num_merges + 64, seed);
  int32_t num_taken = 0;
  for (size_t i = 256; i < pieces.size() && num_taken < num_merges; ++i) {
    if (std::all_of(pieces[i].begin(), pieces[i].end(),
                    [](char c) { return c >= ' ' && c <= '~'; })) {
      AddPiece(out, Escaped(pieces[i]), score--, kNormal);
      ++num_taken;
    }
  }
  CONCLAVE_CHECK(num_taken == num_merges);
  for (const std::string& letter : letters) {
    AddPiece(out, letter, score--, kNormal);
  }
  return out + Trainer(num) + Normalizer();
}

}  // namespace conclave::checkpoint
