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
      is_held_(loads_.size() * bins_.size(), 0) {}

void LayerBalance::Add(int32_t expert, int32_t bin) {
  CONCLAVE_CHECK(!Holds(bin, expert));
  std::vector<int32_t>& holders = holders_[Index(expert)];
  const double load = loads_[Index(expert)];
  const auto count = static_cast<double>(holders.size());
  for (const int32_t holder : holders) {
    bins_[Index(holder)].load += load / (count + 1) - load / count;
  }
  holders.push_back(bin);
  bins_[Index(bin)].load += load / (count + 1);
  bins_[Index(bin)].experts.push_back(expert);
  is_held_[Index(bin) * loads_.size() + Index(expert)] = 1;
  ++num_replicas_;
}

void LayerBalance::Remove(int32_t expert, int32_t bin) {
  CONCLAVE_CHECK(Holds(bin, expert));
  std::vector<int32_t>& holders = holders_[Index(expert)];
  const double load = loads_[Index(expert)];
  const auto count = static_cast<double>(holders.size());
  holders.erase(std::find(holders.begin(), holders.end(), bin));
  bins_[Index(bin)].load -= load / count;
  std::vector<int32_t>& experts = bins_[Index(bin)].experts;
  experts.erase(std::find(experts.begin(), experts.end(), expert));
  is_held_[Index(bin) * loads_.size() + Index(expert)] = 0;
  --num_replicas_;
  for (const int32_t holder : holders) {
    bins_[Index(holder)].load += load / (count - 1) - load / count;
  }
}

int32_t LayerBalance::BestBin(int32_t expert, double share, std::span<const double> total_levels,
                              std::span<const double> affinity) const {
  const std::vector<int32_t>& holders = holders_[Index(expert)];
  const auto on_known_host = [&](const Bin& bin) {
    return std::any_of(holders.begin(), holders.end(),
                       [&](int32_t h) { return bins_[Index(h)].host == bin.host; });
  };
  const bool on_one_host =
      !holders.empty() && std::all_of(holders.begin(), holders.end(), [&](int32_t h) {
        return bins_[Index(h)].host == bins_[Index(holders[0])].host;
      });
  int32_t best = -1;
  bool best_is_new_host = false;
  double best_level = 0;
  for (int32_t b = 0; b < static_cast<int32_t>(bins_.size()); ++b) {
    const Bin& bin = bins_[Index(b)];
    if (!bin.has_room() || Holds(b, expert)) {
      continue;
    }
    const bool is_new_host = on_one_host && !on_known_host(bin);
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

double LayerBalance::Ratio() const {
  double peak = 0;
  double load = 0;
  double speed = 0;
  for (const std::vector<int32_t>& holders : holders_) {
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
  for (int32_t b = 1; b < static_cast<int32_t>(bins_.size()); ++b) {
    if (bins_[Index(b)].level() > bins_[Index(highest)].level()) {
      highest = b;
    }
  }
  return highest;
}

bool LayerBalance::KeepsHosts(int32_t expert, int32_t from, int32_t to) const {
  const std::vector<int32_t>& holders = holders_[Index(expert)];
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
  for (int32_t to = 0; to < static_cast<int32_t>(bins_.size()); ++to) {
    const Bin& low = bins_[Index(to)];
    if (to == from || !low.takes_experts || Holds(to, expert)) {
      continue;
    }
    if (low.has_room() && KeepsHosts(expert, from, to)) {
      const double peak =
          std::max((high.load - share) / high.speed, (low.load + share) / low.speed);
      Consider({Change::Kind::kMove, expert, -1, from, to, peak, 1}, now, least_gain, best);
    }
    // What a swap may carry over: enough to bring the high one below the peak to beat, not so much
    // as to lift the other above it. Most pairs of workers have nothing in between.
    const double beat = PeakToBeat(now, 2, least_gain, best);
    const double least = high.load - beat * high.speed;
    const double most = beat * low.speed - low.load;
    if (most_moves < 2 || !high.takes_experts || least > most || least > share ||
        !KeepsHosts(expert, from, to)) {
      continue;
    }
    for (const int32_t other : low.experts) {
      const double carried = share - ShareOf(other);
      if (carried < least || carried > most || carried <= 0 || Holds(from, other) ||
          IsPinned(to, other) || !KeepsHosts(other, to, from)) {
        continue;
      }
      const double peak =
          std::max((high.load - carried) / high.speed, (low.load + carried) / low.speed);
      Consider({Change::Kind::kSwap, expert, other, from, to, peak, 2}, now, least_gain, best);
    }
  }
}

void LayerBalance::TryReplicas(int32_t from, int32_t expert, int32_t replication,
                               double replica_gain, std::optional<Change>& best) const {
  const double now = bins_[Index(from)].level();
  const std::vector<int32_t>& holders = holders_[Index(expert)];
  const auto count = static_cast<double>(holders.size());
  const double share = loads_[Index(expert)] / (count + 1);
  const double eased = loads_[Index(expert)] / count - share;
  // The high one itself stays at least here.
  if ((bins_[Index(from)].load - eased) / bins_[Index(from)].speed >
      PeakToBeat(now, 1, replica_gain, best)) {
    return;
  }
  for (int32_t to = 0; to < static_cast<int32_t>(bins_.size()); ++to) {
    const Bin& low = bins_[Index(to)];
    if (!low.takes_experts || Holds(to, expert) || low.level() >= now) {
      continue;
    }
    double peak = (bins_[Index(from)].load - eased) / bins_[Index(from)].speed;
    if (low.has_room()) {
      peak = std::max(peak, (low.load + share) / low.speed);
      Consider({Change::Kind::kReplicate, expert, -1, from, to, peak, 1}, now, replica_gain, best);
      continue;
    }
    for (const int32_t other : low.experts) {
      const std::vector<int32_t>& others = holders_[Index(other)];
      const auto others_count = static_cast<double>(others.size());
      if (static_cast<int32_t>(others.size()) <= replication || IsPinned(to, other) ||
          !KeepsHosts(other, to, to)) {
        continue;
      }
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
                                               double replica_gain, int32_t most_moves) const {
  std::optional<Change> best;
  const int32_t from = HighestBin();
  if (most_moves < 1) {
    return best;
  }
  for (const int32_t expert : bins_[Index(from)].experts) {
    if (!IsPinned(from, expert)) {
      TryMoves(from, expert, most_moves, least_gain, best);
    }
    TryReplicas(from, expert, replication, replica_gain, best);
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
