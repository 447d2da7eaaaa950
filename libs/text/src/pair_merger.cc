#include "pair_merger.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <optional>
#include <utility>

#include "conclave/base/check.h"

namespace conclave::text {
namespace {

// Up to here the plain loop, quadratic with a tiny constant, beats the buckets.
constexpr size_t kShortPiece = 48;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

// The next position of a sorted bucket, or nothing when all are done.
std::optional<uint32_t> TakePosition(PairMerger::Scratch::Bucket& bucket) {
  const bool has_position = bucket.num_done < bucket.positions.size();
  if (!bucket.late.empty() &&
      (!has_position || bucket.late.front() < bucket.positions[bucket.num_done])) {
    std::pop_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
    const uint32_t position = bucket.late.back();
    bucket.late.pop_back();
    return position;
  }
  if (!has_position) return std::nullopt;
  return bucket.positions[bucket.num_done++];
}

}  // namespace

PairMerger::PairMerger(std::vector<uint32_t> lengths, const std::vector<Pair>& pairs)
    : lengths_(std::move(lengths)) {
  size_t capacity = 16;
  while (capacity < 2 * pairs.size()) capacity *= 2;
  table_.assign(capacity, {-1, -1, -1, -1});
  mask_ = capacity - 1;
  for (const Pair& pair : pairs) {
    num_ranks_ = std::max(num_ranks_, pair.rank + 1);
    size_t slot = SlotOf(pair.left, pair.right);
    while (table_[slot].left >= 0 &&
           (table_[slot].left != pair.left || table_[slot].right != pair.right)) {
      slot = (slot + 1) & mask_;
    }
    if (table_[slot].left < 0 || table_[slot].rank > pair.rank) table_[slot] = pair;
  }
}

void PairMerger::Merge(std::span<const int32_t> start, Scratch& scratch,
                       std::vector<int32_t>& out) const {
  if (start.size() <= kShortPiece) {
    MergeShort(start, out);
  } else {
    MergeLong(start, scratch, out);
  }
}

void PairMerger::MergeShort(std::span<const int32_t> start, std::vector<int32_t>& out) const {
  std::array<int32_t, kShortPiece> symbols;
  std::array<int32_t, kShortPiece> ranks;  // of the pair that begins here
  std::array<int32_t, kShortPiece> joined;
  size_t num_parts = start.size();
  const auto look = [&](size_t i) {
    const Pair* pair = i + 1 < num_parts ? Find(symbols[i], symbols[i + 1]) : nullptr;
    ranks[i] = pair == nullptr ? kNoRank : pair->rank;
    joined[i] = pair == nullptr ? -1 : pair->joined;
  };
  std::copy(start.begin(), start.end(), symbols.begin());
  for (size_t i = 0; i < num_parts; ++i) look(i);
  while (num_parts > 1) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + num_parts);
    if (*best == kNoRank) break;
    const auto at = static_cast<size_t>(best - ranks.begin());
    symbols[at] = joined[at];
    for (auto* array : {&symbols, &ranks, &joined}) {
      std::copy(array->begin() + at + 2, array->begin() + num_parts, array->begin() + at + 1);
    }
    --num_parts;
    look(at);
    if (at > 0) look(at - 1);
  }
  out.insert(out.end(), symbols.begin(), symbols.begin() + num_parts);
}

void PairMerger::AddPair(int32_t left, int32_t right, uint32_t position, Scratch& scratch) const {
  const Pair* pair = Find(left, right);
  if (pair == nullptr) return;
  int32_t& index = scratch.bucket_of_rank[pair->rank];
  if (index < 0) {
    if (scratch.free_buckets.empty()) {
      scratch.free_buckets.push_back(static_cast<int32_t>(scratch.buckets.size()));
      scratch.buckets.emplace_back();
    }
    index = scratch.free_buckets.back();
    scratch.free_buckets.pop_back();
    scratch.open_ranks.push_back(pair->rank);
    std::push_heap(scratch.open_ranks.begin(), scratch.open_ranks.end(), std::greater<>());
  }
  Scratch::Bucket& bucket = scratch.buckets[index];
  // Sorting all that is left at each of these would be quadratic where many pairs share a rank.
  if (pair->rank == scratch.active_rank) {
    bucket.late.push_back(position);
    std::push_heap(bucket.late.begin(), bucket.late.end(), std::greater<>());
    return;
  }
  if (!bucket.positions.empty() && bucket.positions.back() > position) bucket.is_sorted = false;
  bucket.positions.push_back(position);
}

// Merges pairs of `rank`, from left to right, until none is left or a merge made a pair of a lower
// rank possible.
void PairMerger::MergeRank(int32_t rank, Scratch& scratch) const {
  const int32_t index = scratch.bucket_of_rank[rank];
  const size_t num_units = scratch.symbols.size();
  if (Scratch::Bucket& bucket = scratch.buckets[index]; !bucket.is_sorted) {
    std::sort(bucket.positions.begin() + static_cast<ptrdiff_t>(bucket.num_done),
              bucket.positions.end());
    bucket.is_sorted = true;
  }
  scratch.active_rank = rank;
  // By index: AddPair may move the buckets.
  while (scratch.open_ranks.front() == rank) {
    const std::optional<uint32_t> taken = TakePosition(scratch.buckets[index]);
    if (!taken.has_value()) break;
    const uint32_t position = *taken;
    const int32_t left = scratch.symbols[position];
    if (left < 0) continue;
    const size_t middle = position + LengthOf(left);
    if (middle >= num_units) continue;
    const Pair* pair = Find(left, scratch.symbols[middle]);
    if (pair == nullptr || pair->rank != rank) continue;
    scratch.symbols[position] = pair->joined;
    scratch.symbols[middle] = -1;
    const size_t end = position + LengthOf(pair->joined);
    scratch.begin_of[end - 1] = position;
    if (end < num_units) AddPair(pair->joined, scratch.symbols[end], position, scratch);
    if (position > 0) {
      const uint32_t before = scratch.begin_of[position - 1];
      AddPair(scratch.symbols[before], pair->joined, before, scratch);
    }
  }
  scratch.active_rank = -1;
}

void PairMerger::MergeLong(std::span<const int32_t> start, Scratch& scratch,
                           std::vector<int32_t>& out) const {
  CONCLAVE_CHECK(start.size() < std::numeric_limits<uint32_t>::max());
  const auto num_units = static_cast<uint32_t>(start.size());
  scratch.bucket_of_rank.resize(static_cast<size_t>(num_ranks_), -1);
  scratch.symbols.assign(start.begin(), start.end());
  scratch.begin_of.resize(num_units);
  for (uint32_t i = 0; i < num_units; ++i) scratch.begin_of[i] = i;
  for (uint32_t i = 0; i + 1 < num_units; ++i)
    AddPair(scratch.symbols[i], scratch.symbols[i + 1], i, scratch);
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
  for (size_t i = 0; i < num_units; i += LengthOf(scratch.symbols[i]))
    out.push_back(scratch.symbols[i]);
}

}  // namespace conclave::text
