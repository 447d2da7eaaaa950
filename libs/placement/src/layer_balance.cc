#include "layer_balance.h"

#include <algorithm>
#include <limits>

#include "conclave/base/check.h"

namespace conclave::placement {
namespace {

// Levels this close count as equal where something else can decide.
constexpr double kAlike = 1.02;

}  // namespace

LayerBalance::LayerBalance(std::vector<double> loads, std::vector<Bin> bins)
    : loads_(std::move(loads)),
      bins_(std::move(bins)),
      holders_(loads_.size()),
      shares_(loads_),
      is_held_(loads_.size() * bins_.size(), 0) {
  for (Bin& bin : bins_) {
    Refresh(bin);
  }
}

void LayerBalance::Add(int32_t expert, int32_t bin) {
  CONCLAVE_CHECK(!Holds(bin, expert));
  auto& holders = holders_[Index(expert)];
  const double load = loads_[Index(expert)];
  const auto count = static_cast<double>(holders.size());
  for (const int32_t holder : holders) {
    bins_[Index(holder)].load += load / (count + 1) - load / count;
    Refresh(bins_[Index(holder)]);
  }
  holders.push_back(bin);
  bins_[Index(bin)].load += load / (count + 1);
  bins_[Index(bin)].experts.push_back(expert);
  Refresh(bins_[Index(bin)]);
  shares_[Index(expert)] = load / (count + 1);
  HeldBy(expert)[bin] = 1;
  ++num_replicas_;
}

void LayerBalance::Remove(int32_t expert, int32_t bin) {
  CONCLAVE_CHECK(Holds(bin, expert));
  auto& holders = holders_[Index(expert)];
  const double load = loads_[Index(expert)];
  const auto count = static_cast<double>(holders.size());
  holders.erase(std::find(holders.begin(), holders.end(), bin));
  bins_[Index(bin)].load -= load / count;
  std::vector<int32_t>& experts = bins_[Index(bin)].experts;
  experts.erase(std::find(experts.begin(), experts.end(), expert));
  Refresh(bins_[Index(bin)]);
  shares_[Index(expert)] = load / std::max(1.0, count - 1);
  HeldBy(expert)[bin] = 0;
  --num_replicas_;
  for (const int32_t holder : holders) {
    bins_[Index(holder)].load += load / (count - 1) - load / count;
    Refresh(bins_[Index(holder)]);
  }
}

int32_t LayerBalance::BestBin(int32_t expert, double share, std::span<const double> total_levels,
                              std::span<const double> affinity) const {
  const auto& holders = holders_[Index(expert)];
  const auto on_known_host = [&](const Bin& bin) {
    return std::any_of(holders.begin(), holders.end(),
                       [&](int32_t h) { return bins_[Index(h)].host == bin.host; });
  };
  const bool on_one_host =
      !holders.empty() && std::all_of(holders.begin(), holders.end(), [&](int32_t h) {
        return bins_[Index(h)].host == bins_[Index(holders[0])].host;
      });
  if (!on_one_host) {
    return LeastLoadedBin(expert, share, total_levels, affinity);
  }
  int32_t best = -1;
  bool best_is_new_host = false;
  double best_level = 0;
  for (int32_t b = 0; b < num_bins(); ++b) {
    const Bin& bin = bins_[Index(b)];
    if (!bin.has_room() || Holds(b, expert)) {
      continue;
    }
    const bool is_new_host = !on_known_host(bin);
    const double level = (bin.load + share) / bin.speed;
    bool is_better = best < 0 || (is_new_host && !best_is_new_host);
    if (!is_better && is_new_host == best_is_new_host) {
      if (level > best_level * kAlike || best_level > level * kAlike) {
        is_better = level < best_level;
      } else {
        const double gain = affinity.empty() ? 0 : affinity[Index(b)] - affinity[Index(best)];
        is_better = gain > 0 || (gain == 0 && !total_levels.empty() &&
                                 total_levels[Index(b)] < total_levels[Index(best)]);
      }
    }
    if (is_better) {
      best = b;
      best_is_new_host = is_new_host;
      best_level = level;
    }
  }
  return best;
}

// The planner's innermost loop, and so by pointers: the library checks every index. The level to
// beat is multiplied out once for each new best bin.
int32_t LayerBalance::LeastLoadedBin(int32_t expert, double share,
                                     std::span<const double> total_levels,
                                     std::span<const double> affinity) const {
  const Bin* bins = bins_.data();
  const uint8_t* is_held = HeldBy(expert);
  int32_t best = -1;
  double best_level = 0;
  double too_high = std::numeric_limits<double>::infinity();
  for (int32_t b = 0; b < num_bins(); ++b) {
    if (bins[b].room <= 0 || is_held[b] != 0) {
      continue;
    }
    const double level = (bins[b].load + share) / bins[b].speed;
    if (level > too_high) {
      continue;
    }
    if (best >= 0 && best_level <= level * kAlike) {
      const double gain = affinity.empty() ? 0 : affinity[Index(b)] - affinity[Index(best)];
      if (gain < 0 || (gain == 0 && (total_levels.empty() ||
                                     total_levels[Index(b)] >= total_levels[Index(best)]))) {
        continue;
      }
    }
    best = b;
    best_level = level;
    too_high = level * kAlike;
  }
  return best;
}

double LayerBalance::Ratio() const {
  double peak = 0;
  double load = 0;
  double speed = 0;
  for (const auto& holders : holders_) {
    if (holders.empty()) {
      return 0;
    }
  }
  for (const Bin& bin : bins_) {
    peak = std::max(peak, bin.level());
    load += bin.load;
    speed += bin.takes_experts ? bin.speed : 0;
  }
  return peak * speed / load;
}

int32_t LayerBalance::HighestBin() const {
  int32_t highest = 0;
  double level = bins_[0].level();
  for (int32_t b = 1; b < num_bins(); ++b) {
    if (const double other = bins_[Index(b)].level(); other > level) {
      highest = b;
      level = other;
    }
  }
  return highest;
}

bool LayerBalance::KeepsHosts(int32_t expert, int32_t from, int32_t to) const {
  const auto& holders = holders_[Index(expert)];
  const int32_t lost = bins_[Index(from)].host;
  const int32_t won = bins_[Index(to)].host;
  if (holders.size() < 2 || lost == won) {
    return true;
  }
  // Two hosts stay when another replica stands elsewhere than the new one, or all shared one host
  // before.
  return std::any_of(holders.begin(), holders.end(),
                     [&](int32_t h) { return h != from && bins_[Index(h)].host != won; });
}

void LayerBalance::Consider(const Change& change, double now, double least_gain,
                            std::optional<Change>& best) const {
  if (change.peak > now * (1 - least_gain)) {
    return;
  }
  // Most gain per replica that has to be loaded; the first found on ties.
  const auto worth = [now](const Change& c) { return (now - c.peak) / c.num_moves; };
  if (!best.has_value() || worth(change) > worth(*best)) {
    best = change;
  }
}

double LayerBalance::PeakToBeat(double now, int32_t num_moves, double least_gain,
                                const std::optional<Change>& best) {
  const double enough = now * (1 - least_gain);
  return best.has_value() ? std::min(enough, now - (now - best->peak) / best->num_moves * num_moves)
                          : enough;
}

void LayerBalance::TryMoves(int32_t from, int32_t expert, int32_t most_moves, double least_gain,
                            std::optional<Change>& best) const {
  const Bin& high = bins_[Index(from)];
  const double now = high.level();
  const double share = ShareOf(expert);
  const double* shares = shares_.data();
  const Bin* bins = bins_.data();
  const uint8_t* is_held = HeldBy(expert);
  const bool is_alone = holders_[Index(expert)].size() < 2;  // no hosts to keep
  const bool may_swap = most_moves >= 2 && high.takes_experts;
  double beat = PeakToBeat(now, 2, least_gain, best);
  double least = high.load - beat * high.speed;
  const auto consider = [&](const Change& change) {
    Consider(change, now, least_gain, best);
    beat = PeakToBeat(now, 2, least_gain, best);
    least = high.load - beat * high.speed;
  };
  for (int32_t to = 0; to < num_bins(); ++to) {
    const Bin& low = bins[to];
    if (to == from || !low.takes_experts || is_held[to] != 0) {
      continue;
    }
    if (low.has_room() && (is_alone || KeepsHosts(expert, from, to))) {
      const double peak =
          std::max((high.load - share) / high.speed, (low.load + share) / low.speed);
      consider({Change::Kind::kMove, expert, -1, from, to, peak, 1});
    }
    // What a swap may carry over: enough to bring the high one below the peak to beat, not so much
    // as to lift the other above it. Most pairs of workers have nothing in between.
    const double most = beat * low.speed - low.load;
    if (!may_swap || least > most || least > share || !(is_alone || KeepsHosts(expert, from, to))) {
      continue;
    }
    const double floor = least;
    for (const int32_t other : low.experts) {
      const double carried = share - shares[other];
      if (carried < floor || carried > most || carried <= 0 || Holds(from, other) ||
          IsPinned(to, other) || !KeepsHosts(other, to, from)) {
        continue;
      }
      const double peak =
          std::max((high.load - carried) / high.speed, (low.load + carried) / low.speed);
      consider({Change::Kind::kSwap, expert, other, from, to, peak, 2});
    }
  }
}

void LayerBalance::FindSpare(int32_t replication) {
  spare_.clear();
  spare_at_.assign(1, 0);
  spare_share_.assign(bins_.size(), 0);
  for (int32_t b = 0; b < num_bins(); ++b) {
    for (const int32_t e : bins_[Index(b)].experts) {
      if (static_cast<int32_t>(holders_[Index(e)].size()) > replication && !IsPinned(b, e)) {
        spare_.push_back(e);
        spare_share_[Index(b)] = std::max(spare_share_[Index(b)], shares_[Index(e)]);
      }
    }
    spare_at_.push_back(spare_.size());
  }
}

void LayerBalance::TryReplicas(int32_t from, int32_t expert, double replica_gain,
                               std::optional<Change>& best) const {
  const double now = bins_[Index(from)].level();
  const auto count = static_cast<double>(holders_[Index(expert)].size());
  const double share = loads_[Index(expert)] / (count + 1);
  const double eased = loads_[Index(expert)] / count - share;
  // The high one itself stays at least here.
  if ((bins_[Index(from)].load - eased) / bins_[Index(from)].speed >
      PeakToBeat(now, 1, replica_gain, best)) {
    return;
  }
  const Bin* bins = bins_.data();
  const auto* holders = holders_.data();
  const double* shares = shares_.data();
  const double* spare_share = spare_share_.data();
  const uint8_t* is_held = HeldBy(expert);
  const double relieved = (bins[from].load - eased) / bins[from].speed;
  for (int32_t to = 0; to < num_bins(); ++to) {
    const Bin& low = bins[to];
    if (!low.takes_experts || is_held[to] != 0 || low.level() >= now) {
      continue;
    }
    double peak = relieved;
    if (low.has_room()) {
      peak = std::max(peak, (low.load + share) / low.speed);
      Consider({Change::Kind::kReplicate, expert, -1, from, to, peak, 1}, now, replica_gain, best);
      continue;
    }
    // What has to leave it for the change to be worth its while.
    const double beat = PeakToBeat(now, 1, replica_gain, best);
    if (relieved > beat) {
      return;
    }
    const double least_gone = low.load + share - beat * low.speed;
    if (spare_share[to] < least_gone) {
      continue;
    }
    for (size_t i = spare_at_[Index(to)]; i < spare_at_[Index(to) + 1]; ++i) {
      const int32_t other = spare_[i];
      if (shares[other] < least_gone) {
        continue;
      }
      const auto& others = holders[other];
      const auto others_count = static_cast<double>(others.size());
      const double gone = loads_[Index(other)] / others_count;
      const double added = loads_[Index(other)] / (others_count - 1) - gone;
      double after = (low.load + share - gone) / low.speed;
      for (const int32_t h : others) {
        const Bin& bin = bins_[Index(h)];
        const double relief = Holds(h, expert) ? eased : 0;
        after = h == to ? after : std::max(after, (bin.load + added - relief) / bin.speed);
      }
      Consider({Change::Kind::kReplicate, expert, other, from, to, std::max(peak, after), 1}, now,
               replica_gain, best);
    }
  }
}

std::optional<Change> LayerBalance::BestChange(int32_t replication, double least_gain,
                                               double replica_gain, int32_t most_moves) {
  std::optional<Change> best;
  const int32_t from = HighestBin();
  if (most_moves < 1) {
    return best;
  }
  FindSpare(replication);
  for (const int32_t expert : bins_[Index(from)].experts) {
    if (!IsPinned(from, expert)) {
      TryMoves(from, expert, most_moves, least_gain, best);
    }
    TryReplicas(from, expert, replica_gain, best);
  }
  return best;
}

void LayerBalance::Apply(const Change& change) {
  switch (change.kind) {
    case Change::Kind::kMove:
      Remove(change.expert, change.from);
      Add(change.expert, change.to);
      break;
    case Change::Kind::kSwap:
      Remove(change.expert, change.from);
      Remove(change.other, change.to);
      Add(change.expert, change.to);
      Add(change.other, change.from);
      break;
    case Change::Kind::kReplicate:
      if (change.other >= 0) {
        Remove(change.other, change.to);
      }
      Add(change.expert, change.to);
      break;
  }
}

}  // namespace conclave::placement
