// One MoE layer while it is planned: which expert stands on which worker, and what that loads them
// with.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "parts.h"

namespace conclave::placement {

// A worker as one layer sees it. Loads are in units of speed 1.
struct Bin {
  double speed = 1.0;
  int32_t host = 0;
  int32_t capacity = 0;  // replicas of this layer
  bool takes_experts = true;
  double load = 0;
  std::vector<int32_t> experts;
  // Kept by LayerBalance: what is asked for far more often than it changes.
  int32_t room = 0;  // replicas that it still takes
  double load_by_speed = 0;

  bool has_room() const { return room > 0; }
  double level() const { return load_by_speed; }
};

// A change that lowers the level of the highest bin.
struct Change {
  enum class Kind { kMove, kSwap, kReplicate };
  Kind kind = Kind::kMove;
  int32_t expert = 0;  // leaves `from` (kMove, kSwap) or gets a further replica (kReplicate)
  int32_t other = -1;  // kSwap: comes back; kReplicate: gives up its place, -1 for a free one
  int32_t from = 0;    // the highest bin
  int32_t to = 0;
  double peak = 0;  // the highest level of the bins concerned, after it
  int32_t num_moves = 1;
};

class LayerBalance {
 public:
  // loads[e] of the layer's experts, all > 0.
  LayerBalance(std::vector<double> loads, std::vector<Bin> bins);

  const std::vector<Bin>& bins() const { return bins_; }
  int32_t num_experts() const { return static_cast<int32_t>(loads_.size()); }
  int32_t num_replicas() const { return num_replicas_; }
  std::span<const int32_t> BinsOf(int32_t expert) const { return holders_[Index(expert)]; }
  // Of an expert that has a replica.
  double ShareOf(int32_t expert) const { return shares_[Index(expert)]; }
  bool Holds(int32_t bin, int32_t expert) const { return HeldBy(expert)[bin] != 0; }
  bool IsPinned(int32_t bin, int32_t expert) const { return HeldBy(expert)[bin] == 2; }
  // A pinned replica neither moves nor gives up its place.
  void Pin(int32_t expert, int32_t bin) { HeldBy(expert)[bin] = 2; }

  void SetCapacity(int32_t bin, int32_t capacity) {
    bins_[Index(bin)].capacity = capacity;
    Refresh(bins_[Index(bin)]);
  }
  void Add(int32_t expert, int32_t bin);
  void Remove(int32_t expert, int32_t bin);

  // Where a further replica of `expert` is best put: a bin with room that does not hold it, on a
  // new host while its replicas share one, the least level after it. `total_levels` and `affinity`
  // (may be empty, per bin) decide among levels within two percent. -1 when there is none.
  int32_t BestBin(int32_t expert, double share, std::span<const double> total_levels,
                  std::span<const double> affinity) const;

  // max / mean of levels over bins that take experts; 0 when an expert has no replica.
  double Ratio() const;
  // The change that lowers the peak most per move, by at least `least_gain` of it (a further
  // replica: by `replica_gain`), with at most `most_moves`; nullopt when there is none. Experts
  // keep `replication` replicas.
  std::optional<Change> BestChange(int32_t replication, double least_gain, double replica_gain,
                                   int32_t most_moves);
  void Apply(const Change& change);

 private:
  // Per bin: 0, 1, 2 pinned.
  const uint8_t* HeldBy(int32_t expert) const {
    return is_held_.data() + Index(expert) * bins_.size();
  }
  uint8_t* HeldBy(int32_t expert) { return is_held_.data() + Index(expert) * bins_.size(); }
  int32_t num_bins() const { return static_cast<int32_t>(bins_.size()); }
  static void Refresh(Bin& bin) {
    bin.load_by_speed = bin.load / bin.speed;
    bin.room = bin.takes_experts ? bin.capacity - static_cast<int32_t>(bin.experts.size()) : 0;
  }
  // Of BestBin: among all bins, where no host is to be preferred.
  int32_t LeastLoadedBin(int32_t expert, double share, std::span<const double> total_levels,
                         std::span<const double> affinity) const;
  // Whether the replicas of `expert` would still be on two hosts, or on as many as now, after one
  // goes `from` → `to`.
  bool KeepsHosts(int32_t expert, int32_t from, int32_t to) const;
  int32_t HighestBin() const;
  void TryMoves(int32_t from, int32_t expert, int32_t most_moves, double least_gain,
                std::optional<Change>& best) const;
  void TryReplicas(int32_t from, int32_t expert, double replica_gain,
                   std::optional<Change>& best) const;
  // Of every bin the replicas that may give up their place, into spare_.
  void FindSpare(int32_t replication);
  // A change of `num_moves` replicas that leaves the peak above this gains too little, or less per
  // move than `best`.
  static double PeakToBeat(double now, int32_t num_moves, double least_gain,
                           const std::optional<Change>& best);
  void Consider(const Change& change, double now, double least_gain,
                std::optional<Change>& best) const;

  std::vector<double> loads_;
  std::vector<Bin> bins_;
  // Per expert, bins in order of arrival; most experts have few.
  std::vector<absl::InlinedVector<int32_t, 4>> holders_;
  std::vector<double> shares_;    // per expert: its load over its replicas, as asked for often
  std::vector<uint8_t> is_held_;  // [experts][bins]: a search looks at one expert over all bins
  int32_t num_replicas_ = 0;
  // Of BestChange: the experts of a bin b are spare_[spare_at_[b] .. spare_at_[b + 1]).
  std::vector<int32_t> spare_;
  std::vector<size_t> spare_at_;
  std::vector<double> spare_share_;  // per bin, the largest of them
};

}  // namespace conclave::placement
