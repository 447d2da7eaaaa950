#include "planning.h"

#include <algorithm>
#include <set>
#include <utility>

namespace conclave::router_service {
namespace {

using placement::PlanProblem;
using placement::PlanUnit;
using placement::PlanWorker;

bool Contains(const std::vector<WorkerId>& workers, WorkerId worker) {
  return std::find(workers.begin(), workers.end(), worker) != workers.end();
}

int32_t NumTaking(const PlanProblem& problem) {
  return static_cast<int32_t>(std::count_if(problem.workers.begin(), problem.workers.end(),
                                            [](const PlanWorker& w) { return w.takes_experts; }));
}

// Room and hosts while replicas are added one by one.
class Rooms {
 public:
  Rooms(const PlanProblem& problem, const ReplicaMap& goal) : problem_(problem) {
    for (const PlanWorker& worker : problem.workers) {
      free_[worker.id] = worker.takes_experts ? worker.memory_bytes : 0;
      host_[worker.id] = worker.host;
    }
    for (const PlanUnit& unit : problem.units) {
      bytes_[unit.unit] = unit.bytes;
    }
    for (const auto& [unit, workers] : goal) {
      for (const WorkerId worker : workers) {
        free_[worker] -= bytes_[unit];
      }
    }
  }

  // Adds `unit` to the worker with most room, on another host than its replicas where that is
  // possible; false when nobody has room.
  bool AddReplica(ExpertUnit unit, std::vector<WorkerId>& workers) {
    const PlanWorker* best = nullptr;
    bool best_is_apart = false;
    for (const PlanWorker& worker : problem_.workers) {
      if (!worker.takes_experts || Contains(workers, worker.id) ||
          free_[worker.id] < bytes_[unit]) {
        continue;
      }
      const bool is_apart = std::none_of(workers.begin(), workers.end(), [&](WorkerId other) {
        return host_[other] == worker.host;
      });
      if (best == nullptr ||
          std::pair(is_apart, free_[worker.id]) > std::pair(best_is_apart, free_[best->id])) {
        best = &worker;
        best_is_apart = is_apart;
      }
    }
    if (best == nullptr) {
      return false;
    }
    workers.push_back(best->id);
    free_[best->id] -= bytes_[unit];
    return true;
  }
  void Drop(ExpertUnit unit, WorkerId worker) { free_[worker] += bytes_[unit]; }
  int64_t FreeOf(WorkerId worker) const {
    const auto it = free_.find(worker);
    return it == free_.end() ? 0 : it->second;
  }
  bool IsWithinMemory() const {
    return std::all_of(problem_.workers.begin(), problem_.workers.end(), [&](const PlanWorker& w) {
      return !w.takes_experts || free_.at(w.id) >= 0;
    });
  }

 private:
  const PlanProblem& problem_;
  std::map<WorkerId, int64_t> free_;
  std::map<WorkerId, int32_t> host_;
  std::map<ExpertUnit, int64_t> bytes_;
};

std::set<WorkerId> Taking(const PlanProblem& problem) {
  std::set<WorkerId> taking;
  for (const PlanWorker& worker : problem.workers) {
    if (worker.takes_experts) {
      taking.insert(worker.id);
    }
  }
  return taking;
}

// `current` without workers that do not take experts.
ReplicaMap Staying(const PlanInput& input) {
  const std::set<WorkerId> taking = Taking(input.problem);
  ReplicaMap staying;
  for (const PlanUnit& unit : input.problem.units) {
    std::vector<WorkerId>& workers = staying[unit.unit];
    if (const auto it = input.current.find(unit.unit); it != input.current.end()) {
      std::copy_if(it->second.begin(), it->second.end(), std::back_inserter(workers),
                   [&](WorkerId worker) { return taking.contains(worker); });
    }
  }
  return staying;
}

bool IsPinned(const PlanInput& input, ExpertUnit unit, WorkerId worker) {
  return std::any_of(
      input.problem.pins.begin(), input.problem.pins.end(),
      [&](const placement::PlanPin& pin) { return pin.unit == unit && pin.worker == worker; });
}

// Round by round, so that every expert has one replica before any has two.
ReplicaMap FillWhatFits(const PlanInput& input) {
  ReplicaMap goal = Staying(input);
  Rooms rooms(input.problem, goal);
  int32_t most = 1;
  for (const auto& [unit, workers] : goal) {
    most = std::max(most, WantedReplicas(input, unit));
  }
  for (int32_t round = 1; round <= most; ++round) {
    for (auto& [unit, workers] : goal) {
      if (static_cast<int32_t>(workers.size()) < std::min(round, WantedReplicas(input, unit))) {
        (void)rooms.AddReplica(unit, workers);
      }
    }
  }
  return goal;
}

// Numbers of replicas that operators asked for, which the planner does not know.
void ApplyReplicaNumbers(const PlanInput& input, ReplicaMap& goal) {
  Rooms rooms(input.problem, goal);
  for (const auto& [unit, number] : input.replicas) {
    const auto it = goal.find(unit);
    if (it == goal.end()) {
      continue;
    }
    std::vector<WorkerId>& workers = it->second;
    const int32_t wanted = WantedReplicas(input, unit);
    const auto current = input.current.find(unit);
    // New ones go first: what is loaded already costs nothing.
    for (const bool is_held_kept : {true, false}) {
      for (size_t i = workers.size(); i-- > 0 && static_cast<int32_t>(workers.size()) > wanted;) {
        const bool is_held =
            current != input.current.end() && Contains(current->second, workers[i]);
        if (!IsPinned(input, unit, workers[i]) && !(is_held && is_held_kept)) {
          rooms.Drop(unit, workers[i]);
          workers.erase(workers.begin() + static_cast<ptrdiff_t>(i));
        }
      }
    }
    while (static_cast<int32_t>(workers.size()) < wanted && rooms.AddReplica(unit, workers)) {
    }
  }
}

// Of a plan only what was missing: an expert that has its replicas keeps them.
ReplicaMap OnlyMissing(const PlanInput& input, const ReplicaMap& planned) {
  const ReplicaMap staying = Staying(input);
  ReplicaMap goal;
  for (const auto& entry : planned) {
    // No structured binding: clang 14 does not let a lambda capture one.
    const placement::ExpertUnit unit = entry.first;
    const std::vector<WorkerId>& workers = entry.second;
    const std::vector<WorkerId>& kept = staying.at(unit);
    const bool is_subset = std::all_of(workers.begin(), workers.end(),
                                       [&](WorkerId worker) { return Contains(kept, worker); });
    const bool has_pins = std::all_of(
        input.problem.pins.begin(), input.problem.pins.end(), [&](const placement::PlanPin& pin) {
          return pin.unit != unit || Contains(kept, pin.worker) || !Contains(workers, pin.worker);
        });
    const bool is_enough = static_cast<int32_t>(kept.size()) >= WantedReplicas(input, unit);
    goal[unit] = is_enough && has_pins && !is_subset ? kept : workers;
  }
  return Rooms(input.problem, goal).IsWithinMemory() ? goal : planned;
}

// More replicas than the planner would ever make are left behind when a router adopts what it sees.
// Of a layer that has too many, those go whose expert has most, from the worker with least room.
void DropSurplus(const PlanInput& input, ReplicaMap& goal) {
  Rooms rooms(input.problem, goal);
  const double share = 1 + placement::PlanOptions().extra_share;
  const int32_t common = std::min(input.replication, std::max(1, NumTaking(input.problem)));
  std::map<LayerId, std::vector<ExpertUnit>> layers;
  for (const auto& [unit, workers] : goal) {
    if (!input.replicas.contains(unit)) {
      layers[unit.layer].push_back(unit);
    }
  }
  for (const auto& [layer, units] : layers) {
    int64_t total = 0;
    for (const ExpertUnit unit : units) {
      total += static_cast<int64_t>(goal[unit].size());
    }
    const auto allowed = static_cast<int64_t>(static_cast<double>(units.size()) * common * share);
    for (; total > allowed; --total) {
      const auto most = *std::max_element(
          units.begin(), units.end(),
          [&](ExpertUnit a, ExpertUnit b) { return goal[a].size() < goal[b].size(); });
      std::vector<WorkerId>& workers = goal[most];
      auto victim = workers.end();
      for (auto it = workers.begin(); it != workers.end(); ++it) {
        if (!IsPinned(input, most, *it) &&
            (victim == workers.end() || rooms.FreeOf(*it) < rooms.FreeOf(*victim))) {
          victim = it;
        }
      }
      if (victim == workers.end() || static_cast<int32_t>(workers.size()) <= common) {
        break;
      }
      rooms.Drop(most, *victim);
      workers.erase(victim);
    }
  }
}

// An expert that the goal has nowhere stays where it is, on a worker that drains if need be.
void KeepUnplaced(const PlanInput& input, ReplicaMap& goal) {
  for (const auto& [unit, workers] : input.current) {
    std::vector<WorkerId>& aimed = goal[unit];
    if (aimed.empty()) {
      aimed = workers;
    }
  }
}

}  // namespace

std::vector<placement::Replica> ToReplicas(const ReplicaMap& map) {
  std::vector<placement::Replica> replicas;
  for (const auto& [unit, workers] : map) {
    for (const WorkerId worker : workers) {
      replicas.push_back({unit, worker});
    }
  }
  return replicas;
}

int32_t WantedReplicas(const PlanInput& input, ExpertUnit unit) {
  const auto it = input.replicas.find(unit);
  return std::min(it == input.replicas.end() ? input.replication : it->second,
                  std::max(1, NumTaking(input.problem)));
}

bool LacksReplicas(const PlanInput& input) {
  if (NumTaking(input.problem) == 0) {
    return false;
  }
  const ReplicaMap staying = Staying(input);
  const bool is_short = std::any_of(staying.begin(), staying.end(), [&](const auto& entry) {
    return static_cast<int32_t>(entry.second.size()) < WantedReplicas(input, entry.first);
  });
  const std::set<WorkerId> taking = Taking(input.problem);
  const bool is_unpinned = std::any_of(
      input.problem.pins.begin(), input.problem.pins.end(), [&](const placement::PlanPin& pin) {
        const auto it = staying.find(pin.unit);
        return it != staying.end() && taking.contains(pin.worker) &&
               !Contains(it->second, pin.worker);
      });
  const bool is_surplus =
      std::any_of(input.replicas.begin(), input.replicas.end(), [&](const auto& entry) {
        const auto it = staying.find(entry.first);
        return it != staying.end() && static_cast<int32_t>(it->second.size()) > entry.second;
      });
  return is_short || is_unpinned || is_surplus;
}

PlanOutcome MakeGoal(const PlanInput& input, PlanPurpose purpose) {
  PlanOutcome outcome;
  placement::PlanOptions options;
  options.replication = input.replication;
  if (purpose == PlanPurpose::kRepair || purpose == PlanPurpose::kFill) {
    // A plan from nothing moves too much for these.
    options.full_factor = 1e9;
  }
  const std::vector<placement::Replica> current = ToReplicas(input.current);
  if (purpose == PlanPurpose::kRepair && !LacksReplicas(input)) {
    // Nothing to bring back; workers that leave are out of it.
    outcome.goal = Staying(input);
    DropSurplus(input, outcome.goal);
    KeepUnplaced(input, outcome.goal);
    outcome.imbalance_before = placement::ImbalanceOf(input.problem, current, {});
    outcome.imbalance_after = placement::ImbalanceOf(input.problem, ToReplicas(outcome.goal), {});
    return outcome;
  }
  absl::StatusOr<placement::Plan> plan =
      purpose == PlanPurpose::kFull ? placement::PlanFull(input.problem, options)
                                    : placement::PlanIncremental(input.problem, current, options);
  if (plan.ok()) {
    for (const PlanUnit& unit : input.problem.units) {
      outcome.goal[unit.unit];
    }
    for (const placement::Replica& replica : plan->replicas) {
      outcome.goal[replica.unit].push_back(replica.worker);
    }
    if (purpose == PlanPurpose::kRepair) {
      outcome.goal = OnlyMissing(input, outcome.goal);
    }
  } else {
    outcome.goal = FillWhatFits(input);
  }
  ApplyReplicaNumbers(input, outcome.goal);
  DropSurplus(input, outcome.goal);
  KeepUnplaced(input, outcome.goal);
  outcome.imbalance_before = placement::ImbalanceOf(input.problem, current, {});
  outcome.imbalance_after = placement::ImbalanceOf(input.problem, ToReplicas(outcome.goal), {});
  return outcome;
}

std::vector<ReplicaMove> MovesBetween(const ReplicaMap& from, const ReplicaMap& to) {
  std::vector<ReplicaMove> moves;
  const std::vector<WorkerId> none;
  const auto add = [&](ExpertUnit unit, const std::vector<WorkerId>& old_workers,
                       const std::vector<WorkerId>& new_workers) {
    std::vector<WorkerId> dropped;
    std::copy_if(old_workers.begin(), old_workers.end(), std::back_inserter(dropped),
                 [&](WorkerId worker) { return !Contains(new_workers, worker); });
    size_t next = 0;
    for (const WorkerId worker : new_workers) {
      if (!Contains(old_workers, worker)) {
        moves.push_back({unit, worker, next < dropped.size() ? dropped[next++] : WorkerId(-1)});
      }
    }
    for (; next < dropped.size(); ++next) {
      moves.push_back({unit, WorkerId(-1), dropped[next]});
    }
  };
  for (const auto& [unit, workers] : to) {
    const auto it = from.find(unit);
    add(unit, it == from.end() ? none : it->second, workers);
  }
  for (const auto& [unit, workers] : from) {
    if (!to.contains(unit)) {
      add(unit, workers, none);
    }
  }
  return moves;
}

int64_t BytesOf(const std::vector<ReplicaMove>& moves, const placement::PlanProblem& problem) {
  std::map<ExpertUnit, int64_t> bytes;
  for (const PlanUnit& unit : problem.units) {
    bytes[unit.unit] = unit.bytes;
  }
  int64_t sum = 0;
  for (const ReplicaMove& move : moves) {
    sum += move.to.value() >= 0 ? bytes[move.unit] : 0;
  }
  return sum;
}

}  // namespace conclave::router_service
