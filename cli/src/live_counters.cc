#include "live_counters.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "conclave/observability/metrics.h"

namespace conclave::cli {

LiveCounters::LiveCounters()
    : ttft_(observability::TimeToFirstTokenBounds()), itl_(observability::InterTokenBounds()) {}

void LiveCounters::OnStep(const frontend::EngineObserver::Step& step) {
  running_.store(step.running, std::memory_order_relaxed);
  waiting_.store(step.waiting, std::memory_order_relaxed);
  kv_.store(step.kv_used, std::memory_order_relaxed);
  Add(touched_, static_cast<uint64_t>(step.touched));
}

void LiveCounters::OnTokenGap(std::chrono::nanoseconds gap) {
  itl_.Observe(std::chrono::duration<double>(gap).count());
  Add(generated_, 1);
}

void LiveCounters::OnSequenceEnd(const frontend::SequenceStats& stats) {
  Add(cached_, static_cast<uint64_t>(stats.cached_rows));
  // Every token but the first has a gap before it.
  Add(generated_, stats.generated > 0 ? 1 : 0);
}

void LiveCounters::OnImage(bool was_cached) {
  Add(images_, 1);
  Add(image_hits_, was_cached ? 1 : 0);
}

void LiveCounters::OnRequestEnd(frontend::FinishReason reason, const frontend::Usage& usage,
                                const frontend::Timings& timings) {
  Add(finished_.at(static_cast<size_t>(reason)), 1);
  if (usage.completion_tokens > 0) {
    ttft_.Observe(timings.first_token_ms / 1000);
  }
}

void LiveCounters::Put(live::FrontendFigures& figures) const {
  const auto value = [](const Count& count) { return count.load(std::memory_order_relaxed); };
  figures.running = running_.load(std::memory_order_relaxed);
  figures.waiting = waiting_.load(std::memory_order_relaxed);
  figures.kv = std::clamp(kv_.load(std::memory_order_relaxed), 0.0, 1.0);
  live::Serving& serving = figures.serving;
  serving.cached = value(cached_);
  serving.generated = value(generated_);
  serving.images = value(images_);
  serving.image_hits = value(image_hits_);
  serving.preemptions = value(preemptions_);
  serving.requests_touched = value(touched_);
  std::transform(finished_.begin(), finished_.end(), serving.finished.begin(), value);
  serving.ttft = ttft_.Counts();
  serving.itl = itl_.Counts();
}

void PutGates(const frontend::GateCounter& gates, live::FrontendFigures& figures) {
  const size_t num_experts = live::NumExperts(figures.model.layers);
  figures.rows.resize(num_experts * live::kCellsPerExpert);
  figures.weights.resize(num_experts * live::kModalities);
  figures.probabilities = gates.Probabilities();
  // Loads come layer after layer, experts ascending.
  size_t expert = 0;
  const frontend::GateCounter::Load* last = nullptr;
  const std::vector<frontend::GateCounter::Load> loads = gates.Loads();
  for (const frontend::GateCounter::Load& load : loads) {
    if (last != nullptr && (last->layer != load.layer || last->expert != load.expert)) {
      ++expert;
    }
    last = &load;
    const size_t modality = load.is_image ? 1 : 0;
    const size_t phase = load.is_prefill ? 0 : 1;
    const auto rank = static_cast<size_t>(std::min(load.rank, 1));
    figures.rows[live::RowCell(expert, rank, phase, modality)] += load.rows;
    figures.weights[expert * live::kModalities + modality] += load.weights;
    if (load.layer == loads.front().layer && load.rank == 0 && load.is_prefill) {
      (load.is_image ? figures.serving.prompt_image : figures.serving.prompt_text) += load.rows;
    }
  }
}

void PutDispatcher(const frontend::Dispatcher& dispatcher, live::FrontendFigures& figures) {
  std::map<int32_t, live::WorkerCalls> by_worker;
  for (const frontend::WorkerDispatch& from : dispatcher.Workers()) {
    live::WorkerCalls& to = by_worker[from.worker.value()];
    to.worker = from.worker.value();
    to.calls += from.calls;
    to.rows += from.rows;
    to.calls_resent += from.calls_resent;
    to.rows_resent += from.rows_resent;
    to.hedges += from.hedges;
    to.timeouts += from.timeouts;
    to.links_lost += from.link_losses;
    to.bytes_out += from.bytes_dispatched;
    to.bytes_in += from.bytes_combined;
    to.bytes_least += from.bytes_least;
    to.seconds.resize(from.round_trip.counts.size());
    std::transform(to.seconds.begin(), to.seconds.end(), from.round_trip.counts.begin(),
                   to.seconds.begin(), std::plus<>());
  }
  for (auto& [id, calls] : by_worker) {
    figures.workers.push_back(std::move(calls));
  }
  const frontend::BucketCounts recovery = dispatcher.Recovery();
  figures.serving.recovery.assign(recovery.counts.begin(), recovery.counts.end());
  figures.serving.rescued = dispatcher.Stats().rescues;
}

}  // namespace conclave::cli
