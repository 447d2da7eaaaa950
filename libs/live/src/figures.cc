#include "conclave/live/figures.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <utility>

namespace conclave::live {
namespace {

template <typename T>
void AddEach(const std::vector<T>& from, std::vector<T>& into) {
  into.resize(std::max(into.size(), from.size()));
  std::transform(from.begin(), from.end(), into.begin(), into.begin(), std::plus<T>());
}

void AddServing(const Serving& from, Serving& into) {
  into.prompt_text += from.prompt_text;
  into.prompt_image += from.prompt_image;
  into.cached += from.cached;
  into.generated += from.generated;
  for (size_t i = 0; i < into.finished.size(); ++i) {
    into.finished[i] += from.finished[i];
  }
  into.images += from.images;
  into.image_hits += from.image_hits;
  into.preemptions += from.preemptions;
  into.requests_touched += from.requests_touched;
  into.rescued += from.rescued;
  AddEach(from.ttft, into.ttft);
  AddEach(from.itl, into.itl);
  AddEach(from.recovery, into.recovery);
}

void AddCalls(const WorkerCalls& from, WorkerCalls& into) {
  into.calls += from.calls;
  into.rows += from.rows;
  into.calls_resent += from.calls_resent;
  into.rows_resent += from.rows_resent;
  into.hedges += from.hedges;
  into.timeouts += from.timeouts;
  into.links_lost += from.links_lost;
  into.bytes_out += from.bytes_out;
  into.bytes_in += from.bytes_in;
  into.bytes_least += from.bytes_least;
  AddEach(from.seconds, into.seconds);
}

// The most frequent of both: exact as long as each frontend sends all of its paths.
void AddPaths(const PathCounts& from, PathCounts& into) {
  into.rows += from.rows;
  into.other += from.other;
  into.distinct = std::max(into.distinct, from.distinct);
  std::map<std::vector<int32_t>, uint64_t> merged;
  for (const std::vector<Path>* paths : {&std::as_const(into.top), &from.top}) {
    for (const Path& path : *paths) {
      merged[path.experts] += path.rows;
    }
  }
  into.distinct = std::max<uint64_t>(into.distinct, merged.size());
  into.top.clear();
  for (auto& [experts, rows] : merged) {
    into.top.push_back({experts, rows});
  }
  std::stable_sort(into.top.begin(), into.top.end(),
                   [](const Path& a, const Path& b) { return a.rows > b.rows; });
  into.top.resize(std::min(into.top.size(), kTopPaths));
}

}  // namespace

size_t NumExperts(const std::vector<MoeLayer>& layers) {
  return std::accumulate(layers.begin(), layers.end(), size_t{0}, [](size_t sum, MoeLayer layer) {
    return sum + static_cast<size_t>(layer.num_experts);
  });
}

void Add(const FrontendFigures& from, FrontendFigures& into) {
  if (into.model.layers.empty()) {
    into.model = from.model;
  }
  AddEach(from.rows, into.rows);
  AddEach(from.weights, into.weights);
  AddEach(from.probabilities, into.probabilities);
  into.running += from.running;
  into.waiting += from.waiting;
  into.kv = std::max(into.kv, from.kv);
  AddServing(from.serving, into.serving);
  for (const WorkerCalls& calls : from.workers) {
    auto it = std::lower_bound(
        into.workers.begin(), into.workers.end(), calls.worker,
        [](const WorkerCalls& known, int32_t worker) { return known.worker < worker; });
    if (it == into.workers.end() || it->worker != calls.worker) {
      it = into.workers.insert(it, WorkerCalls{.worker = calls.worker, .seconds = {}});
    }
    AddCalls(calls, *it);
  }
  for (size_t m = 0; m < kModalities; ++m) {
    AddPaths(from.pathways[m], into.pathways[m]);
  }
}

}  // namespace conclave::live
