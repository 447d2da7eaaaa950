// Byte-pair encoding over a rank table (spec 6.2), as tiktoken has it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pair_merger.h"

namespace conclave::text {

// The rank table of one tokenizer. Immutable; any thread.
class BpeTable {
 public:
  // tokens[i] has rank and id i. They are distinct, none is empty, and every single byte is among
  // them.
  explicit BpeTable(const std::vector<std::string>& tokens);
  BpeTable(const BpeTable&) = delete;
  BpeTable& operator=(const BpeTable&) = delete;

  int32_t size() const { return static_cast<int32_t>(begins_.size()) - 1; }
  std::string_view Bytes(int32_t id) const {
    return std::string_view(bytes_).substr(begins_[id], begins_[id + 1] - begins_[id]);
  }

  // Working memory of EncodePiece, kept between the pieces of one text.
  using Scratch = PairMerger::Scratch;

  // Appends the ids of one pre-token of less than 2^32 bytes. Starting from single bytes, the
  // adjacent pair whose concatenation has the lowest rank is merged, the leftmost on ties, until no
  // pair is in the table. A pre-token that is itself in the table is one id. Time as
  // PairMerger::Merge.
  void EncodePiece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  // Every way to cut a token into two others: the pairs whose concatenation is in the table.
  PairMerger MakeMerger() const;

  std::string bytes_;
  std::vector<uint32_t> begins_;  // into bytes_, one more than tokens
  std::unordered_map<std::string_view, int32_t> id_of_;
  std::array<int32_t, 256> id_of_byte_;
  PairMerger merger_;
};

}  // namespace conclave::text
