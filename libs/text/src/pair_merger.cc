#include "pair_merger.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "conclave/base/check.h"

namespace conclave::text {
namespace {

// Up to here the plain loop, quadratic with a tiny constant, beats the buckets.
constexpr size_t kShortPiece = 48;
constexpr int kPositionBits = 6;
static_assert(kShortPiece <= size_t{1} << kPositionBits);
constexpr int32_t kNoKey = std::numeric_limits<int32_t>::max();
// More ranks than any vocabulary has do not fit into the keys of the plain loop.
constexpr int32_t kShortRanksMax = kNoKey >> kPositionBits;
constexpr size_t kKeysAtOnce = 8;  // a search over a whole number of vectors
static_assert(kShortPiece % kKeysAtOnce == 0);

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
  FindJoints(pairs);
}

void PairMerger::FindJoints(const std::vector<Pair>& pairs) {
  // Shorter results first: what a pair joins is known by then, or no text ever holds it.
  std::vector<uint32_t> order(pairs.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
    return LengthOf(pairs[a].joined) < LengthOf(pairs[b].joined);
  });
  std::vector<int32_t> first(lengths_.size(), -1);
  for (size_t symbol = 0; symbol < lengths_.size(); ++symbol) {
    if (lengths_[symbol] == 1) first[symbol] = static_cast<int32_t>(symbol);
  }
  std::vector<int32_t> last = first;
  for (const uint32_t i : order) {
    const Pair& pair = pairs[i];
    const int32_t left = last[static_cast<size_t>(pair.left)];
    const int32_t right = first[static_cast<size_t>(pair.right)];
    if (left < 0 || right < 0) continue;
    joints_.Insert(left, right);
    first[static_cast<size_t>(pair.joined)] = first[static_cast<size_t>(pair.left)];
    last[static_cast<size_t>(pair.joined)] = last[static_cast<size_t>(pair.right)];
  }
}

void PairMerger::Merge(std::span<const int32_t> start, Scratch& scratch,
                       std::vector<int32_t>& out) const {
  const size_t short_max = num_ranks_ <= kShortRanksMax ? kShortPiece : 1;
  while (start.size() > short_max) {
    size_t end = 1;
    while (end < start.size() && Joins(start[end - 1], start[end])) ++end;
    if (end > short_max) {
      MergeLong(start.first(end), scratch, out);
    } else {
      MergeShort(start.first(end), out);
    }
    start = start.subspan(end);
  }
  MergeShort(start, out);
}

void PairMerger::MergeBytes(std::string_view piece, const std::array<int32_t, 256>& unit_of_byte,
                            Scratch& scratch, std::vector<int32_t>& out) const {
  std::vector<int32_t>& start = scratch.start;
  start.clear();
  const bool is_cut = piece.size() > kShortPiece;
  for (const char c : piece) {
    const int32_t unit = unit_of_byte[static_cast<uint8_t>(c)];
    if (is_cut && !start.empty() && !Joins(start.back(), unit)) {
      Merge(start, scratch, out);
      start.clear();
    }
    start.push_back(unit);
  }
  Merge(start, scratch, out);
}

// Parts are linked and stay where they begin; a part that was merged into its left neighbour leaves
// a key that is never the lowest. So each round is one search over an array that does not move, in
// which the lowest key is the leftmost pair of the lowest rank.
void PairMerger::MergeShort(std::span<const int32_t> start, std::vector<int32_t>& out) const {
  std::array<int32_t, kShortPiece> symbols;
  std::array<int32_t, kShortPiece> joined;  // of the pair that begins here
  std::array<int32_t, kShortPiece> keys;    // of the same: rank, then position
  std::array<uint8_t, kShortPiece> before;
  std::array<uint8_t, kShortPiece> after;  // the number of units at the last part
  const size_t num_units = start.size();
  const size_t num_keys = (num_units + kKeysAtOnce - 1) / kKeysAtOnce * kKeysAtOnce;
  std::fill_n(keys.begin(), num_keys, kNoKey);
  const auto look = [&](size_t at) {
    const size_t right = after[at];
    const Pair* pair = right < num_units ? Find(symbols[at], symbols[right]) : nullptr;
    keys[at] = pair == nullptr ? kNoKey : pair->rank << kPositionBits | static_cast<int32_t>(at);
    joined[at] = pair == nullptr ? -1 : pair->joined;
  };
  for (size_t i = 0; i < num_units; ++i) {
    symbols[i] = start[i];
    before[i] = static_cast<uint8_t>(i - 1);
    after[i] = static_cast<uint8_t>(i + 1);
  }
  for (size_t i = 0; i + 1 < num_units; ++i) look(i);
  while (true) {
    int32_t lowest = kNoKey;
    for (size_t i = 0; i < num_keys; ++i) lowest = std::min(lowest, keys[i]);
    if (lowest == kNoKey) break;
    const auto at = static_cast<size_t>(lowest & ((1 << kPositionBits) - 1));
    const size_t gone = after[at];
    keys[gone] = kNoKey;
    symbols[at] = joined[at];
    after[at] = after[gone];
    if (after[at] < num_units) before[after[at]] = static_cast<uint8_t>(at);
    look(at);
    if (at > 0) look(before[at]);
  }
  for (size_t i = 0; i < num_units; i = after[i]) out.push_back(symbols[i]);
}

void PairMerger::AddPair(const Pair* pair, uint32_t position, Scratch& scratch) {
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
  int32_t* const symbols = scratch.symbols.data();
  if (Scratch::Bucket& bucket = scratch.buckets[index]; !bucket.is_sorted) {
    std::sort(bucket.positions.begin() + static_cast<ptrdiff_t>(bucket.num_done),
              bucket.positions.end());
    bucket.is_sorted = true;
  }
  scratch.active_rank = rank;
  const Pair* pair = nullptr;  // of the merge before: most positions of a bucket have the same
  // What the part that was made last forms with its right neighbour is held back: in a run of equal
  // parts the neighbour is merged next, and with it gone that pair would be a position for nothing.
  // Only pairs of a higher rank wait, which are not due before this loop ends.
  const Pair* waiting = nullptr;
  uint32_t waiting_position = 0;
  size_t waiting_end = 0;
  // By index: AddPair may move the buckets.
  while (scratch.open_ranks.front() == rank) {
    const std::optional<uint32_t> taken = TakePosition(scratch.buckets[index]);
    if (!taken.has_value()) break;
    const uint32_t position = *taken;
    const int32_t left = symbols[position];
    if (left < 0) continue;
    const size_t middle = position + LengthOf(left);
    if (middle >= num_units) continue;
    const int32_t right = symbols[middle];
    if (pair == nullptr || pair->left != left || pair->right != right) {
      pair = Find(left, right);
      if (pair != nullptr && pair->rank != rank) pair = nullptr;
    }
    if (pair == nullptr) continue;
    if (waiting_end != position) AddPair(waiting, waiting_position, scratch);
    waiting = nullptr;
    const size_t end = position + LengthOf(pair->joined);
    symbols[position] = pair->joined;
    symbols[middle] = -1;
    symbols[end - 1] = ~static_cast<int32_t>(position);
    if (end < num_units) {
      const Pair* const next = Find(pair->joined, symbols[end]);
      if (next != nullptr && next->rank > rank) {
        waiting = next;
        waiting_position = position;
        waiting_end = end;
      } else {
        AddPair(next, position, scratch);
      }
    }
    if (position > 0) {
      const int32_t before = symbols[position - 1];
      const uint32_t begin = before >= 0 ? position - 1 : static_cast<uint32_t>(~before);
      AddPair(Find(symbols[begin], pair->joined), begin, scratch);
    }
  }
  AddPair(waiting, waiting_position, scratch);
  scratch.active_rank = -1;
}

void PairMerger::MergeLong(std::span<const int32_t> start, Scratch& scratch,
                           std::vector<int32_t>& out) const {
  CONCLAVE_CHECK(start.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  const auto num_units = static_cast<uint32_t>(start.size());
  scratch.bucket_of_rank.resize(static_cast<size_t>(num_ranks_), -1);
  scratch.symbols.assign(start.begin(), start.end());
  for (uint32_t i = 0; i + 1 < num_units; ++i) AddPair(Find(start[i], start[i + 1]), i, scratch);
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
