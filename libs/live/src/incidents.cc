#include "incidents.h"

#include <algorithm>
#include <numeric>

namespace conclave::live {
namespace {

constexpr size_t kIncidentsMax = 100;
constexpr size_t kSamplesMax = 12;
// Frontends report once per second: what an incident cost is known that much later.
constexpr double kReportsLag = 3.0;
// A placement that stays as it is for so long is as good as it can be.
constexpr double kSettled = 3.0;

uint64_t Less(uint64_t a, uint64_t b) { return a > b ? a - b : 0; }

}  // namespace

Incidents::Sample Incidents::ToSample(double now, const FrontendFigures& sums) {
  Sample sample;
  sample.time = now;
  for (const WorkerCalls& calls : sums.workers) {
    sample.resent[calls.worker] = {calls.rows_resent, calls.calls_resent};
  }
  sample.touched = sums.serving.requests_touched;
  sample.failed = sums.serving.finished[3];
  sample.recovery = sums.serving.recovery;
  return sample;
}

void Incidents::Charge(const Sample& before, const Sample& after, Incident& incident) {
  const auto counted = [&incident](const Sample& sample) {
    const auto it = sample.resent.find(incident.worker);
    return it == sample.resent.end() ? std::pair<uint64_t, uint64_t>() : it->second;
  };
  incident.rows_resent = Less(counted(after).first, counted(before).first);
  incident.calls_resent = Less(counted(after).second, counted(before).second);
  incident.requests_touched = Less(after.touched, before.touched);
  incident.requests_failed = Less(after.failed, before.failed);
  incident.recovery = after.recovery;
  for (size_t i = 0; i < std::min(incident.recovery.size(), before.recovery.size()); ++i) {
    incident.recovery[i] = Less(incident.recovery[i], before.recovery[i]);
  }
}

void Incidents::Note(double now, const FrontendFigures& sums) {
  samples_.push_back(ToSample(now, sums));
  if (samples_.size() > kSamplesMax) {
    samples_.pop_front();
  }
  for (Incident& incident : incidents_) {
    const auto it = open_.find(incident.id);
    if (it == open_.end()) {
      continue;
    }
    Charge(it->second.before, samples_.back(), incident);
    if (it->second.closed_at && now - *it->second.closed_at > kReportsLag) {
      open_.erase(it);
    }
  }
}

Incident* Incidents::FindOpen(int32_t worker) {
  const auto it = std::find_if(incidents_.rbegin(), incidents_.rend(), [&](const Incident& i) {
    const auto open = open_.find(i.id);
    return i.worker == worker && open != open_.end() && !open->second.closed_at;
  });
  return it == incidents_.rend() ? nullptr : &*it;
}

Incident& Incidents::Begin(int32_t worker, const std::string& name, double heard_at, double now,
                           const Coverage& coverage) {
  Incident incident;
  incident.id = next_++;
  incident.worker = worker;
  incident.name = name;
  incident.begin = heard_at;
  incident.detected_after = std::max(0.0, now - heard_at);
  incident.epoch_before = coverage.epoch;
  // Calls are sent again before anybody calls the worker dead.
  Open open;
  for (const Sample& sample : samples_) {
    if (open.before.time == 0 || sample.time <= heard_at) {
      open.before = sample;
    }
  }
  open_.emplace(incident.id, std::move(open));
  incidents_.push_back(std::move(incident));
  if (incidents_.size() > kIncidentsMax) {
    open_.erase(incidents_.front().id);
    incidents_.pop_front();
  }
  return incidents_.back();
}

void Incidents::OnSuspect(int32_t worker, const std::string& name, double heard_at, double now,
                          const Coverage& coverage) {
  if (FindOpen(worker) == nullptr) {
    Begin(worker, name, heard_at, now, coverage);
  }
}

void Incidents::OnRecovered(int32_t worker, double now) {
  Incident* incident = FindOpen(worker);
  if (incident != nullptr && !incident->is_death) {
    Close(*incident, open_.at(incident->id), now);
  }
}

void Incidents::OnDead(int32_t worker, const std::string& name, double heard_at, double now,
                       const Coverage& coverage) {
  Incident* incident = FindOpen(worker);
  if (incident == nullptr) {
    incident = &Begin(worker, name, heard_at, now, coverage);
  }
  incident->is_death = true;
}

void Incidents::Close(Incident& incident, Open& open, double now) {
  open.closed_at = now;
  incident.restored_after = std::max(0.0, now - incident.begin);
}

void Incidents::OnCoverage(double now, const Coverage& coverage) {
  for (Incident& incident : incidents_) {
    const auto it = open_.find(incident.id);
    if (it == open_.end() || it->second.closed_at || !incident.is_death) {
      continue;
    }
    Open& open = it->second;
    if (coverage.epoch != incident.epoch_before && incident.epoch_after != coverage.epoch) {
      incident.epoch_after = coverage.epoch;
      open.placed_at = now;
    }
    if (!open.placed_at || coverage.is_planning) {
      continue;
    }
    const bool is_settled = now - *open.placed_at >= kSettled && coverage.lowest > 0;
    if (coverage.lowest >= coverage.wanted || is_settled) {
      Close(incident, open, *open.placed_at);
    }
  }
}

}  // namespace conclave::live
