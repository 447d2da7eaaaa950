// What an engine counts for the live picture (docs/live.md), beside its metrics: the same figures,
// in a form that can be read back.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "conclave/frontend/chat_service.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/frontend/engine.h"
#include "conclave/frontend/gate_counter.h"
#include "conclave/frontend/path_counter.h"
#include "conclave/live/counting_histogram.h"
#include "conclave/live/figures.h"

namespace conclave::cli {

// Any thread; never blocks.
class LiveCounters {
 public:
  LiveCounters();

  void OnStep(const frontend::EngineObserver::Step& step);
  void OnTokenGap(std::chrono::nanoseconds gap);
  void OnSequenceEnd(const frontend::SequenceStats& stats);
  void OnPreemption() { Add(preemptions_, 1); }
  void OnImage(bool was_cached);
  void OnRequestEnd(frontend::FinishReason reason, const frontend::Usage& usage,
                    const frontend::Timings& timings);

  // Sets everything of it that this class counts.
  void Put(live::FrontendFigures& figures) const;

 private:
  using Count = std::atomic<uint64_t>;
  static void Add(Count& count, uint64_t n) { count.fetch_add(n, std::memory_order_relaxed); }

  std::atomic<int32_t> running_{0};
  std::atomic<int32_t> waiting_{0};
  std::atomic<double> kv_{0};
  Count cached_{0};
  Count generated_{0};
  Count images_{0};
  Count image_hits_{0};
  Count preemptions_{0};
  Count touched_{0};
  std::array<Count, 4> finished_{};
  live::CountingHistogram ttft_;
  live::CountingHistogram itl_;
};

// Rows, weights and prompts by what the gates chose.
void PutGates(const frontend::GateCounter& gates, live::FrontendFigures& figures);
// Calls by worker, summed over what carries them.
void PutDispatcher(const frontend::Dispatcher& dispatcher, live::FrontendFigures& figures);

}  // namespace conclave::cli
