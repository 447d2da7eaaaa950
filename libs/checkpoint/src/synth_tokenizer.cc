// A made-up byte-level BPE in the .tiktoken format: base64(bytes) space rank, one a line.
#include <array>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "conclave/base/check.h"
#include "synth_parts.h"

namespace conclave::checkpoint {
namespace {

constexpr size_t kPieceBytesMax = 12;

// Words of the chat template and of usual questions: each becomes one token, so that prompts have
// realistic lengths.
constexpr std::array<std::string_view, 72> kWords = {
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

}  // namespace

std::string SynthRanks(int32_t num_ranks, uint64_t seed) {
  CONCLAVE_CHECK(num_ranks >= 256);
  RankTable table(static_cast<size_t>(num_ranks));
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
  if (num_ranks >= 4096) {
    for (const std::string_view word : kWords) {
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
  std::string out;
  for (size_t rank = 0; rank < table.ranks().size(); ++rank) {
    out += Base64(table.ranks()[rank]) + " " + std::to_string(rank) + "\n";
  }
  return out;
}

}  // namespace conclave::checkpoint
