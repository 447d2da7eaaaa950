// The merge loop of byte-pair encoding in linear time, for every kind of vocabulary.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "symbol_pairs.h"

namespace conclave::text {

// Symbols are what merges start from and what they make: single bytes or characters, and tokens. A
// symbol is a number from 0; how long it is, is counted in those units that merges start from.
//
// Of all adjacent pairs that the table has, the one of the lowest rank is merged, the leftmost on
// ties, until none is left. Immutable; any thread.
class PairMerger {
 public:
  struct Pair {
    int32_t left;
    int32_t right;
    int32_t rank;    // >= 0; several pairs may share one
    int32_t joined;  // as long as both together
  };

  // lengths[s] >= 1 of every symbol. Of pairs with the same two symbols the one of the lowest rank
  // counts.
  PairMerger(std::vector<uint32_t> lengths, const std::vector<Pair>& pairs);

  // Working memory of Merge, kept between the pieces of one text. About 12 bytes per unit of the
  // longest piece.
  struct Scratch {
    std::vector<int32_t> start;  // of MergeBytes
    struct Bucket {
      std::vector<uint32_t> positions;
      size_t num_done = 0;
      bool is_sorted = true;
      std::vector<uint32_t> late;  // heap, lowest first: found while this rank is being merged
    };
    std::vector<int32_t> bucket_of_rank;  // -1: none
    std::vector<Bucket> buckets;
    std::vector<int32_t> free_buckets;
    std::vector<int32_t> open_ranks;  // heap, lowest first: ranks that have a bucket
    int32_t active_rank = -1;
    // At the first unit of every part its symbol; at the last unit of a longer one ~(the first);
    // below 0 in between.
    std::vector<int32_t> symbols;
  };

  // Appends to `out` the symbols that the units `start` (each a symbol of length 1) merge to. Time
  // is linear in the piece, but for sorting positions that were found out of order, with tables in
  // which parts have lower ranks than what they form, as trained ones have. Other tables cost more
  // but give the same result as the plain loop.
  void Merge(std::span<const int32_t> start, Scratch& scratch, std::vector<int32_t>& out) const;

  // The same for a piece whose units are bytes; `unit_of_byte` has their symbols. A long piece is
  // never held as symbols whole where it may be cut.
  void MergeBytes(std::string_view piece, const std::array<int32_t, 256>& unit_of_byte,
                  Scratch& scratch, std::vector<int32_t>& out) const;

  // Whether some merge joins parts that end with the unit `left` and begin with the unit `right`.
  // Where two neighbours do not join, a text may be cut: pieces stay short in ordinary text and in
  // most hostile ones, and with them time and memory. Merge itself cuts there.
  bool Joins(int32_t left, int32_t right) const { return joints_.Contains(left, right); }

 private:
  // Null: the two do not merge.
  const Pair* Find(int32_t left, int32_t right) const {
    for (size_t slot = SlotOf(left, right);; slot = (slot + 1) & mask_) {
      const Pair& pair = table_[slot];
      if (pair.left == left && pair.right == right) return &pair;
      if (pair.left < 0) return nullptr;
    }
  }
  size_t SlotOf(int32_t left, int32_t right) const {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    // Fibonacci hashing: the high bits of the product depend on all bits of the key.
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & mask_;
  }
  uint32_t LengthOf(int32_t symbol) const { return lengths_[static_cast<size_t>(symbol)]; }
  void FindJoints(const std::vector<Pair>& pairs);
  void MergeShort(std::span<const int32_t> start, std::vector<int32_t>& out) const;
  void MergeLong(std::span<const int32_t> start, Scratch& scratch, std::vector<int32_t>& out) const;
  void MergeRank(int32_t rank, Scratch& scratch) const;
  // `pair` stands at `position`; null: none does.
  static void AddPair(const Pair* pair, uint32_t position, Scratch& scratch);

  std::vector<uint32_t> lengths_;
  std::vector<Pair> table_ = {{-1, -1, -1, -1}};  // open addressing; left -1: free
  size_t mask_ = 0;
  SymbolPairs joints_;
  int32_t num_ranks_ = 0;
};

}  // namespace conclave::text
