#include "live_state.h"

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <utility>

#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::cli {
namespace {

namespace json = boost::json;

constexpr double kWindowSeconds = 10;
constexpr size_t kEventsKept = 500;
constexpr size_t kLayersMax = 4096;
constexpr size_t kUnitsMax = size_t{1} << 20;
constexpr size_t kWorkersMax = 4096;
constexpr size_t kBoundsMax = 256;
constexpr size_t kTextMax = 512;

// An object whose fields are read with their types; the first one that is wrong is kept. A field
// that is missing leaves its target as it is: deltas and older servers have fewer.
class Fields {
 public:
  Fields(const json::value& value, std::string path, absl::Status& status)
      : object_(value.if_object()), path_(std::move(path)), status_(status) {
    if (object_ == nullptr) {
      Wrong("", "an object");
    }
  }

  const json::value* Find(const char* key) const {
    return object_ == nullptr ? nullptr : object_->if_contains(key);
  }
  void Number(const char* key, double& target) const {
    const json::value* value = Find(key);
    if (value == nullptr) {
      return;
    }
    double number = 0;
    if (ToDouble(*value, number)) {
      target = number;
    } else {
      Wrong(key, "a number");
    }
  }
  void Whole(const char* key, int64_t& target) const {
    const json::value* value = Find(key);
    if (value != nullptr && value->is_int64()) {
      target = value->get_int64();
    } else if (value != nullptr) {
      Wrong(key, "a whole number");
    }
  }
  void Text(const char* key, std::string& target) const {
    const json::value* value = Find(key);
    if (value != nullptr && value->is_string()) {
      // It goes to a terminal.
      target = observability::Printable({value->get_string().data(), value->get_string().size()},
                                        kTextMax);
      // One byte is one column from here on.
      std::replace_if(
          target.begin(), target.end(), [](char c) { return (c & 0x80) != 0; }, '?');
    } else if (value != nullptr) {
      Wrong(key, "a text");
    }
  }
  void Bool(const char* key, bool& target) const {
    const json::value* value = Find(key);
    if (value != nullptr && value->is_bool()) {
      target = value->get_bool();
    } else if (value != nullptr) {
      Wrong(key, "true or false");
    }
  }
  void Numbers(const char* key, size_t max, std::vector<double>& target) const {
    const json::value* value = Find(key);
    if (value == nullptr) {
      return;
    }
    const json::array* array = value->if_array();
    if (array == nullptr || array->size() > max) {
      Wrong(key, "a list of at most " + std::to_string(max) + " numbers");
      return;
    }
    std::vector<double> numbers(array->size());
    for (size_t i = 0; i < array->size(); ++i) {
      if (!ToDouble((*array)[i], numbers[i])) {
        Wrong(key, "numbers");
        return;
      }
    }
    target = std::move(numbers);
  }
  // Null where there is no such list.
  const json::array* List(const char* key, size_t max) const {
    const json::value* value = Find(key);
    if (value == nullptr) {
      return nullptr;
    }
    const json::array* array = value->if_array();
    if (array == nullptr || array->size() > max) {
      Wrong(key, "a list of at most " + std::to_string(max));
      return nullptr;
    }
    return array;
  }
  void Wrong(const std::string& key, const std::string& expected) const {
    if (status_.ok()) {
      const std::string place = path_.empty() || key.empty() ? path_ + key : path_ + "." + key;
      status_ = Error(absl::StatusCode::kUnavailable, "live_update",
                      (place.empty() ? "the update" : place) + ": expected " + expected);
    }
  }
  std::string PathOf(const char* key, size_t index) const {
    return (path_.empty() ? "" : path_ + ".") + key + "[" + std::to_string(index) + "]";
  }
  absl::Status& status() const { return status_; }

 private:
  static bool ToDouble(const json::value& value, double& number) {
    if (value.is_int64()) {
      number = static_cast<double>(value.get_int64());
    } else if (value.is_uint64()) {
      number = static_cast<double>(value.get_uint64());
    } else if (value.is_double()) {
      number = value.get_double();
    } else {
      return false;
    }
    return std::isfinite(number) && number >= 0;
  }
  const json::object* object_;
  const std::string path_;
  absl::Status& status_;
};

void ReadWorker(const Fields& in, LiveWorker& worker) {
  in.Text("name", worker.name);
  in.Text("state", worker.state);
  in.Whole("experts", worker.experts);
  in.Whole("loading", worker.loading);
  in.Number("memory", worker.memory);
  in.Number("memory_used", worker.memory_used);
  in.Number("busy", worker.busy);
  in.Whole("queue", worker.queue);
  in.Number("rows_per_second", worker.rows_per_second);
  in.Number("heartbeat_age_ms", worker.heartbeat_age_ms);
  in.Bool("is_distrusted", worker.is_distrusted);
  in.Numbers("call_seconds", kBoundsMax, worker.call_seconds);
}

void ReadWorkers(const Fields& in, std::map<int32_t, LiveWorker>& workers) {
  if (const json::array* list = in.List("workers", kWorkersMax); list != nullptr) {
    for (size_t i = 0; i < list->size(); ++i) {
      const Fields fields((*list)[i], in.PathOf("workers", i), in.status());
      int64_t id = -1;
      fields.Whole("id", id);
      if (id < 0 || id > INT32_MAX) {
        fields.Wrong("id", "0 to 2147483647");
        return;
      }
      LiveWorker& worker = workers[static_cast<int32_t>(id)];
      worker.id = static_cast<int32_t>(id);
      ReadWorker(fields, worker);
    }
  }
  std::vector<double> gone;
  in.Numbers("workers_gone", kWorkersMax, gone);
  for (const double id : gone) {
    if (id <= INT32_MAX) {
      workers.erase(static_cast<int32_t>(id));
    }
  }
  if (workers.size() > kWorkersMax) {
    in.Wrong("workers", "at most " + std::to_string(kWorkersMax) + " of them");
  }
}

void ReadModel(const Fields& in, LiveState& state) {
  const json::value* value = in.Find("model");
  if (value == nullptr) {
    return;
  }
  if (value->is_null()) {
    state.model.clear();
    state.layers.clear();
    return;
  }
  const Fields model(*value, "model", in.status());
  model.Text("name", state.model);
  const json::array* layers = model.List("layers", kLayersMax);
  if (layers == nullptr) {
    return;
  }
  state.layers.clear();
  size_t units = 0;
  for (size_t i = 0; i < layers->size(); ++i) {
    const Fields fields((*layers)[i], model.PathOf("layers", i), in.status());
    int64_t layer = -1;
    int64_t experts = 0;
    fields.Whole("layer", layer);
    fields.Whole("experts", experts);
    if (layer < 0 || layer > INT32_MAX || experts < 1 || experts > 65'536 ||
        (units += static_cast<size_t>(experts)) > kUnitsMax) {
      fields.Wrong("", "a layer of 1 to 65536 experts");
      return;
    }
    state.layers.push_back({static_cast<int32_t>(layer), static_cast<int32_t>(experts)});
  }
}

void ReadCluster(const Fields& in, LiveCluster& cluster) {
  const json::value* value = in.Find("cluster");
  if (value == nullptr) {
    return;
  }
  const Fields fields(*value, "cluster", in.status());
  fields.Number("epoch", cluster.epoch);
  fields.Number("term", cluster.term);
  fields.Text("state", cluster.state);
  fields.Text("blocked", cluster.blocked);
  fields.Whole("experts_served", cluster.experts_served);
  fields.Whole("experts_total", cluster.experts_total);
  fields.Whole("replicas_wanted", cluster.replicas_wanted);
  fields.Whole("replicas_lowest", cluster.replicas_lowest);
  fields.Number("imbalance_planned", cluster.imbalance_planned);
  fields.Number("imbalance_seen", cluster.imbalance_seen);
  fields.Number("plan", cluster.plan);
}

void ReadServing(const Fields& in, LiveState& state) {
  if (const json::value* value = in.Find("serving"); value != nullptr) {
    const Fields fields(*value, "serving", in.status());
    LiveServing& serving = state.serving;
    fields.Number("prompt_text", serving.prompt_text);
    fields.Number("prompt_image", serving.prompt_image);
    fields.Number("cached", serving.cached);
    fields.Number("generated", serving.generated);
    fields.Number("images", serving.images);
    fields.Numbers("ttft", kBoundsMax, serving.ttft);
    fields.Numbers("itl", kBoundsMax, serving.itl);
  }
  if (const json::array* list = in.List("frontends", kWorkersMax); list != nullptr) {
    state.frontends = static_cast<int64_t>(list->size());
    state.running = state.waiting = 0;
    for (size_t i = 0; i < list->size(); ++i) {
      const Fields fields((*list)[i], in.PathOf("frontends", i), in.status());
      double running = 0;
      double waiting = 0;
      fields.Number("running", running);
      fields.Number("waiting", waiting);
      state.running += static_cast<int64_t>(std::min(running, 1e9));
      state.waiting += static_cast<int64_t>(std::min(waiting, 1e9));
    }
  }
}

void ReadBounds(const Fields& in, LiveState& state) {
  const json::value* value = in.Find("bounds");
  if (value == nullptr) {
    return;
  }
  const Fields fields(*value, "bounds", in.status());
  fields.Numbers("call_seconds", kBoundsMax, state.call_bounds);
  fields.Numbers("ttft", kBoundsMax, state.ttft_bounds);
  fields.Numbers("itl", kBoundsMax, state.itl_bounds);
  for (const auto* bounds : {&state.call_bounds, &state.ttft_bounds, &state.itl_bounds}) {
    if (!std::is_sorted(bounds->begin(), bounds->end())) {
      fields.Wrong("", "ascending bounds");
    }
  }
}

void ReadEvents(const Fields& in, std::deque<LiveEvent>& events) {
  const json::array* list = in.List("events", 100'000);
  if (list == nullptr) {
    return;
  }
  for (size_t i = 0; i < list->size(); ++i) {
    const Fields fields((*list)[i], in.PathOf("events", i), in.status());
    LiveEvent event;
    fields.Number("id", event.id);
    fields.Number("time", event.time);
    fields.Text("kind", event.kind);
    fields.Text("name", event.name);
    fields.Text("text", event.text);
    events.push_back(std::move(event));
  }
  while (events.size() > kEventsKept) {
    events.pop_front();
  }
}

size_t NumUnits(const LiveState& state) {
  size_t units = 0;
  for (const LiveLayer& layer : state.layers) {
    units += static_cast<size_t>(layer.experts);
  }
  return units;
}

// All of them in a snapshot, pairs of index and value in a delta.
void ReadRows(const Fields& in, bool is_snapshot, LiveState& state) {
  const size_t size = NumUnits(state) * kLiveRowKinds;
  if (is_snapshot) {
    state.rows.clear();
    in.Numbers("rows", kUnitsMax * kLiveRowKinds, state.rows);
    if (state.rows.empty()) {
      state.rows.resize(size, 0);
    }
    if (state.rows.size() != size) {
      in.Wrong("rows", std::to_string(size) + " of them, 8 per expert");
    }
    return;
  }
  state.rows.resize(size, 0);
  std::vector<double> pairs;
  in.Numbers("rows", 2 * kUnitsMax * kLiveRowKinds, pairs);
  if (pairs.size() % 2 != 0) {
    in.Wrong("rows", "pairs of index and value");
    return;
  }
  for (size_t i = 0; i < pairs.size(); i += 2) {
    if (pairs[i] >= static_cast<double>(size)) {
      in.Wrong("rows", "indices below " + std::to_string(size));
      return;
    }
    state.rows[static_cast<size_t>(pairs[i])] = pairs[i + 1];
  }
}

}  // namespace

absl::Status LiveState::Apply(std::string_view event, const std::string& json) {
  const bool is_snapshot = event == "snapshot";
  if (!is_snapshot && event != "delta") {
    return absl::OkStatus();
  }
  if (!is_snapshot && !has_snapshot_) {
    return Error(absl::StatusCode::kUnavailable, "live_update", "a delta before any snapshot");
  }
  boost::system::error_code error;
  json::value value = json::parse(json, error);
  if (error) {
    value = nullptr;
  }
  absl::Status status;
  const Fields in(value, "", status);
  double next = -1;
  in.Number("seq", next);
  if (next < 0) {
    in.Wrong("seq", "a number");
  }
  if (is_snapshot) {
    double schema = 1;
    in.Number("schema", schema);
    if (schema != 1) {
      in.Wrong("schema", "1");
    }
  } else if (status.ok() && next != seq + 1) {
    return Error(absl::StatusCode::kFailedPrecondition, "live_gap", "updates were missed");
  }
  CONCLAVE_RETURN_IF_ERROR(status);
  LiveState read;
  if (!is_snapshot) {
    read = *this;
  }
  read.seq = next;
  in.Number("time", read.time);
  in.Text("role", read.role);
  in.Text("version", read.version);
  ReadModel(in, read);
  ReadCluster(in, read.cluster);
  ReadWorkers(in, read.workers);
  ReadServing(in, read);
  ReadBounds(in, read);
  ReadEvents(in, read.events);
  ReadRows(in, is_snapshot, read);
  CONCLAVE_RETURN_IF_ERROR(status);
  read.has_snapshot_ = true;
  read.Remember();
  *this = std::move(read);
  return absl::OkStatus();
}

void LiveState::Remember() {
  Moment moment{time, rows, serving, {}};
  for (const auto& [id, worker] : workers) {
    moment.call_seconds[id] = worker.call_seconds;
  }
  moments_.push_back(std::make_shared<const Moment>(std::move(moment)));
  // The oldest one is the last that is not younger than the window.
  while (moments_.size() > 2 && moments_[1]->time <= time - kWindowSeconds) {
    moments_.pop_front();
  }
}

}  // namespace conclave::cli
