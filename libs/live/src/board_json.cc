// The picture as JSON (docs/live.md).
#include <cmath>
#include <type_traits>

#include "board_state.h"

namespace conclave::live {
namespace {

int64_t ToInt(uint64_t value) { return static_cast<int64_t>(value); }

double Rounded(double value, double digits) { return std::round(value * digits) / digits; }

// An array that is only there when something is put into it.
class LazyArray {
 public:
  LazyArray(JsonWriter& json, std::string_view key) : json_(json), key_(key) {}
  ~LazyArray() {
    if (is_open_) {
      json_.EndArray();
    }
  }
  LazyArray(const LazyArray&) = delete;
  LazyArray& operator=(const LazyArray&) = delete;

  JsonWriter& Next() {
    if (!is_open_) {
      json_.Key(key_).BeginArray();
      is_open_ = true;
    }
    return json_;
  }

 private:
  JsonWriter& json_;
  const std::string_view key_;
  bool is_open_ = false;
};

void Put(JsonWriter& json, uint64_t value) { json.Int(ToInt(value)); }
void Put(JsonWriter& json, double value) { json.Double(value); }

template <typename T>
void WriteAll(JsonWriter& json, const std::vector<T>& values) {
  json.BeginArray();
  for (const T value : values) {
    Put(json, value);
  }
  json.EndArray();
}

// [index, value, …] of what differs.
template <typename T>
void WriteChanges(JsonWriter& json, std::string_view key, const std::vector<T>& before,
                  const std::vector<T>& after) {
  LazyArray changes(json, key);
  for (size_t i = 0; i < after.size(); ++i) {
    if (i >= before.size() ? after[i] != T() : before[i] != after[i]) {
      Put(changes.Next(), static_cast<uint64_t>(i));
      Put(changes.Next(), after[i]);
    }
  }
}

void WriteLayers(JsonWriter& json, const std::vector<MoeLayer>& layers) {
  json.BeginArray();
  for (const MoeLayer& layer : layers) {
    json.BeginObject().Key("layer").Int(layer.layer);
    json.Key("experts").Int(layer.num_experts).EndObject();
  }
  json.EndArray();
}

void WriteWorker(JsonWriter& json, const WorkerPicture& worker, const WorkerCalls& calls) {
  json.BeginObject().Key("id").Int(worker.id).Key("name").String(worker.name);
  json.Key("host").String(worker.host).Key("state").String(NameOf(worker.state));
  json.Key("experts").Int(worker.experts).Key("loading").Int(worker.loading);
  json.Key("memory").Int(worker.memory_bytes).Key("memory_used").Int(worker.memory_used_bytes);
  // Coarse, so that a quiet cluster has nothing to say.
  json.Key("busy").Double(Rounded(worker.busy, 100)).Key("queue").Int(worker.queued_rows);
  json.Key("rows_per_second").Double(std::round(worker.rows_per_second));
  json.Key("heartbeat_age_ms").Int(static_cast<int64_t>(worker.heartbeat_age * 2) * 500);
  json.Key("is_distrusted").Bool(worker.is_distrusted);
  json.Key("calls").Int(ToInt(calls.calls)).Key("rows").Int(ToInt(calls.rows));
  json.Key("calls_resent").Int(ToInt(calls.calls_resent));
  json.Key("rows_resent").Int(ToInt(calls.rows_resent)).Key("hedges").Int(ToInt(calls.hedges));
  json.Key("timeouts").Int(ToInt(calls.timeouts)).Key("links_lost").Int(ToInt(calls.links_lost));
  json.Key("bytes_out").Int(ToInt(calls.bytes_out)).Key("bytes_in").Int(ToInt(calls.bytes_in));
  json.Key("bytes_least").Int(ToInt(calls.bytes_least)).Key("call_seconds");
  WriteAll(json, calls.seconds);
  json.EndObject();
}

void WritePaths(JsonWriter& json, const PathCounts& paths) {
  json.BeginObject().Key("rows").Int(ToInt(paths.rows)).Key("distinct").Int(ToInt(paths.distinct));
  json.Key("other").Int(ToInt(paths.other)).Key("top").BeginArray();
  for (const Path& path : paths.top) {
    json.BeginObject().Key("experts").BeginArray();
    for (const int32_t expert : path.experts) {
      json.Int(expert);
    }
    json.EndArray().Key("rows").Int(ToInt(path.rows)).EndObject();
  }
  json.EndArray().EndObject();
}

}  // namespace

std::string Board::State::ModelJson() const {
  std::string out;
  JsonWriter json(out);
  const ModelCard& model = sums.model;
  if (model.layers.empty() && model.name.empty()) {
    json.Null();
    return out;
  }
  json.BeginObject().Key("name").String(model.name).Key("top_k").Int(model.top_k);
  json.Key("dtype").String(model.dtype).Key("layers");
  WriteLayers(json, model.layers);
  json.Key("image");
  if (model.image_rows > 0) {
    json.BeginObject().Key("rows").Int(model.image_rows);
    json.Key("columns").Int(model.image_columns).EndObject();
  } else {
    json.Null();
  }
  json.EndObject();
  return out;
}

std::string Board::State::ClusterJson() const {
  int64_t served = 0;
  for (const auto& holders : told.placement) {
    served += holders.empty() ? 0 : 1;
  }
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("epoch").Int(ToInt(told.epoch)).Key("term").Int(told.term);
  json.Key("state").String(told.state).Key("blocked").String(told.blocked);
  json.Key("experts_served").Int(served);
  json.Key("experts_total").Int(ToInt(NumExperts(told.layers)));
  json.Key("replicas_wanted").Int(told.replicas_wanted);
  json.Key("replicas_lowest").Int(told.replicas_lowest);
  // A time and not an age, which would change with every tick.
  json.Key("placed_at").Double(Rounded(placed_at, 1000));
  json.Key("imbalance_planned").Double(Rounded(told.imbalance_planned, 1000));
  json.Key("imbalance_seen").Double(Rounded(told.imbalance_seen, 1000));
  json.Key("plan").Int(ToInt(told.plan)).EndObject();
  return out;
}

std::string Board::State::FrontendsJson() const {
  std::string out;
  JsonWriter json(out);
  json.BeginArray();
  for (const FrontendPicture& frontend : told.frontends) {
    const auto it = reports.find({frontend.name, frontend.incarnation});
    const FrontendFigures none;
    const FrontendFigures& figures = it == reports.end() ? none : it->second;
    json.BeginObject().Key("id").Int(frontend.id).Key("name").String(frontend.name);
    json.Key("epoch").Int(ToInt(frontend.epoch)).Key("is_reporting").Bool(it != reports.end());
    json.Key("running").Int(figures.running).Key("waiting").Int(figures.waiting);
    json.Key("kv").Double(Rounded(figures.kv, 1000)).Key("has_api").Bool(frontend.has_api);
    json.EndObject();
  }
  json.EndArray();
  return out;
}

std::string Board::State::PlacementJson() const {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("epoch").Int(ToInt(told.epoch)).Key("experts").BeginArray();
  for (const auto& holders : told.placement) {
    json.BeginArray();
    for (const int32_t worker : holders) {
      json.Int(worker);
    }
    json.EndArray();
  }
  json.EndArray().EndObject();
  return out;
}

std::string Board::State::ServingJson() const {
  const Serving& serving = sums.serving;
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("prompt_text").Int(ToInt(serving.prompt_text));
  json.Key("prompt_image").Int(ToInt(serving.prompt_image));
  json.Key("cached").Int(ToInt(serving.cached)).Key("generated").Int(ToInt(serving.generated));
  json.Key("finished").BeginObject();
  const char* const reasons[] = {"stop", "length", "abort", "error"};
  for (size_t i = 0; i < serving.finished.size(); ++i) {
    json.Key(reasons[i]).Int(ToInt(serving.finished[i]));
  }
  json.EndObject().Key("images").Int(ToInt(serving.images));
  json.Key("image_hits").Int(ToInt(serving.image_hits));
  json.Key("preemptions").Int(ToInt(serving.preemptions));
  json.Key("requests_touched").Int(ToInt(serving.requests_touched));
  json.Key("rescued").Int(ToInt(serving.rescued)).Key("ttft");
  WriteAll(json, serving.ttft);
  json.Key("itl");
  WriteAll(json, serving.itl);
  json.Key("recovery");
  WriteAll(json, serving.recovery);
  json.EndObject();
  return out;
}

std::string Board::State::PathwaysJson() const {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("layers").BeginArray();
  for (const MoeLayer& layer : sums.model.layers) {
    json.Int(layer.layer);
  }
  json.EndArray().Key("text");
  WritePaths(json, sums.pathways[0]);
  json.Key("image");
  WritePaths(json, sums.pathways[1]);
  json.EndObject();
  return out;
}

std::string Board::State::BoundsJson() const {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("call_seconds");
  WriteAll(json, options.bounds.call_seconds);
  json.Key("ttft");
  WriteAll(json, options.bounds.ttft);
  json.Key("itl");
  WriteAll(json, options.bounds.itl);
  json.Key("recovery");
  WriteAll(json, options.bounds.recovery);
  json.EndObject();
  return out;
}

std::string Board::State::AdminJson() const {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("is_enabled").Bool(options.is_admin_enabled);
  json.Key("reason").String(options.admin_reason).EndObject();
  return out;
}

std::map<int32_t, std::string> Board::State::WorkersJson() const {
  std::map<int32_t, std::string> out;
  const auto put = [&](const WorkerPicture& worker) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    WorkerCalls calls;
    for (const WorkerCalls& known : sums.workers) {
      if (known.worker == worker.id) {
        calls = known;
      }
    }
    JsonWriter json(out[worker.id] = "");
    WriteWorker(json, worker, calls);
  };
  for (const Gone& entry : gone) {
    put(entry.worker);
  }
  for (const WorkerPicture& worker : told.workers) {
    put(worker);
  }
  return out;
}

std::string Board::State::ToJson(const Incident& incident) {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("id").Int(ToInt(incident.id)).Key("worker").Int(incident.worker);
  json.Key("name").String(incident.name).Key("kind");
  json.String(incident.is_death ? "dead" : "suspect").Key("begin").Double(incident.begin);
  json.Key("detected_after").Double(Rounded(incident.detected_after, 1000)).Key("restored_after");
  if (incident.restored_after) {
    json.Double(Rounded(*incident.restored_after, 1000));
  } else {
    json.Null();
  }
  json.Key("epoch_before").Int(ToInt(incident.epoch_before)).Key("epoch_after");
  if (incident.epoch_after) {
    json.Int(ToInt(*incident.epoch_after));
  } else {
    json.Null();
  }
  json.Key("rows_resent").Int(ToInt(incident.rows_resent));
  json.Key("calls_resent").Int(ToInt(incident.calls_resent));
  json.Key("requests_touched").Int(ToInt(incident.requests_touched));
  json.Key("requests_failed").Int(ToInt(incident.requests_failed)).Key("recovery");
  WriteAll(json, incident.recovery);
  json.EndObject();
  return out;
}

void Board::State::WriteSections(JsonWriter& json) {
  const std::pair<const char*, std::string> now[] = {
      {"model", ModelJson()},         {"cluster", ClusterJson()}, {"frontends", FrontendsJson()},
      {"placement", PlacementJson()}, {"serving", ServingJson()}, {"pathways", PathwaysJson()}};
  for (const auto& [key, text] : now) {
    if (std::string& shown = sections[key]; shown != text) {
      shown = text;
      json.Key(key).Json(shown);
    }
  }
}

void Board::State::WriteWorkers(JsonWriter& json) {
  std::map<int32_t, std::string> now = WorkersJson();
  {
    LazyArray changed(json, "workers");
    for (const auto& [id, text] : now) {
      const auto it = workers.find(id);
      if (it == workers.end() || it->second != text) {
        changed.Next().Json(text);
      }
    }
  }
  LazyArray left(json, "workers_gone");
  for (const auto& [id, text] : workers) {
    if (!now.contains(id)) {
      left.Next().Int(id);
    }
  }
  workers = std::move(now);
}

void Board::State::WriteEvents(JsonWriter& json) {
  LazyArray fresh(json, "events");
  for (const Event& event : events) {
    if (event.id > shown_events) {
      fresh.Next().Json(event.json);
      shown_events = event.id;
    }
  }
}

void Board::State::WriteIncidents(JsonWriter& json) {
  LazyArray changed(json, "incidents");
  std::map<uint64_t, std::string> now;
  for (const Incident& incident : incidents.all()) {
    const auto [it, is_new] = now.emplace(incident.id, ToJson(incident));
    const auto shown = shown_incidents.find(incident.id);
    if (shown == shown_incidents.end() || shown->second != it->second) {
      changed.Next().Json(it->second);
    }
  }
  shown_incidents = std::move(now);
}

std::string Board::State::Delta(FrontendFigures now) {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("seq").Int(ToInt(++seq)).Key("time").Double(ticked_at);
  // A model that is another one, or is known at last, begins with zeros.
  FrontendFigures before;
  if (sums.model == now.model) {
    before = std::move(sums);
  }
  WriteChanges(json, "rows", before.rows, now.rows);
  WriteChanges(json, "weights", before.weights, now.weights);
  WriteChanges(json, "probabilities", before.probabilities, now.probabilities);
  sums = std::move(now);
  Keep(ticked_at);
  WriteSections(json);
  WriteWorkers(json);
  WriteEvents(json);
  WriteIncidents(json);
  json.EndObject();
  return out;
}

std::string Board::Snapshot() const {
  const State& s = *state_;
  MutexLock lock(s.mu);
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("schema").Int(1).Key("seq").Int(ToInt(s.seq));
  json.Key("time").Double(s.ticked_at).Key("started").Double(s.started);
  json.Key("role").String(s.options.role).Key("version").String(s.options.version);
  for (const auto& [key, text] : s.sections) {
    json.Key(key).Json(text);
  }
  json.Key("workers").BeginArray();
  for (const auto& [id, text] : s.workers) {
    json.Json(text);
  }
  json.EndArray();
  const size_t num_experts = NumExperts(s.sums.model.layers);
  // Of all experts, also before anybody has reported.
  std::vector<uint64_t> rows = s.sums.rows;
  std::vector<double> weights = s.sums.weights;
  std::vector<double> probabilities = s.sums.probabilities;
  rows.resize(num_experts * kCellsPerExpert);
  weights.resize(num_experts * kModalities);
  probabilities.resize(num_experts);
  json.Key("rows");
  WriteAll(json, rows);
  json.Key("weights");
  WriteAll(json, weights);
  json.Key("probabilities");
  WriteAll(json, probabilities);
  json.Key("bounds").Json(s.BoundsJson()).Key("events").BeginArray();
  for (const Event& event : s.events) {
    if (event.id <= s.shown_events) {
      json.Json(event.json);
    }
  }
  json.EndArray().Key("incidents").BeginArray();
  for (const auto& [id, text] : s.shown_incidents) {
    json.Json(text);
  }
  json.EndArray().Key("admin").Json(s.AdminJson()).EndObject();
  return out;
}

std::string Board::PlacementJson() const {
  const State& s = *state_;
  MutexLock lock(s.mu);
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("seq").Int(ToInt(s.seq)).Key("time").Double(s.ticked_at);
  for (const char* key : {"model", "cluster", "placement"}) {
    const auto it = s.sections.find(key);
    json.Key(key).Json(it == s.sections.end() ? "null" : it->second);
  }
  json.Key("workers").BeginArray();
  for (const auto& [id, text] : s.workers) {
    json.Json(text);
  }
  json.EndArray().EndObject();
  return out;
}

std::string Board::History() const {
  const State& s = *state_;
  MutexLock lock(s.mu);
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("step").Int(10).Key("times");
  WriteAll(json, s.history.times);
  json.Key("rows");
  WriteAll(json, s.history.first);
  json.Key("steps").BeginArray();
  for (const auto& step : s.history.steps) {
    json.BeginArray();
    for (const auto& [cell, rows] : step) {
      json.Int(cell).Int(ToInt(rows));
    }
    json.EndArray();
  }
  json.EndArray().EndObject();
  return out;
}

}  // namespace conclave::live
