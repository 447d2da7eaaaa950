// The counters behind dispatch_counts.h. Written by the dispatcher's thread alone, without locks:
// every value is a relaxed atomic, so a reader may see a call's rows before its bytes, never a torn
// value. Reading takes nothing from the writer.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "conclave/base/ids.h"
#include "conclave/frontend/dispatch_counts.h"

namespace conclave::frontend {

// Bumped by the dispatcher's thread, read by any.
struct Counter {
  std::atomic<uint64_t> value{0};
  void Add(uint64_t n) { value.store(get() + n, std::memory_order_relaxed); }
  void operator++() { Add(1); }
  uint64_t get() const { return value.load(std::memory_order_relaxed); }
};

struct DurationCounter {
  std::array<Counter, kDispatchBounds.size() + 1> counts;
  Counter nanoseconds;

  // A negative duration counts as none.
  void Observe(std::chrono::nanoseconds duration);
  BucketCounts Read() const;
};

// WorkerDispatch, being counted.
struct WorkerLedger {
  WorkerLedger(WorkerId worker_id, const char* carrier) : worker(worker_id), transport(carrier) {}

  const WorkerId worker;
  const char* const transport;
  std::atomic<bool> is_up{true};
  Counter calls, rows, rows_answered, hedges, timeouts, link_losses, refusals, rows_resent,
      bytes_dispatched, bytes_combined, bytes_least;
  std::array<Counter, kFailoverReasons> failovers;
  std::array<DurationCounter, kDispatchStages> stages;
  DurationCounter round_trip;

  void Observe(DispatchStage stage, std::chrono::nanoseconds duration) {
    stages[static_cast<size_t>(stage)].Observe(duration);
  }
  void CountResent(FailoverReason reason, uint64_t num_rows) {
    ++failovers[static_cast<size_t>(reason)];
    rows_resent.Add(num_rows);
  }
  WorkerDispatch Read() const;
};

// Entries stay where they are and are never removed, so that readers need no lock: a worker's id is
// given to no other, and a frontend meets at most some hundred of them.
class DispatchLedger {
 public:
  // The entry of this worker over this carrier, made when there is none; beyond kEntriesMax the
  // unlisted one. `carrier` is a constant. The dispatcher's thread; not on the path of a call.
  WorkerLedger& EntryOf(WorkerId worker, const char* carrier);
  // Counts what Read does not show: calls that the frontend computes itself.
  WorkerLedger& unlisted() { return unlisted_; }

  // In the order in which the workers were met. Any thread.
  std::vector<WorkerDispatch> Read() const;

 private:
  static constexpr size_t kEntriesMax = 2048;
  WorkerLedger unlisted_{WorkerId(-1), "inproc"};
  std::vector<std::unique_ptr<WorkerLedger>> owned_;
  std::atomic<size_t> size_{0};
  std::array<std::atomic<const WorkerLedger*>, kEntriesMax> entries_{};
};

}  // namespace conclave::frontend
