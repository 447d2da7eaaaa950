#include "conclave/placement/placement.h"

#include <algorithm>
#include <string>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "parts.h"

namespace conclave::placement {
namespace {

// Index of `unit` in the ascending `units`, or units.size().
size_t IndexOf(std::span<const ExpertUnit> units, ExpertUnit unit) {
  const auto it = std::lower_bound(units.begin(), units.end(), unit);
  const bool is_found = it != units.end() && *it == unit;
  return is_found ? static_cast<size_t>(it - units.begin()) : units.size();
}

}  // namespace

absl::StatusOr<Placement> Placement::Create(Epoch epoch, std::vector<ExpertUnit> units,
                                            const std::vector<Replica>& replicas) {
  CONCLAVE_ASSIGN_OR_RETURN(Placement placement, CreatePartial(epoch, std::move(units), replicas));
  for (size_t u = 0; u < placement.units_.size(); ++u) {
    if (placement.offsets_[u] == placement.offsets_[u + 1]) {
      return InvalidArgument("placement_uncovered", "placement: " + Describe(placement.units_[u]) +
                                                        " has no replica; expected at least one");
    }
  }
  return placement;
}

bool Placement::is_complete() const {
  return std::adjacent_find(offsets_.begin(), offsets_.end()) == offsets_.end();
}

absl::StatusOr<Placement> Placement::CreatePartial(Epoch epoch, std::vector<ExpertUnit> units,
                                                   const std::vector<Replica>& replicas) {
  std::sort(units.begin(), units.end());
  const auto twin = std::adjacent_find(units.begin(), units.end());
  if (twin != units.end()) {
    return InvalidArgument("placement_duplicate", "placement: " + Describe(*twin) +
                                                      " is listed twice; expected each unit once");
  }
  std::vector<size_t> unit_of(replicas.size());
  std::vector<uint32_t> offsets(units.size() + 1, 0);
  for (size_t i = 0; i < replicas.size(); ++i) {
    unit_of[i] = IndexOf(units, replicas[i].unit);
    if (unit_of[i] == units.size()) {
      return InvalidArgument("placement_unknown_unit",
                             "placement: a replica of " + Describe(replicas[i].unit) +
                                 "; expected one of the " + std::to_string(units.size()) +
                                 " units to place");
    }
    if (replicas[i].worker.value() < 0) {
      return InvalidArgument("placement_bad_worker",
                             "placement: " + Describe(replicas[i].unit) +
                                 ": expected a worker id of at least 0, found " +
                                 std::to_string(replicas[i].worker.value()));
    }
    ++offsets[unit_of[i] + 1];
  }
  for (size_t u = 0; u < units.size(); ++u) {
    offsets[u + 1] += offsets[u];
  }

  std::vector<WorkerId> workers(replicas.size());
  std::vector<uint32_t> next(offsets.begin(), offsets.end() - 1);
  for (size_t i = 0; i < replicas.size(); ++i) {
    const size_t u = unit_of[i];
    const auto begin = workers.begin() + offsets[u];
    const auto end = workers.begin() + next[u];
    if (std::find(begin, end, replicas[i].worker) != end) {
      return InvalidArgument("placement_duplicate", "placement: " + Describe(replicas[i].unit) +
                                                        " has two replicas on worker " +
                                                        std::to_string(replicas[i].worker.value()) +
                                                        "; expected at most one");
    }
    workers[next[u]++] = replicas[i].worker;
  }

  Placement placement;
  placement.epoch_ = epoch;
  placement.units_ = std::move(units);
  placement.offsets_ = std::move(offsets);
  placement.workers_ = std::move(workers);
  return placement;
}

std::span<const WorkerId> Placement::WorkersOf(ExpertUnit unit) const {
  const size_t u = IndexOf(units_, unit);
  if (u == units_.size()) {
    return {};
  }
  return std::span(workers_).subspan(offsets_[u], offsets_[u + 1] - offsets_[u]);
}

std::vector<ExpertUnit> Placement::UnitsOf(WorkerId worker) const {
  std::vector<ExpertUnit> units;
  for (size_t u = 0; u < units_.size(); ++u) {
    const auto begin = workers_.begin() + offsets_[u];
    const auto end = workers_.begin() + offsets_[u + 1];
    if (std::find(begin, end, worker) != end) {
      units.push_back(units_[u]);
    }
  }
  return units;
}

Placement SpreadEvenly(Epoch epoch, std::vector<ExpertUnit> units, int32_t num_workers) {
  CONCLAVE_CHECK(num_workers >= 1);
  std::sort(units.begin(), units.end());
  std::vector<Replica> replicas;
  replicas.reserve(units.size());
  int64_t layer_rank = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    if (u > 0 && units[u].layer != units[u - 1].layer) {
      ++layer_rank;
    }
    const int64_t turn = (units[u].expert.value() + layer_rank) % num_workers;
    replicas.push_back({units[u], WorkerId(static_cast<int32_t>(turn))});
  }
  absl::StatusOr<Placement> placement = Placement::Create(epoch, std::move(units), replicas);
  CONCLAVE_CHECK(placement.ok());
  return *std::move(placement);
}

}  // namespace conclave::placement
