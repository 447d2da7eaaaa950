#include "conclave/router_service/what_if.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "conclave/base/status.h"
#include "load_table.h"
#include "placement_gauge.h"
#include "replay_cluster.h"

namespace conclave::router_service {
namespace {

using std::chrono::nanoseconds;

constexpr size_t kShown = 8;
// What makes an advice worth its memory.
constexpr double kAdviceGain = 0.05;
// Per layer, of the experts with most rows per replica.
constexpr size_t kAdviceTried = 3;
constexpr std::chrono::seconds kFullAfter{10};

std::vector<ExpertUnit> UnitsOf(const TraceHead& head) {
  std::vector<ExpertUnit> units;
  for (const MoeLayer& layer : head.layers) {
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      units.push_back({layer.layer, ExpertId(e)});
    }
  }
  return units;
}

uint64_t Text(const std::array<uint64_t, kNumRowKinds>& rows) { return rows[0] + rows[2]; }
uint64_t Image(const std::array<uint64_t, kNumRowKinds>& rows) { return rows[1] + rows[3]; }

ReplicaMap ToMap(const std::vector<UnitReplicas>& placement) {
  ReplicaMap map;
  for (const UnitReplicas& unit : placement) {
    map[unit.unit] = unit.workers;
  }
  return map;
}

std::vector<WorkerId> IdsOf(const std::vector<TraceWorker>& workers) {
  std::vector<WorkerId> ids;
  ids.reserve(workers.size());
  for (const TraceWorker& worker : workers) {
    ids.push_back(worker.id);
  }
  return ids;
}

int64_t ExpertBytes(const std::vector<TraceWorker>& workers) {
  int64_t bytes = 1;
  for (const TraceWorker& worker : workers) {
    bytes = std::max(bytes, worker.expert_bytes);
  }
  return bytes;
}

// The workers of the recording as somebody wishes them to be.
class Wishes {
 public:
  Wishes(const WhatIfOptions& options, const RoutingTrace& trace)
      : options_(options), without_(options.without.begin(), options.without.end()) {
    for (const auto& record : trace.records) {
      if (const auto* workers = std::get_if<TraceWorkers>(&record); workers != nullptr) {
        for (const TraceWorker& worker : workers->workers) {
          names_.emplace(worker.name, worker.id);
          if (!template_.has_value()) {
            template_ = worker;
          }
        }
      }
    }
  }

  const std::map<std::string, WorkerId>& names() const { return names_; }

  absl::Status Check() const {
    if (!template_.has_value()) {
      return InvalidArgument("trace_empty", "the recording has no workers");
    }
    for (const std::string& name : without_) {
      if (!names_.contains(name)) {
        std::string known = "expected names of recorded workers (";
        const char* between = "";
        for (const auto& [other, id] : names_) {
          known += between;
          known += other;
          between = ", ";
        }
        return NotFound("worker_unknown", known + "), found " + name);
      }
    }
    return absl::OkStatus();
  }

  bool is_fixed() const { return options_.num_workers.has_value(); }

  // What becomes of the recorded workers of one moment.
  std::vector<TraceWorker> Apply(const std::vector<TraceWorker>& recorded) const {
    std::vector<TraceWorker> workers;
    for (const TraceWorker& worker : recorded) {
      if (!without_.contains(worker.name)) {
        workers.push_back(worker);
      }
    }
    size_t num_added = static_cast<size_t>(options_.num_added);
    if (is_fixed()) {
      const auto wanted = static_cast<size_t>(*options_.num_workers);
      workers.resize(std::min(workers.size(), wanted), *template_);
      num_added = wanted - workers.size();
    }
    const TraceWorker like = workers.empty() ? *template_ : workers.front();
    int32_t number = 0;
    for (size_t i = 0; i < num_added; ++i) {
      TraceWorker& added = workers.emplace_back(like);
      do {
        added.name = "new-" + std::to_string(++number);
      } while (names_.contains(added.name));
      added.host = added.name;
      added.takes_experts = true;
      // The core gives the real one; this one nobody has.
      added.id = WorkerId(INT32_MAX - number);
    }
    for (TraceWorker& worker : workers) {
      worker.memory_bytes = options_.memory_bytes.value_or(worker.memory_bytes);
    }
    return workers;
  }

  absl::Status CheckRoom(const std::vector<TraceWorker>& workers, size_t num_units) const {
    if (workers.empty()) {
      return InvalidArgument("placement_worker", "no worker is left; expected at least one");
    }
    int64_t places = 0;
    int64_t memory = 0;
    for (const TraceWorker& worker : workers) {
      places += worker.takes_experts ? worker.memory_bytes / ExpertBytes(workers) : 0;
      memory += worker.takes_experts ? worker.memory_bytes : 0;
    }
    if (places < static_cast<int64_t>(num_units)) {
      return Error(absl::StatusCode::kResourceExhausted, "placement_over_capacity",
                   std::to_string(workers.size()) + " workers with " + std::to_string(memory) +
                       " bytes in all hold " + std::to_string(places) +
                       " experts; expected room for one replica of each of " +
                       std::to_string(num_units) + " (" + std::to_string(ExpertBytes(workers)) +
                       " bytes an expert)");
    }
    return absl::OkStatus();
  }

 private:
  const WhatIfOptions& options_;
  const std::set<std::string> without_;
  std::map<std::string, WorkerId> names_;
  std::optional<TraceWorker> template_;
};

// What `workers` hold of a recorded placement: those that are there, as far as their memory goes,
// experts with fewer replicas first.
ReplicaMap HeldAtStart(const ReplicaMap& recorded, const std::vector<TraceWorker>& workers) {
  std::map<WorkerId, int64_t> room;
  for (const TraceWorker& worker : workers) {
    room[worker.id] = worker.memory_bytes / worker.expert_bytes;
  }
  ReplicaMap held;
  size_t most = 0;
  for (const auto& [unit, ids] : recorded) {
    held[unit];
    most = std::max(most, ids.size());
  }
  for (size_t round = 0; round < most; ++round) {
    for (const auto& [unit, ids] : recorded) {
      std::vector<WorkerId>& kept = held[unit];
      for (const WorkerId id : ids) {
        const auto it = room.find(id);
        if (kept.size() <= round && it != room.end() && it->second > 0 &&
            std::find(kept.begin(), kept.end(), id) == kept.end()) {
          kept.push_back(id);
          --it->second;
        }
      }
    }
  }
  return held;
}

class Replay {
 public:
  Replay(const RoutingTrace& trace, const WhatIfOptions& options)
      : trace_(trace),
        options_(options),
        wishes_(options, trace),
        units_(UnitsOf(trace.head)),
        recorded_(trace.head.layers),
        kept_(trace.head.layers),
        planned_(trace.head.layers) {}

  absl::StatusOr<WhatIfReport> Run();

 private:
  absl::Status Begin();
  void Apply(const TraceWindow& window);
  void Apply(const TraceWorkers& workers);
  void Apply(const TracePlacement& placement);
  void ReportLayers();
  void ReportExperts();
  void ReportWorkers();
  void ReportAdvice();
  void Advise(const MoeLayer& what, const std::vector<TraceWorker>& workers,
              const ReplicaMap& placement, std::map<WorkerId, int64_t> num_held);

  const RoutingTrace& trace_;
  const WhatIfOptions& options_;
  const Wishes wishes_;
  const std::vector<ExpertUnit> units_;
  WhatIfReport report_;

  std::vector<TraceWorker> workers_;  // as recorded, now
  ReplicaMap placement_;              // likewise
  ReplicaMap first_placement_;
  std::unique_ptr<ReplayCluster> cluster_;                   // from the first window on
  std::shared_ptr<const std::vector<UnitReplicas>> gauged_;  // what planned_ has
  LoadTable loads_;
  PlacementGauge recorded_;
  PlacementGauge kept_;
  PlacementGauge planned_;
  std::map<ExpertUnit, std::array<uint64_t, kNumRowKinds>> sums_;
  nanoseconds time_{0};
  nanoseconds full_at_{0};
  bool is_full_done_ = false;
};

absl::Status Replay::Begin() {
  CONCLAVE_RETURN_IF_ERROR(wishes_.Check());
  const std::vector<TraceWorker> workers = wishes_.Apply(workers_);
  CONCLAVE_RETURN_IF_ERROR(wishes_.CheckRoom(workers, units_.size()));
  const ReplicaMap held = HeldAtStart(placement_, workers);
  report_.num_experts = static_cast<int32_t>(units_.size());
  report_.num_workers = static_cast<int32_t>(workers.size());
  report_.replication = options_.replication.value_or(trace_.head.replication);
  report_.expert_bytes = ExpertBytes(workers);
  first_placement_ = placement_;
  cluster_ =
      std::make_unique<ReplayCluster>(trace_.head, report_.replication, options_.rebalance_interval,
                                      wishes_.names(), workers, held);
  recorded_.SetWorkers(workers_);
  recorded_.SetPlacement(placement_);
  kept_.SetWorkers(workers);
  kept_.SetPlacement(held);
  nanoseconds length{0};
  for (const auto& record : trace_.records) {
    if (const auto* window = std::get_if<TraceWindow>(&record); window != nullptr) {
      length += window->length;
    }
  }
  full_at_ = std::min<nanoseconds>(kFullAfter, length / 2);
  return absl::OkStatus();
}

void Replay::Apply(const TraceWindow& window) {
  ++report_.num_windows;
  for (const ExpertRows& expert : window.rows) {
    for (size_t kind = 0; kind < kNumRowKinds; ++kind) {
      report_.rows[kind] += expert.rows[kind];
      sums_[expert.unit][kind] += expert.rows[kind];
    }
  }
  loads_.Add(WorkerId(0), window.rows);
  loads_.Fold(std::chrono::duration<double>(window.length).count());
  std::vector<double> rates;
  rates.reserve(units_.size());
  for (const ExpertUnit unit : units_) {
    const RowKinds kinds = loads_.RatesOf(unit);
    rates.push_back(std::accumulate(kinds.begin(), kinds.end(), 0.0));
  }
  // What the window met: placements as they were at its start.
  if (gauged_ != cluster_->placement()) {
    gauged_ = cluster_->placement();
    planned_.SetPlacement(ToMap(*gauged_));
  }
  planned_.SetWorkers(cluster_->Workers());
  for (PlacementGauge* gauge : {&recorded_, &kept_, &planned_}) {
    gauge->Add(rates, std::chrono::duration<double>(window.length).count());
  }
  time_ += window.length;
  cluster_->AddRows(window.rows);
  const uint64_t before = cluster_->counters().rebalances;
  if (options_.is_full && !is_full_done_ && time_ >= full_at_) {
    is_full_done_ = true;
    cluster_->RunTo(time_);
    cluster_->RebalanceFully();
  }
  cluster_->RunTo(time_);
  if (cluster_->counters().rebalances > before) {
    report_.rebalanced_at.push_back(std::chrono::duration<double>(time_).count());
  }
}

void Replay::Apply(const TraceWorkers& workers) {
  workers_ = workers.workers;
  if (cluster_ == nullptr) {
    return;
  }
  recorded_.SetWorkers(workers_);
  if (!wishes_.is_fixed()) {
    const std::vector<TraceWorker> wished = wishes_.Apply(workers_);
    kept_.SetWorkers(wished);
    cluster_->SetWorkers(wished);
  }
}

void Replay::Apply(const TracePlacement& placement) {
  for (const auto& [unit, ids] : placement.changed) {
    std::vector<WorkerId>& old = placement_[unit];
    if (cluster_ != nullptr) {
      report_.recorded.num_loads += std::count_if(ids.begin(), ids.end(), [&](WorkerId id) {
        return std::find(old.begin(), old.end(), id) == old.end();
      });
    }
    old = ids;
  }
  if (cluster_ != nullptr) {
    ++report_.recorded.num_rebalances;
    recorded_.SetPlacement(placement_);
  }
}

absl::StatusOr<WhatIfReport> Replay::Run() {
  for (const auto& record : trace_.records) {
    const auto* window = std::get_if<TraceWindow>(&record);
    if (window != nullptr && cluster_ == nullptr) {
      CONCLAVE_RETURN_IF_ERROR(Begin());
    }
    std::visit([this](const auto& what) { Apply(what); }, record);
    if (cluster_ != nullptr && !cluster_->status().ok()) {
      return Annotate(cluster_->status(), "replay");
    }
  }
  if (cluster_ == nullptr || sums_.empty()) {
    return InvalidArgument("trace_empty",
                           "the recording has no rows; expected one of a cluster that was asked "
                           "something");
  }
  report_.seconds = std::chrono::duration<double>(time_).count();
  report_.end = trace_.end;
  report_.planned.num_loads = cluster_->num_loads();
  report_.planned.num_rebalances = static_cast<int64_t>(cluster_->counters().rebalances);
  report_.bytes_loaded = cluster_->bytes_loaded();
  ReportLayers();
  ReportExperts();
  ReportWorkers();
  ReportAdvice();
  return std::move(report_);
}

void Replay::ReportLayers() {
  for (size_t l = 0; l < trace_.head.layers.size(); ++l) {
    report_.layers.push_back({trace_.head.layers[l].layer, recorded_.ImbalanceOf(l),
                              kept_.ImbalanceOf(l), planned_.ImbalanceOf(l)});
  }
  report_.recorded.imbalance = recorded_.Imbalance();
  report_.recorded.unserved = recorded_.Unserved();
  report_.kept.imbalance = kept_.Imbalance();
  report_.kept.unserved = kept_.Unserved();
  report_.planned.imbalance = planned_.Imbalance();
  report_.planned.unserved = planned_.Unserved();
}

void Replay::ReportExperts() {
  const ReplicaMap placement = ToMap(*cluster_->placement());
  std::vector<WhatIfExpert> experts;
  for (const MoeLayer& layer : trace_.head.layers) {
    uint64_t text = 0;
    uint64_t image = 0;
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      const auto& rows = sums_[{layer.layer, ExpertId(e)}];
      text += Text(rows);
      image += Image(rows);
    }
    const auto share = [&](uint64_t rows, uint64_t all) {
      return all == 0 ? 0.0
                      : static_cast<double>(rows) * layer.num_experts / static_cast<double>(all);
    };
    for (int32_t e = 0; e < layer.num_experts; ++e) {
      const ExpertUnit unit{layer.layer, ExpertId(e)};
      const auto& rows = sums_[unit];
      WhatIfExpert& expert = experts.emplace_back();
      expert.unit = unit;
      expert.text = Text(rows);
      expert.image = Image(rows);
      expert.share = share(expert.text + expert.image, text + image);
      expert.text_share = share(expert.text, text);
      expert.image_share = share(expert.image, image);
      const auto it = placement.find(unit);
      expert.num_replicas = it == placement.end() ? 0 : static_cast<int32_t>(it->second.size());
    }
  }
  std::stable_sort(experts.begin(), experts.end(),
                   [](const auto& a, const auto& b) { return a.share > b.share; });
  experts.resize(std::min(experts.size(), kShown));
  report_.hottest = std::move(experts);
}

void Replay::ReportWorkers() {
  std::map<std::string, WhatIfWorker> workers;
  const auto count = [&](const std::vector<TraceWorker>& there, const ReplicaMap& placement,
                         int32_t WhatIfWorker::*held, int32_t WhatIfWorker::*alone) {
    const std::vector<WorkerId> ids = IdsOf(there);
    for (const TraceWorker& worker : there) {
      WhatIfWorker& line = workers[worker.name];
      line.name = worker.name;
      line.*held = line.*alone = 0;
      for (const auto& [unit, holders] : placement) {
        if (std::find(holders.begin(), holders.end(), worker.id) == holders.end()) {
          continue;
        }
        ++(line.*held);
        line.*alone += std::none_of(holders.begin(), holders.end(), [&](WorkerId id) {
          return id != worker.id && std::find(ids.begin(), ids.end(), id) != ids.end();
        });
      }
    }
  };
  count(workers_, placement_, &WhatIfWorker::recorded, &WhatIfWorker::recorded_alone);
  count(cluster_->Workers(), ToMap(*cluster_->placement()), &WhatIfWorker::planned,
        &WhatIfWorker::planned_alone);
  for (const auto& [name, line] : workers) {
    report_.workers.push_back(line);
  }
}

// By the rows of the whole recording, on the placement at the end of the planned course.
void Replay::ReportAdvice() {
  const std::vector<TraceWorker> workers = cluster_->Workers();
  const ReplicaMap placement = ToMap(*cluster_->placement());
  std::map<WorkerId, int64_t> num_held;
  for (const auto& [unit, ids] : placement) {
    for (const WorkerId id : ids) {
      ++num_held[id];
    }
  }
  for (const MoeLayer& layer : trace_.head.layers) {
    Advise(layer, workers, placement, num_held);
  }
  std::stable_sort(report_.advice.begin(), report_.advice.end(), [](const auto& a, const auto& b) {
    return a.before - a.after > b.before - b.after;
  });
  if (report_.advice.size() > kShown) {
    report_.advice.resize(kShown);
  }
}

void Replay::Advise(const MoeLayer& what, const std::vector<TraceWorker>& workers,
                    const ReplicaMap& placement, std::map<WorkerId, int64_t> num_held) {
  // What the other layers hold stays.
  for (int32_t e = 0; e < what.num_experts; ++e) {
    if (const auto it = placement.find({what.layer, ExpertId(e)}); it != placement.end()) {
      for (const WorkerId id : it->second) {
        --num_held[id];
      }
    }
  }
  PlanInput input;
  input.replication = report_.replication;
  const int64_t bytes = ExpertBytes(workers);
  std::map<std::string, int32_t> hosts;
  for (const TraceWorker& worker : workers) {
    const int64_t room = worker.memory_bytes - num_held[worker.id] * bytes;
    const std::string host = worker.host.empty() ? "worker " + worker.name : worker.host;
    const auto place = hosts.try_emplace(host, static_cast<int32_t>(hosts.size())).first->second;
    input.problem.workers.push_back(
        {worker.id, place, worker.speed, std::max<int64_t>(0, room), worker.takes_experts});
  }
  std::vector<std::pair<double, ExpertUnit>> hottest;
  std::vector<double> loads(static_cast<size_t>(what.num_experts), 0);
  for (int32_t e = 0; e < what.num_experts; ++e) {
    const ExpertUnit unit{what.layer, ExpertId(e)};
    const auto& rows = sums_[unit];
    const auto load = static_cast<double>(Text(rows) + Image(rows));
    loads[static_cast<size_t>(e)] = load;
    input.problem.units.push_back({unit, load, bytes});
    if (const auto it = placement.find(unit); it != placement.end() && !it->second.empty()) {
      input.current[unit] = it->second;
      hottest.emplace_back(load / static_cast<double>(it->second.size()), unit);
    }
  }
  const auto measure = [&](const ReplicaMap& map) {
    PlacementGauge gauge({what});
    gauge.SetWorkers(workers);
    gauge.SetPlacement(map);
    gauge.Add(loads, 1);
    return gauge.Imbalance();
  };
  std::stable_sort(hottest.begin(), hottest.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  hottest.resize(std::min(hottest.size(), kAdviceTried));
  WhatIfAdvice best;
  best.before = best.after = measure(input.current);
  for (const auto& [load, unit] : hottest) {
    PlanInput more = input;
    const auto wanted = static_cast<int32_t>(input.current[unit].size()) + 1;
    more.replicas[unit] = wanted;
    const ReplicaMap goal = MakeGoal(more, PlanPurpose::kRepair).goal;
    const double after = measure(goal);
    if (goal.at(unit).size() == static_cast<size_t>(wanted) && after < best.after) {
      best.unit = unit;
      best.num_replicas = wanted;
      best.after = after;
    }
  }
  if (best.num_replicas > 0 && best.after <= best.before * (1 - kAdviceGain)) {
    report_.advice.push_back(best);
  }
}

}  // namespace

absl::StatusOr<WhatIfReport> ReplayWhatIf(const RoutingTrace& trace, const WhatIfOptions& options) {
  return Replay(trace, options).Run();
}

}  // namespace conclave::router_service
