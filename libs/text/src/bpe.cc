#include "bpe.h"

#include <algorithm>
#include <functional>
#include <limits>

#include "conclave/base/check.h"

namespace conclave::text {
namespace {

// Up to here the plain loop, quadratic with a tiny constant, beats the buckets.
constexpr size_t kShortPiece = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

}  // namespace

void PairTable::Build(const std::vector<Entry>& entries) {
  size_t capacity = 16;
  while (capacity < 2 * entries.size()) capacity *= 2;
  entries_.assign(capacity, {-1, -1, -1});
  mask_ = capacity - 1;
  for (const Entry& entry : entries) {
    size_t slot = SlotOf(entry.left, entry.right);
    while (entries_[slot].left >= 0) slot = (slot + 1) & mask_;
    entries_[slot] = entry;
  }
}

BpeTable::BpeTable(const std::vector<std::string>& tokens) {
  begins_.reserve(tokens.size() + 1);
  for (const std::string& token : tokens) {
    begins_.push_back(static_cast<uint32_t>(bytes_.size()));
    bytes_.append(token);
  }
  begins_.push_back(static_cast<uint32_t>(bytes_.size()));
  id_of_.reserve(tokens.size());
  for (int32_t id = 0; id < size(); ++id) {
    CONCLAVE_CHECK(LengthOf(id) > 0 && id_of_.emplace(Bytes(id), id).second);
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const auto found = id_of_.find(std::string_view(&text, 1));
    CONCLAVE_CHECK(found != id_of_.end());
    id_of_byte_[byte] = found->second;
  }
  std::vector<PairTable::Entry> pairs;
  for (int32_t id = 0; id < size(); ++id) {
    const std::string_view token = Bytes(id);
    for (size_t cut = 1; cut < token.size(); ++cut) {
      const auto left = id_of_.find(token.substr(0, cut));
      if (left == id_of_.end()) continue;
      const auto right = id_of_.find(token.substr(cut));
      if (right != id_of_.end()) pairs.push_back({left->second, right->second, id});
    }
  }
  pairs_.Build(pairs);
}

void BpeTable::EncodePiece(std::string_view piece, Scratch& scratch,
                           std::vector<int32_t>& out) const {
  if (const auto whole = id_of_.find(piece); whole != id_of_.end()) {
    out.push_back(whole->second);
  } else if (piece.size() <= kShortPiece) {
    MergeShort(piece, out);
  } else {
    MergeLong(piece, scratch, out);
  }
}

void BpeTable::MergeShort(std::string_view piece, std::vector<int32_t>& out) const {
  std::array<int32_t, kShortPiece> ids;
  std::array<int32_t, kShortPiece> ranks;  // of the pair that begins here
  size_t num_parts = piece.size();
  const auto rank_at = [&](size_t i) {
    const int32_t joined = i + 1 < num_parts ? pairs_.Find(ids[i], ids[i + 1]) : -1;
    return joined < 0 ? kNoRank : joined;
  };
  for (size_t i = 0; i < num_parts; ++i) ids[i] = id_of_byte_[static_cast<uint8_t>(piece[i])];
  for (size_t i = 0; i < num_parts; ++i) ranks[i] = rank_at(i);
  while (num_parts > 1) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + num_parts);
    if (*best == kNoRank) break;
    const auto at = static_cast<size_t>(best - ranks.begin());
    ids[at] = *best;
    std::copy(ids.begin() + at + 2, ids.begin() + num_parts, ids.begin() + at + 1);
    std::copy(ranks.begin() + at + 2, ranks.begin() + num_parts, ranks.begin() + at + 1);
    --num_parts;
    ranks[at] = rank_at(at);
    if (at > 0) ranks[at - 1] = rank_at(at - 1);
  }
  out.insert(out.end(), ids.begin(), ids.begin() + num_parts);
}

void BpeTable::AddPair(int32_t left, int32_t right, uint32_t position, Scratch& scratch) const {
  const int32_t rank = pairs_.Find(left, right);
  if (rank < 0) return;
  int32_t& index = scratch.bucket_of_rank[rank];
  if (index < 0) {
    if (scratch.free_buckets.empty()) {
      scratch.free_buckets.push_back(static_cast<int32_t>(scratch.buckets.size()));
      scratch.buckets.emplace_back();
    }
    index = scratch.free_buckets.back();
    scratch.free_buckets.pop_back();
    scratch.open_ranks.push_back(rank);
    std::push_heap(scratch.open_ranks.begin(), scratch.open_ranks.end(), std::greater<>());
  }
  Scratch::Bucket& bucket = scratch.buckets[index];
  if (!bucket.positions.empty() && bucket.positions.back() > position) bucket.is_sorted = false;
  bucket.positions.push_back(position);
}

// Merges pairs of `rank`, from left to right, until none is left or a merge made a pair of a lower
// rank possible. A merge never makes a new pair of the same rank: that pair would be longer than
// the token.
void BpeTable::MergeRank(int32_t rank, Scratch& scratch) const {
  const int32_t index = scratch.bucket_of_rank[rank];
  const size_t num_bytes = scratch.ids.size();
  if (Scratch::Bucket& bucket = scratch.buckets[index]; !bucket.is_sorted) {
    std::sort(bucket.positions.begin() + static_cast<ptrdiff_t>(bucket.num_done),
              bucket.positions.end());
    bucket.is_sorted = true;
  }
  // By index: AddPair may move the buckets.
  while (scratch.open_ranks.front() == rank &&
         scratch.buckets[index].num_done < scratch.buckets[index].positions.size()) {
    const uint32_t position = scratch.buckets[index].positions[scratch.buckets[index].num_done++];
    const int32_t left = scratch.ids[position];
    if (left < 0) continue;
    const size_t middle = position + LengthOf(left);
    if (middle >= num_bytes || pairs_.Find(left, scratch.ids[middle]) != rank) continue;
    scratch.ids[position] = rank;
    scratch.ids[middle] = -1;
    const size_t end = position + LengthOf(rank);
    scratch.begin_of[end - 1] = position;
    if (end < num_bytes) AddPair(rank, scratch.ids[end], position, scratch);
    if (position > 0) {
      const uint32_t before = scratch.begin_of[position - 1];
      AddPair(scratch.ids[before], rank, before, scratch);
    }
  }
}

void BpeTable::MergeLong(std::string_view piece, Scratch& scratch,
                         std::vector<int32_t>& out) const {
  CONCLAVE_CHECK(piece.size() < std::numeric_limits<uint32_t>::max());
  const auto num_bytes = static_cast<uint32_t>(piece.size());
  scratch.bucket_of_rank.resize(size(), -1);
  scratch.ids.resize(num_bytes);
  scratch.begin_of.resize(num_bytes);
  for (uint32_t i = 0; i < num_bytes; ++i) {
    scratch.ids[i] = id_of_byte_[static_cast<uint8_t>(piece[i])];
    scratch.begin_of[i] = i;
  }
  for (uint32_t i = 0; i + 1 < num_bytes; ++i)
    AddPair(scratch.ids[i], scratch.ids[i + 1], i, scratch);
  while (!scratch.open_ranks.empty()) {
    const int32_t rank = scratch.open_ranks.front();
    MergeRank(rank, scratch);
    if (scratch.open_ranks.front() != rank) continue;
    std::pop_heap(scratch.open_ranks.begin(), scratch.open_ranks.end(), std::greater<>());
    scratch.open_ranks.pop_back();
    int32_t& index = scratch.bucket_of_rank[rank];
    Scratch::Bucket& bucket = scratch.buckets[index];
    bucket.positions.clear();
    bucket.num_done = 0;
    bucket.is_sorted = true;
    scratch.free_buckets.push_back(index);
    index = -1;
  }
  for (size_t i = 0; i < num_bytes; i += LengthOf(scratch.ids[i])) out.push_back(scratch.ids[i]);
}

}  // namespace conclave::text
