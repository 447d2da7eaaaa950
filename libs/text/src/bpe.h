// Byte-pair encoding by ranks (spec 6.2): the merge loop of tiktoken in linear time.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace conclave::text {

// (left id, right id) -> id of the concatenation, for all pairs whose concatenation is a token.
class PairTable {
 public:
  struct Entry {
    int32_t left;
    int32_t right;
    int32_t joined;
  };
  void Build(const std::vector<Entry>& entries);

  // -1: the two do not merge.
  int32_t Find(int32_t left, int32_t right) const {
    for (size_t slot = SlotOf(left, right);; slot = (slot + 1) & mask_) {
      const Entry& entry = entries_[slot];
      if (entry.left == left && entry.right == right) return entry.joined;
      if (entry.left < 0) return -1;
    }
  }

 private:
  size_t SlotOf(int32_t left, int32_t right) const {
    const uint64_t key =
        static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
    // Fibonacci hashing: the high bits of the product depend on all bits of the key.
    return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & mask_;
  }

  std::vector<Entry> entries_ = {{-1, -1, -1}};  // open addressing; left -1: free
  size_t mask_ = 0;
};

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

  // Working memory of EncodePiece, kept between the pieces of one text. About 16 bytes per byte of
  // the longest piece.
  struct Scratch {
    struct Bucket {
      std::vector<uint32_t> positions;
      size_t num_done = 0;
      bool is_sorted = true;
    };
    std::vector<int32_t> bucket_of_rank;  // -1: none
    std::vector<Bucket> buckets;
    std::vector<int32_t> free_buckets;
    std::vector<int32_t> open_ranks;  // heap, lowest first: ranks that have a bucket
    std::vector<int32_t> ids;         // at the first byte of every part; -1 elsewhere
    std::vector<uint32_t> begin_of;   // at the last byte of every part: its first byte
  };

  // Appends the ids of one pre-token of less than 2^32 bytes. Starting from single bytes, the
  // adjacent pair whose concatenation has the lowest rank is merged, the leftmost on ties, until no
  // pair is in the table. A pre-token that is itself in the table is one id.
  //
  // Time is linear in the piece, but for sorting positions that were found out of order, with rank
  // tables in which parts have lower ranks than what they form, as trained ones have. Other tables
  // cost more but give the same result as the plain loop.
  void EncodePiece(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  size_t LengthOf(int32_t id) const { return begins_[id + 1] - begins_[id]; }
  void MergeShort(std::string_view piece, std::vector<int32_t>& out) const;
  void MergeLong(std::string_view piece, Scratch& scratch, std::vector<int32_t>& out) const;
  void MergeRank(int32_t rank, Scratch& scratch) const;
  void AddPair(int32_t left, int32_t right, uint32_t position, Scratch& scratch) const;

  std::string bytes_;
  std::vector<uint32_t> begins_;  // into bytes_, one more than tokens
  std::unordered_map<std::string_view, int32_t> id_of_;
  std::array<int32_t, 256> id_of_byte_;
  PairTable pairs_;
};

}  // namespace conclave::text
