#include "dispatch_ledger.h"

#include <algorithm>
#include <string_view>
#include <utility>

namespace conclave::frontend {

std::string_view NameOf(DispatchStage stage) {
  constexpr std::string_view kNames[] = {"serialize", "network", "queue", "compute", "combine"};
  return kNames[static_cast<size_t>(stage)];
}

std::string_view NameOf(FailoverReason reason) {
  constexpr std::string_view kNames[] = {"timeout", "link_lost", "refused"};
  return kNames[static_cast<size_t>(reason)];
}

void DurationCounter::Observe(std::chrono::nanoseconds duration) {
  duration = std::max(duration, std::chrono::nanoseconds(0));
  const auto bound = std::lower_bound(kDispatchBounds.begin(), kDispatchBounds.end(), duration);
  ++counts[static_cast<size_t>(bound - kDispatchBounds.begin())];
  nanoseconds.Add(static_cast<uint64_t>(duration.count()));
}

BucketCounts DurationCounter::Read() const {
  BucketCounts out;
  std::transform(counts.begin(), counts.end(), out.counts.begin(),
                 [](const Counter& counter) { return counter.get(); });
  out.sum = static_cast<double>(nanoseconds.get()) * 1e-9;
  return out;
}

WorkerDispatch WorkerLedger::Read() const {
  WorkerDispatch out;
  out.worker = worker;
  out.transport = transport;
  out.is_up = is_up.load(std::memory_order_relaxed);
  out.calls = calls.get();
  out.rows = rows.get();
  out.rows_answered = rows_answered.get();
  out.hedges = hedges.get();
  out.timeouts = timeouts.get();
  out.link_losses = link_losses.get();
  out.refusals = refusals.get();
  for (size_t reason = 0; reason < kFailoverReasons; ++reason) {
    out.failovers[reason] = failovers[reason].get();
    out.calls_resent += out.failovers[reason];
  }
  out.rows_resent = rows_resent.get();
  out.bytes_dispatched = bytes_dispatched.get();
  out.bytes_combined = bytes_combined.get();
  out.bytes_least = bytes_least.get();
  std::transform(stages.begin(), stages.end(), out.stages.begin(),
                 [](const DurationCounter& stage) { return stage.Read(); });
  out.round_trip = round_trip.Read();
  return out;
}

WorkerLedger& DispatchLedger::EntryOf(WorkerId worker, const char* carrier) {
  const auto known = std::find_if(owned_.begin(), owned_.end(), [&](const auto& entry) {
    return entry->worker == worker && std::string_view(entry->transport) == carrier;
  });
  if (known != owned_.end()) {
    return **known;
  }
  if (owned_.size() == kEntriesMax) {
    return unlisted_;
  }
  owned_.push_back(std::make_unique<WorkerLedger>(worker, carrier));
  entries_[owned_.size() - 1].store(owned_.back().get(), std::memory_order_relaxed);
  // Whoever sees the size sees the entries below it.
  size_.store(owned_.size(), std::memory_order_release);
  return *owned_.back();
}

std::vector<WorkerDispatch> DispatchLedger::Read() const {
  std::vector<WorkerDispatch> out;
  const size_t size = size_.load(std::memory_order_acquire);
  out.reserve(size);
  for (size_t i = 0; i < size; ++i) {
    out.push_back(entries_[i].load(std::memory_order_relaxed)->Read());
  }
  return out;
}

}  // namespace conclave::frontend
