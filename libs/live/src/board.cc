#include "conclave/live/board.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <set>

#include "board_state.h"
#include "conclave/base/json_writer.h"

namespace conclave::live {
namespace {

constexpr size_t kEventsMax = 500;
constexpr size_t kReportsMax = 256;
constexpr double kGoneShown = 15 * 60;

double SystemNow() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration<double>(now).count();
}

const WorkerPicture* Find(const ClusterPicture& picture, int32_t id) {
  const auto it = std::find_if(picture.workers.begin(), picture.workers.end(),
                               [id](const WorkerPicture& worker) { return worker.id == id; });
  return it == picture.workers.end() ? nullptr : &*it;
}

int64_t NumUnserved(const ClusterPicture& picture) {
  return std::count_if(picture.placement.begin(), picture.placement.end(),
                       [](const auto& workers) { return workers.empty(); });
}

bool IsLeaving(WorkerState state) {
  return state == WorkerState::kDraining || state == WorkerState::kDrained;
}

// Replicas of `a` that are not in `b`.
size_t NumMissing(const std::vector<std::vector<int32_t>>& a,
                  const std::vector<std::vector<int32_t>>& b) {
  size_t count = 0;
  for (size_t u = 0; u < a.size(); ++u) {
    for (const int32_t worker : a[u]) {
      const bool is_there =
          u < b.size() && std::find(b[u].begin(), b[u].end(), worker) != b[u].end();
      count += is_there ? 0 : 1;
    }
  }
  return count;
}

std::string Plural(uint64_t count, const std::string& noun) {
  return std::to_string(count) + ' ' + noun + (count == 1 ? "" : "s");
}

}  // namespace

std::string_view NameOf(WorkerState state) {
  switch (state) {
    case WorkerState::kJoining:
      return "joining";
    case WorkerState::kLive:
      return "live";
    case WorkerState::kSuspect:
      return "suspect";
    case WorkerState::kDraining:
      return "draining";
    case WorkerState::kDrained:
      return "drained";
    case WorkerState::kDead:
      return "dead";
    case WorkerState::kLeft:
      return "left";
  }
  return "";
}

Board::Board(BoardOptions options) {
  if (!options.now) {
    options.now = SystemNow;
  }
  state_ = std::make_unique<State>(std::move(options));
  State& s = *state_;
  MutexLock lock(s.mu);
  s.started = s.ticked_at = s.told_at = s.options.now();
}

Board::~Board() = default;

std::string Board::State::NameOfWorker(int32_t id) const {
  if (const WorkerPicture* worker = Find(told, id); worker != nullptr) {
    return worker->name;
  }
  for (auto it = gone.rbegin(); it != gone.rend(); ++it) {
    if (it->worker.id == id) {
      return it->worker.name;
    }
  }
  return "";
}

std::string Board::WorkerName(int32_t id) const {
  MutexLock lock(state_->mu);
  return state_->NameOfWorker(id);
}

Coverage Board::State::CoverageNow() const {
  Coverage coverage;
  coverage.epoch = told.epoch;
  coverage.is_planning = told.plan != 0;
  coverage.lowest = told.replicas_lowest;
  const auto takers =
      std::count_if(told.workers.begin(), told.workers.end(), [](const WorkerPicture& worker) {
        return !IsLeaving(worker.state) && !worker.is_distrusted;
      });
  coverage.wanted = std::min(told.replicas_wanted, static_cast<int32_t>(takers));
  return coverage;
}

void Board::State::PutEvent(std::string_view kind, int32_t worker, std::string_view name,
                            std::string_view text, const Numbers& numbers) {
  Event event;
  event.id = next_event++;
  JsonWriter json(event.json);
  json.BeginObject().Key("id").Int(static_cast<int64_t>(event.id)).Key("time");
  json.Double(options.now()).Key("kind").String(kind).Key("worker").Int(worker);
  json.Key("name").String(name).Key("text").String(text);
  for (const auto& [key, value] : numbers) {
    json.Key(key).Double(value);
  }
  json.EndObject();
  events.push_back(std::move(event));
  if (events.size() > kEventsMax) {
    events.pop_front();
  }
}

void Board::AddEvent(std::string_view kind, int32_t worker, std::string_view name,
                     std::string_view text, const Numbers& numbers) {
  MutexLock lock(state_->mu);
  state_->PutEvent(kind, worker, name, text, numbers);
}

void Board::State::OnGone(const WorkerPicture& worker, double time) {
  const bool has_left = IsLeaving(worker.state);
  Gone entry{worker, time};
  entry.worker.state = has_left ? WorkerState::kLeft : WorkerState::kDead;
  entry.worker.experts = entry.worker.loading = 0;
  entry.worker.queued_rows = 0;
  entry.worker.busy = entry.worker.rows_per_second = 0;
  gone.push_back(std::move(entry));
  if (has_left) {
    PutEvent("left", worker.id, worker.name, worker.name + " has left", {});
    return;
  }
  const double heard_at = told_at - worker.heartbeat_age;
  PutEvent("dead", worker.id, worker.name,
           worker.name + " is dead, " +
               std::to_string(static_cast<int64_t>((time - heard_at) * 1000)) +
               " ms after its last sign of life",
           {{"after", time - heard_at}});
  incidents.OnDead(worker.id, worker.name, heard_at, time, CoverageNow());
}

void Board::State::CompareWorker(const WorkerPicture* before, const WorkerPicture& after,
                                 double time) {
  const std::string& name = after.name;
  if (before == nullptr) {
    std::erase_if(gone, [&](const Gone& entry) { return entry.worker.id == after.id; });
    PutEvent("joined", after.id, name, name + " joined", {});
  }
  const WorkerState was = before == nullptr ? WorkerState::kJoining : before->state;
  if (was == WorkerState::kSuspect && after.state != WorkerState::kSuspect) {
    PutEvent("recovered", after.id, name, name + " answers again", {});
    incidents.OnRecovered(after.id, time);
  }
  if (IsLeaving(was) && !IsLeaving(after.state)) {
    PutEvent("undrained", after.id, name, name + " stays: its drain was taken back", {});
  }
  if (was != after.state) {
    switch (after.state) {
      case WorkerState::kLive:
        if (was == WorkerState::kJoining) {
          PutEvent("live", after.id, name, name + " serves experts", {});
        }
        break;
      case WorkerState::kSuspect:
        PutEvent("suspect", after.id, name,
                 name + " is suspected: silent for " +
                     std::to_string(static_cast<int64_t>(after.heartbeat_age * 1000)) + " ms",
                 {{"silent", after.heartbeat_age}});
        incidents.OnSuspect(after.id, name, time - after.heartbeat_age, time, CoverageNow());
        break;
      case WorkerState::kDraining:
        PutEvent("draining", after.id, name, name + " is being drained", {});
        break;
      case WorkerState::kDrained:
        // Where others hold everything already, there is no time between the two.
        if (was != WorkerState::kDraining) {
          PutEvent("draining", after.id, name, name + " is being drained", {});
        }
        PutEvent("drained", after.id, name, name + " is drained", {});
        break;
      default:
        break;
    }
  }
  if (before != nullptr && before->loading > 0 && after.loading == 0) {
    PutEvent("loaded", after.id, name,
             name + " has loaded what it was asked for, and serves " +
                 Plural(static_cast<uint64_t>(after.experts), "expert"),
             {{"replicas", after.experts}});
  }
  if (after.is_distrusted && (before == nullptr || !before->is_distrusted)) {
    PutEvent("distrusted", after.id, name, name + " gets no experts until it is started again", {});
  }
}

void Board::State::ComparePlacement(const ClusterPicture& before, const ClusterPicture& after) {
  if (after.epoch != before.epoch || after.term != before.term) {
    const size_t more = NumMissing(after.placement, before.placement);
    const size_t fewer = NumMissing(before.placement, after.placement);
    PutEvent("epoch", -1, "",
             "epoch " + std::to_string(after.epoch) + ": " + Plural(more, "replica") + " more, " +
                 std::to_string(fewer) + " fewer",
             {{"epoch", static_cast<double>(after.epoch)},
              {"moves", static_cast<double>(std::max(more, fewer))}});
  }
  if (after.plan != 0 && after.plan != before.plan) {
    PutEvent("plan", -1, "", "a new plan is carried out", {});
  }
  const int64_t unserved = NumUnserved(after);
  const int64_t unserved_before = NumUnserved(before);
  if (unserved > unserved_before) {
    PutEvent("unserved", -1, "",
             Plural(static_cast<uint64_t>(unserved), "expert") + " on no worker",
             {{"experts", static_cast<double>(unserved)}});
  } else if (unserved == 0 && unserved_before > 0) {
    PutEvent("served", -1, "", "every expert is served again", {{"experts", 0}});
  }
}

void Board::State::Compare(const ClusterPicture& before, const ClusterPicture& after, double time) {
  for (const WorkerPicture& worker : before.workers) {
    if (Find(after, worker.id) == nullptr) {
      OnGone(worker, time);
    }
  }
  for (const WorkerPicture& worker : after.workers) {
    CompareWorker(Find(before, worker.id), worker, time);
  }
  ComparePlacement(before, after);
  const auto names = [](const ClusterPicture& picture) {
    std::set<std::string> all;
    for (const FrontendPicture& frontend : picture.frontends) {
      all.insert(frontend.name);
    }
    return all;
  };
  const std::set<std::string> old_names = names(before);
  const std::set<std::string> new_names = names(after);
  for (const std::string& name : new_names) {
    if (!old_names.contains(name)) {
      PutEvent("frontend_joined", -1, name, "frontend " + name + " joined", {});
    }
  }
  for (const std::string& name : old_names) {
    if (!new_names.contains(name)) {
      PutEvent("frontend_left", -1, name, "frontend " + name + " left", {});
    }
  }
}

void Board::Update(const ClusterPicture& picture) {
  State& s = *state_;
  MutexLock lock(s.mu);
  const double time = s.options.now();
  if (!s.has_picture) {
    s.has_picture = true;
    s.PutEvent("started", -1, "", s.options.role + " watches", {});
  }
  s.Compare(s.told, picture, time);
  if (picture.epoch != s.told.epoch || picture.term != s.told.term) {
    s.placed_at = time - picture.placement_age;
  }
  s.told = picture;
  s.told_at = time;
  s.incidents.OnCoverage(time, s.CoverageNow());
}

void Board::SetState(const std::string& state, const std::string& blocked) {
  MutexLock lock(state_->mu);
  state_->told.state = state;
  state_->told.blocked = blocked;
}

void Board::State::CompareFigures(const std::string& name, const FrontendFigures& before,
                                  const FrontendFigures& after) {
  for (const WorkerCalls& calls : after.workers) {
    const auto it =
        std::find_if(before.workers.begin(), before.workers.end(),
                     [&](const WorkerCalls& old) { return old.worker == calls.worker; });
    const WorkerCalls old = it == before.workers.end() ? WorkerCalls{} : *it;
    const std::string worker = NameOfWorker(calls.worker);
    if (calls.calls_resent > old.calls_resent) {
      const uint64_t num_calls = calls.calls_resent - old.calls_resent;
      const uint64_t num_rows = calls.rows_resent - std::min(old.rows_resent, calls.rows_resent);
      std::string text = Plural(num_calls, "call");
      text.append(" of ").append(worker).append(" (").append(Plural(num_rows, "row"));
      text.append(") sent to others by ").append(name);
      PutEvent(
          "resent", calls.worker, worker, text,
          {{"rows", static_cast<double>(num_rows)}, {"calls", static_cast<double>(num_calls)}});
    }
    if (calls.hedges > old.hedges) {
      const uint64_t num_calls = calls.hedges - old.hedges;
      std::string text = Plural(num_calls, "slow call");
      text.append(" of ").append(worker).append(" sent a second time by ").append(name);
      PutEvent("hedged", calls.worker, worker, text, {{"calls", static_cast<double>(num_calls)}});
    }
  }
  if (after.serving.rescued > before.serving.rescued) {
    const uint64_t count = after.serving.rescued - before.serving.rescued;
    PutEvent("rescued", -1, name, Plural(count, "call") + " that nobody served computed by " + name,
             {{"calls", static_cast<double>(count)}});
  }
  if (after.serving.finished[3] > before.serving.finished[3]) {
    const uint64_t count = after.serving.finished[3] - before.serving.finished[3];
    PutEvent("failed", -1, name, Plural(count, "request") + " failed at " + name,
             {{"requests", static_cast<double>(count)}});
  }
}

bool Board::IsFrontend(const std::string& name, uint64_t incarnation) const {
  MutexLock lock(state_->mu);
  return state_->IsHere({name, incarnation});
}

void Board::Report(const std::string& name, uint64_t incarnation, FrontendFigures figures) {
  State& s = *state_;
  MutexLock lock(s.mu);
  const auto key = std::make_pair(name, incarnation);
  if (const auto it = s.reports.find(key); it != s.reports.end()) {
    s.CompareFigures(name, it->second, figures);
    it->second = std::move(figures);
    return;
  }
  s.reports.emplace(key, std::move(figures));
  if (s.reports.size() > kReportsMax) {
    s.DropReport(key);
  }
}

// Who is still there will report again, and would be counted twice.
void Board::State::DropReport(const ReportKey& newest) {
  auto oldest = reports.end();
  for (auto it = reports.begin(); it != reports.end(); ++it) {
    if (it->first != newest && !IsHere(it->first) &&
        (oldest == reports.end() || it->first.second < oldest->first.second)) {
      oldest = it;
    }
  }
  if (oldest != reports.end()) {
    Add(oldest->second, dropped);
    reports.erase(oldest);
  }
}

bool Board::State::IsHere(const ReportKey& key) const {
  return std::any_of(told.frontends.begin(), told.frontends.end(),
                     [&key](const FrontendPicture& frontend) {
                       return frontend.name == key.first && frontend.incarnation == key.second;
                     });
}

// What all frontends have counted; what is so only now counts for those that are there.
FrontendFigures Board::State::Sums() const {
  FrontendFigures total = dropped;
  for (const auto& [key, figures] : reports) {
    if (IsHere(key)) {
      Add(figures, total);
      continue;
    }
    FrontendFigures past = figures;
    past.running = past.waiting = 0;
    past.kv = 0;
    Add(past, total);
  }
  if (total.model.layers.empty()) {
    total.model.layers = told.layers;
  }
  // Shown with the digits that mean something.
  for (std::vector<double>* values : {&total.weights, &total.probabilities}) {
    std::transform(values->begin(), values->end(), values->begin(),
                   [](double value) { return std::round(value * 1000) / 1000; });
  }
  return total;
}

// One step of history: every ten seconds, for a quarter of an hour, as far as memory allows.
void Board::State::Keep(double time) {
  constexpr double kStep = 10;
  constexpr size_t kSteps = 90;
  constexpr size_t kEntriesMax = 250'000;
  live::History& h = history;
  if (!h.times.empty() && time - h.times.back() < kStep - 0.5) {
    return;
  }
  std::vector<uint64_t> rows = sums.rows;
  if (h.times.empty() || rows.size() != h.last.size()) {
    h = {};
    h.first = h.last = std::move(rows);
    h.times = {time};
    return;
  }
  std::vector<std::pair<uint32_t, uint64_t>> step;
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i] != h.last[i]) {
      step.emplace_back(static_cast<uint32_t>(i), rows[i] - h.last[i]);
    }
  }
  h.num_entries += step.size();
  h.steps.push_back(std::move(step));
  h.times.push_back(time);
  h.last = std::move(rows);
  while (h.steps.size() > kSteps || (h.num_entries > kEntriesMax && h.steps.size() > 1)) {
    for (const auto& [cell, rows_added] : h.steps.front()) {
      h.first[cell] += rows_added;
    }
    h.num_entries -= h.steps.front().size();
    h.steps.pop_front();
    h.times.erase(h.times.begin());
  }
}

uint64_t Board::seq() const {
  MutexLock lock(state_->mu);
  return state_->seq;
}

std::string Board::Tick() {
  State& s = *state_;
  MutexLock lock(s.mu);
  s.ticked_at = s.options.now();
  FrontendFigures sums = s.Sums();
  s.incidents.Note(s.ticked_at, sums);
  s.incidents.OnCoverage(s.ticked_at, s.CoverageNow());
  const double oldest = s.ticked_at - kGoneShown;
  std::erase_if(s.gone, [&](const State::Gone& entry) { return entry.since < oldest; });
  return s.Delta(std::move(sums));
}

}  // namespace conclave::live
