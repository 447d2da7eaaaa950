#include "conclave/placement/planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <queue>
#include <utility>

#include "conclave/base/status.h"
#include "layer_balance.h"
#include "parts.h"
#include "plan_layout.h"

namespace conclave::placement {
namespace {

// A change for balance has to lower the highest level of its layer by this part.
constexpr double kLeastGain = 0.002;
// Changes after packing: until a layer is this level, or so many. What is left to gain is less than
// the loads are known.
constexpr double kLevelEnough = 1.005;
constexpr int kPolishMax = 24;

class Planner {
 public:
  Planner(const PlanLayout& layout, const PlanOptions& options)
      : layout_(layout), options_(options), total_levels_(layout.num_workers(), 0) {}

  // Builds layers_ from nothing.
  void PackAll();
  // Builds layers_ from `current`; false when some expert has none.
  bool Adopt(std::span<const Replica> current);
  void Repair();
  void Balance();
  // Takes over the full plan `other`, its workers named so that most replicas stay where they are.
  void AdoptRelabelled(const Planner& other, std::span<const Replica> current);

  double MeanRatio() const;
  Plan Result(std::span<const Replica> current) const;
  int32_t num_replicas() const;
  std::vector<double> LevelShares() const;
  double RatioWith(std::span<const double> shares) const;

 private:
  std::vector<int32_t> Counts(const LayerBalance& balance, size_t layer) const;
  void Pack(size_t layer);
  void AddPins(size_t layer, LayerBalance& balance) const;
  // Frees a place for `expert` by moving another replica out of its way; the bin, or -1.
  static int32_t MakeRoom(LayerBalance& balance, int32_t expert);
  // Of layers that were adopted: a worker takes as many replicas as its memory holds, but no more
  // of one layer than its share while `by_share`.
  void SetCapacities(size_t layer, bool by_share);
  void CountHeld();
  // Where the `round`-th replica of an expert goes, at the price of another's surplus if need be;
  // -1: nowhere.
  int32_t FindPlace(size_t layer, int32_t expert, int32_t round);
  // Gives up one replica that its expert has beyond `keep`, on a worker without `expert`; the
  // worker, or -1.
  int32_t Evict(size_t layer, int32_t expert, int32_t keep);
  int32_t EvictFrom(size_t layer, int32_t worker, int32_t keep);
  void CountLevels(const LayerBalance& balance, double sign);

  const PlanLayout& layout_;
  const PlanOptions& options_;
  std::vector<int64_t> held_;         // replicas per worker, by CountHeld
  std::vector<double> total_levels_;  // per worker, over the layers packed so far
  std::vector<LayerBalance> layers_;
};

// Replicas per expert: the common number, then one at a time for the expert whose replicas carry
// most.
std::vector<int32_t> Planner::Counts(const LayerBalance& balance, size_t layer) const {
  const int32_t num_experts = balance.num_experts();
  const int32_t workers = layout_.NumTaking(layer);
  std::vector<int32_t> counts(Index(num_experts), layout_.Replication(layer));
  using Hot = std::pair<double, int32_t>;  // share, minus the expert: the lower id first on ties
  std::priority_queue<Hot> hot;
  for (int32_t e = 0; e < num_experts; ++e) {
    hot.emplace(layout_.load(layer, e) / counts[Index(e)], -e);
  }
  int32_t open = layout_.WantedReplicas(layer) - layout_.Replication(layer) * num_experts;
  while (open > 0 && !hot.empty()) {
    const int32_t e = -hot.top().second;
    hot.pop();
    if (counts[Index(e)] < workers) {
      ++counts[Index(e)];
      --open;
      hot.emplace(layout_.load(layer, e) / counts[Index(e)], -e);
    }
  }
  return counts;
}

void Planner::AddPins(size_t layer, LayerBalance& balance) const {
  for (const auto& [expert, worker] : layout_.pins(layer)) {
    if (!balance.Holds(worker, expert)) {
      balance.Add(expert, worker);
    }
    balance.Pin(expert, worker);
  }
}

int32_t Planner::MakeRoom(LayerBalance& balance, int32_t expert) {
  for (int32_t b = 0; b < static_cast<int32_t>(balance.bins().size()); ++b) {
    if (!balance.bins()[Index(b)].takes_experts || balance.Holds(b, expert)) {
      continue;
    }
    for (const int32_t other : balance.bins()[Index(b)].experts) {
      const int32_t to = balance.BestBin(other, balance.ShareOf(other), {}, {});
      if (to >= 0) {
        balance.Remove(other, b);
        balance.Add(other, to);
        return b;
      }
    }
  }
  return -1;
}

void Planner::CountLevels(const LayerBalance& balance, double sign) {
  for (size_t w = 0; w < total_levels_.size(); ++w) {
    total_levels_[w] += sign * balance.bins()[w].level();
  }
}

// Longest processing time first: the replicas that carry most are placed first, each on the least
// loaded worker.
void Planner::Pack(size_t layer) {
  LayerBalance balance = layout_.EmptyLayer(layer);
  const std::vector<int32_t> counts = Counts(balance, layer);
  std::vector<int32_t> order(counts.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> shares(counts.size());
  for (const int32_t e : order) {
    shares[Index(e)] = layout_.load(layer, e) / counts[Index(e)];
  }
  std::sort(order.begin(), order.end(), [by = shares.data()](int32_t a, int32_t b) {
    return by[a] != by[b] ? by[a] > by[b] : a < b;
  });
  AddPins(layer, balance);
  for (const int32_t expert : order) {
    const std::vector<double> affinity = layout_.Affinity(balance, layer, expert);
    while (static_cast<int32_t>(balance.BinsOf(expert).size()) < counts[Index(expert)]) {
      int32_t bin = balance.BestBin(expert, shares[Index(expert)], total_levels_, affinity);
      if (bin < 0) {
        bin = MakeRoom(balance, expert);
      }
      if (bin < 0) {
        break;  // every worker with room holds it
      }
      balance.Add(expert, bin);
    }
  }
  for (int i = 0; i < kPolishMax && balance.Ratio() > kLevelEnough; ++i) {
    const std::optional<Change> change =
        balance.BestChange(layout_.Replication(layer), kLeastGain, options_.hysteresis, 2);
    if (!change.has_value()) {
      break;
    }
    balance.Apply(*change);
  }
  CountLevels(balance, 1);
  layers_.push_back(std::move(balance));
}

void Planner::PackAll() {
  layers_.clear();
  for (size_t l = 0; l < layout_.num_layers(); ++l) {
    Pack(l);
  }
}

bool Planner::Adopt(std::span<const Replica> current) {
  for (size_t l = 0; l < layout_.num_layers(); ++l) {
    layers_.push_back(layout_.EmptyLayer(l));
  }
  for (const Replica& replica : current) {
    const int32_t worker = layout_.WorkerIndex(replica.worker);
    const auto at = layout_.Find(replica.unit);
    if (worker >= 0 && at.has_value() && layout_.worker(worker).takes_experts &&
        !layers_[at->first].Holds(worker, at->second)) {
      layers_[at->first].Add(at->second, worker);
    }
  }
  return std::all_of(layers_.begin(), layers_.end(), [](const LayerBalance& balance) {
    for (int32_t e = 0; e < balance.num_experts(); ++e) {
      if (balance.BinsOf(e).empty()) {
        return false;
      }
    }
    return true;
  });
}

void Planner::CountHeld() {
  held_.assign(layout_.num_workers(), 0);
  for (const LayerBalance& balance : layers_) {
    for (size_t w = 0; w < layout_.num_workers(); ++w) {
      held_[w] += static_cast<int64_t>(balance.bins()[w].experts.size());
    }
  }
}

void Planner::SetCapacities(size_t layer, bool by_share) {
  for (size_t w = 0; w < layout_.num_workers(); ++w) {
    const auto of_layer = static_cast<int64_t>(layers_[layer].bins()[w].experts.size());
    const int64_t free = std::max<int64_t>(0, layout_.memory(w) - held_[w]);
    const int64_t share = std::max<int64_t>(0, layout_.slots(layer, w) - of_layer);
    layers_[layer].SetCapacity(
        static_cast<int32_t>(w),
        static_cast<int32_t>(of_layer + (by_share ? std::min(free, share) : free)));
  }
}

int32_t Planner::EvictFrom(size_t layer, int32_t worker, int32_t keep) {
  LayerBalance& balance = layers_[layer];
  int32_t victim = -1;
  for (const int32_t e : balance.bins()[Index(worker)].experts) {
    if (static_cast<int32_t>(balance.BinsOf(e).size()) > keep && !balance.IsPinned(worker, e) &&
        (victim < 0 || balance.ShareOf(e) < balance.ShareOf(victim))) {
      victim = e;
    }
  }
  if (victim >= 0) {
    balance.Remove(victim, worker);
  }
  return victim;
}

int32_t Planner::Evict(size_t layer, int32_t expert, int32_t keep) {
  // The expert's own layer first: its balance is what is being mended.
  for (size_t i = 0; i < layers_.size(); ++i) {
    const size_t l = (layer + i) % layers_.size();
    for (int32_t w = 0; w < static_cast<int32_t>(layout_.num_workers()); ++w) {
      if (layout_.worker(w).takes_experts && !layers_[layer].Holds(w, expert) &&
          EvictFrom(l, w, keep) >= 0) {
        return w;
      }
    }
  }
  return -1;
}

int32_t Planner::FindPlace(size_t layer, int32_t expert, int32_t round) {
  const double share = layout_.load(layer, expert) / round;
  const std::vector<double> affinity = layout_.Affinity(layers_[layer], layer, expert);
  CountHeld();
  for (const bool by_share : {true, false}) {
    SetCapacities(layer, by_share);
    const int32_t bin = layers_[layer].BestBin(expert, share, total_levels_, affinity);
    if (bin >= 0) {
      return bin;
    }
  }
  const int32_t bin = MakeRoom(layers_[layer], expert);
  return bin >= 0 ? bin : Evict(layer, expert, round);
}

void Planner::Repair() {
  for (const LayerBalance& balance : layers_) {
    CountLevels(balance, 1);
  }
  for (size_t l = 0; l < layers_.size(); ++l) {
    LayerBalance& balance = layers_[l];
    CountLevels(balance, -1);
    AddPins(l, balance);
    // Experts without any replica first, whatever they carry.
    for (int32_t round = 1; round <= layout_.Replication(l); ++round) {
      for (int32_t e = 0; e < balance.num_experts(); ++e) {
        if (static_cast<int32_t>(balance.BinsOf(e).size()) >= round) {
          continue;
        }
        if (const int32_t bin = FindPlace(l, e, round); bin >= 0) {
          balance.Add(e, bin);
        }
      }
    }
    CountLevels(balance, 1);
  }
}

int32_t Planner::num_replicas() const {
  return std::accumulate(
      layers_.begin(), layers_.end(), 0,
      [](int32_t sum, const LayerBalance& balance) { return sum + balance.num_replicas(); });
}

void Planner::Balance() {
  const auto by_bytes =
      static_cast<double>(options_.move_bytes) / static_cast<double>(layout_.unit_bytes());
  auto budget = static_cast<int32_t>(
      std::max(1.0, std::floor(std::min(options_.move_share * num_replicas(), by_bytes))));
  // The worst layer first; one that cannot be bettered leaves the queue.
  using Entry = std::pair<double, size_t>;
  std::priority_queue<Entry> worst;
  CountHeld();
  for (size_t l = 0; l < layers_.size(); ++l) {
    worst.emplace(layers_[l].Ratio(), l);
  }
  while (budget > 0 && !worst.empty()) {
    const size_t l = worst.top().second;
    worst.pop();
    SetCapacities(l, true);
    const std::optional<Change> change = layers_[l].BestChange(
        layout_.Replication(l), kLeastGain,
        layers_[l].num_replicas() < layout_.WantedReplicas(l) ? kLeastGain : options_.hysteresis,
        budget);
    if (!change.has_value()) {
      continue;
    }
    layers_[l].Apply(*change);
    if (change->kind == Change::Kind::kMove) {
      --held_[Index(change->from)];
      ++held_[Index(change->to)];
    } else if (change->kind == Change::Kind::kReplicate && change->other < 0) {
      ++held_[Index(change->to)];
    }
    budget -= change->num_moves;
    worst.emplace(layers_[l].Ratio(), l);
  }
}

void Planner::AdoptRelabelled(const Planner& other, std::span<const Replica> current) {
  Planner held(layout_, options_);
  (void)held.Adopt(current);
  layers_.clear();
  const size_t num_workers = layout_.num_workers();
  for (size_t l = 0; l < layout_.num_layers(); ++l) {
    const LayerBalance& full = other.layers_[l];
    // How many replicas stay when the contents of bin `from` go to worker `to`.
    std::vector<std::pair<int32_t, std::pair<size_t, size_t>>> overlaps;
    for (size_t from = 0; from < num_workers; ++from) {
      for (size_t to = 0; to < num_workers; ++to) {
        const PlanWorker& a = layout_.worker(static_cast<int32_t>(from));
        const PlanWorker& b = layout_.worker(static_cast<int32_t>(to));
        const bool is_alike = a.speed == b.speed && a.host == b.host &&
                              a.takes_experts == b.takes_experts &&
                              layout_.slots(l, from) == layout_.slots(l, to);
        if (from != to && (!is_alike || !layout_.pins(l).empty())) {
          continue;
        }
        const std::vector<int32_t>& experts = full.bins()[from].experts;
        const auto stay =
            static_cast<int32_t>(std::count_if(experts.begin(), experts.end(), [&](int32_t e) {
              return held.layers_[l].Holds(static_cast<int32_t>(to), e);
            }));
        overlaps.push_back({-stay, {from, to}});
      }
    }
    std::sort(overlaps.begin(), overlaps.end());
    std::vector<size_t> name_of(num_workers, num_workers);
    std::vector<bool> is_taken(num_workers, false);
    for (const auto& [stay, pair] : overlaps) {
      if (name_of[pair.first] == num_workers && !is_taken[pair.second]) {
        name_of[pair.first] = pair.second;
        is_taken[pair.second] = true;
      }
    }
    LayerBalance balance = layout_.EmptyLayer(l);
    for (size_t from = 0; from < num_workers; ++from) {
      for (const int32_t expert : full.bins()[from].experts) {
        balance.Add(expert, static_cast<int32_t>(name_of[from]));
      }
    }
    layers_.push_back(std::move(balance));
  }
}

double Planner::MeanRatio() const {
  if (layers_.empty()) {
    return 1.0;
  }
  double sum = 0;
  for (const LayerBalance& balance : layers_) {
    const double ratio = balance.Ratio();
    if (ratio == 0) {
      return 0;
    }
    sum += ratio;
  }
  return sum / static_cast<double>(layers_.size());
}

Plan Planner::Result(std::span<const Replica> current) const {
  std::vector<std::pair<ExpertUnit, WorkerId>> held;
  held.reserve(current.size());
  for (const Replica& replica : current) {
    held.emplace_back(replica.unit, replica.worker);
  }
  std::sort(held.begin(), held.end());
  Plan plan;
  plan.ratio_after = MeanRatio();
  plan.replicas.reserve(Index(num_replicas()));
  auto at = held.begin();  // moves along with the units, which ascend too
  for (size_t l = 0; l < layers_.size(); ++l) {
    for (int32_t e = 0; e < layers_[l].num_experts(); ++e) {
      const PlanUnit& unit = layout_.unit(l, e);
      at = std::find_if(at, held.end(), [&](const auto& h) { return h.first >= unit.unit; });
      const auto end =
          std::find_if(at, held.end(), [&](const auto& h) { return h.first != unit.unit; });
      int32_t missing = layout_.Replication(l);
      for (auto it = at; it != end; ++it) {
        const int32_t worker = layout_.WorkerIndex(it->second);
        missing -= worker >= 0 && layout_.worker(worker).takes_experts ? 1 : 0;
      }
      for (const int32_t bin : layers_[l].BinsOf(e)) {
        const WorkerId worker = layout_.worker(bin).id;
        plan.replicas.push_back({unit.unit, worker});
        if (std::any_of(at, end, [worker](const auto& h) { return h.second == worker; })) {
          continue;
        }
        const bool is_pinned = std::find(layout_.pins(l).begin(), layout_.pins(l).end(),
                                         std::pair{e, bin}) != layout_.pins(l).end();
        plan.bytes_loaded += unit.bytes;
        if (missing-- > 0 || is_pinned) {
          ++plan.num_replicas_needed;
        } else {
          ++plan.num_replicas_moved;
        }
      }
    }
  }
  return plan;
}

// Level-by-level filling: every unit shifts load from its most to its least loaded holder until
// nothing is gained. A few rounds bring the peak within a percent of where more would.
std::vector<double> Planner::LevelShares() const {
  constexpr int kRounds = 32;
  std::vector<double> shares;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerBalance& balance = layers_[l];
    std::vector<double> load(balance.bins().size(), 0);
    std::vector<std::vector<double>> part(Index(balance.num_experts()));
    for (int32_t e = 0; e < balance.num_experts(); ++e) {
      part[Index(e)].assign(balance.BinsOf(e).size(), balance.ShareOf(e));
      for (const int32_t bin : balance.BinsOf(e)) {
        load[Index(bin)] += balance.ShareOf(e);
      }
    }
    for (int round = 0; round < kRounds; ++round) {
      for (int32_t e = 0; e < balance.num_experts(); ++e) {
        const std::span<const int32_t> bins = balance.BinsOf(e);
        size_t high = 0;
        size_t low = 0;
        const auto level = [&](size_t i) {
          return load[Index(bins[i])] / balance.bins()[Index(bins[i])].speed;
        };
        for (size_t i = 1; i < bins.size(); ++i) {
          high = part[Index(e)][i] > 0 && level(i) > level(high) ? i : high;
          low = level(i) < level(low) ? i : low;
        }
        const double from_speed = balance.bins()[Index(bins[high])].speed;
        const double to_speed = balance.bins()[Index(bins[low])].speed;
        // What levels the two.
        const double shift =
            std::min(part[Index(e)][high],
                     (level(high) - level(low)) * from_speed * to_speed / (from_speed + to_speed));
        if (high != low && shift > 0) {
          part[Index(e)][high] -= shift;
          part[Index(e)][low] += shift;
          load[Index(bins[high])] -= shift;
          load[Index(bins[low])] += shift;
        }
      }
    }
    for (int32_t e = 0; e < balance.num_experts(); ++e) {
      for (const double amount : part[Index(e)]) {
        shares.push_back(amount / layout_.load(l, e));
      }
    }
  }
  return shares;
}

double Planner::RatioWith(std::span<const double> shares) const {
  if (shares.empty() || MeanRatio() == 0) {
    return MeanRatio();
  }
  double sum = 0;
  size_t next = 0;
  for (size_t l = 0; l < layers_.size(); ++l) {
    const LayerBalance& balance = layers_[l];
    std::vector<double> load(balance.bins().size(), 0);
    double total = 0;
    for (int32_t e = 0; e < balance.num_experts(); ++e) {
      for (const int32_t bin : balance.BinsOf(e)) {
        load[Index(bin)] += layout_.load(l, e) * shares[next++];
      }
      total += layout_.load(l, e);
    }
    double peak = 0;
    double speed = 0;
    for (size_t b = 0; b < load.size(); ++b) {
      peak = std::max(peak, load[b] / balance.bins()[b].speed);
      speed += balance.bins()[b].takes_experts ? balance.bins()[b].speed : 0;
    }
    sum += peak * speed / total;
  }
  return sum / static_cast<double>(layers_.size());
}

}  // namespace

absl::StatusOr<Plan> PlanFull(const PlanProblem& problem, const PlanOptions& options) {
  PlanLayout layout(problem, options);
  CONCLAVE_RETURN_IF_ERROR(layout.Prepare());
  Planner planner(layout, options);
  planner.PackAll();
  Plan plan = planner.Result({});
  plan.is_full = true;
  return plan;
}

absl::StatusOr<Plan> PlanIncremental(const PlanProblem& problem, std::span<const Replica> current,
                                     const PlanOptions& options) {
  PlanLayout layout(problem, options);
  CONCLAVE_RETURN_IF_ERROR(layout.Prepare());
  Planner planner(layout, options);
  const bool is_covered = planner.Adopt(current);
  const double before = is_covered ? planner.MeanRatio() : 0;
  planner.Repair();
  planner.Balance();
  Plan plan = planner.Result(current);
  // What is missing is brought back with as few loads as can be; balance waits for the next plan.
  // No plan is better than 1, so most need no comparison.
  const bool may_be_full = plan.ratio_after == 0 || (plan.num_replicas_needed == 0 &&
                                                     plan.ratio_after > options.full_factor);
  if (may_be_full) {
    Planner full(layout, options);
    full.PackAll();
    if (plan.ratio_after == 0 || plan.ratio_after > options.full_factor * full.MeanRatio()) {
      planner.AdoptRelabelled(full, current);
      plan = planner.Result(current);
      plan.is_full = true;
    }
  }
  plan.ratio_before = before;
  return plan;
}

std::vector<double> SplitShares(const PlanProblem& problem, std::span<const Replica> replicas) {
  const PlanOptions options;
  PlanLayout layout(problem, options);
  if (!layout.Prepare().ok()) {
    return std::vector<double>(replicas.size(), 0);
  }
  Planner planner(layout, options);
  return planner.Adopt(replicas) ? planner.LevelShares() : std::vector<double>(replicas.size(), 0);
}

double ImbalanceOf(const PlanProblem& problem, std::span<const Replica> replicas,
                   std::span<const double> shares) {
  const PlanOptions options;
  PlanLayout layout(problem, options);
  if (!layout.Prepare().ok()) {
    return 0;
  }
  Planner planner(layout, options);
  return planner.Adopt(replicas) ? planner.RatioWith(shares) : 0;
}

}  // namespace conclave::placement
