#include "conclave/frontend/straggler_log.h"

#include <algorithm>

#include "conclave/base/json_writer.h"
#include "conclave/model/decoder.h"
#include "link_table.h"

namespace conclave::frontend {
namespace {

using std::chrono::microseconds;

// The minute under way and those of the window.
constexpr int64_t kMinutes = StragglerLog::kWindow.count() + 1;
// Calls of one layer that may wait for its end; a layer has one call per worker and phase, and most
// of them are no candidates.
constexpr size_t kPendingMax = 256;

}  // namespace

struct StragglerLog::Call {
  AttemptRecord last;  // the attempt that was answered
  bool is_last = false;
  microseconds delayed{0};

  microseconds total() const {
    return std::chrono::duration_cast<microseconds>(last.arrived_at() - last.first_sent_at);
  }
};

struct StragglerLog::Minute {
  int64_t number = -1;      // since the start
  std::vector<Call> calls;  // a heap, the shortest on top
};

struct StragglerLog::Layer {
  int num_calls = 0;
  AttemptRecord last;          // the answer that came last so far
  MonotonicTime last_but_one;  // when the one before it came
  std::vector<Call> pending;   // candidates for the log
};

StragglerLog::StragglerLog(const Clock& clock)
    : clock_(clock),
      start_(clock.Now()),
      cells_(std::make_unique<Cell[]>(kMaxLinks)),
      layers_(model::kMicroBatches),
      minutes_(kMinutes) {
  for (Layer& layer : layers_) {
    layer.pending.reserve(kPendingMax);
  }
  for (Minute& minute : minutes_) {
    minute.calls.reserve(kCallsMax + 1);
  }
}

StragglerLog::~StragglerLog() = default;

void StragglerLog::OnAttempt(const AttemptRecord& record) {
  if (record.end != AttemptEnd::kAnswered || record.is_inline) {
    return;
  }
  Layer& layer = layers_[record.micro_batch];
  const MonotonicTime arrived = record.arrived_at();
  if (layer.num_calls == 0) {
    layer.last_but_one = MonotonicTime::min();
    layer.last = record;
  } else if (arrived >= layer.last.arrived_at()) {
    layer.last_but_one = layer.last.arrived_at();
    layer.last = record;
  } else {
    layer.last_but_one = std::max(layer.last_but_one, arrived);
  }
  ++layer.num_calls;
  const Call call{record, false, microseconds(0)};
  const int64_t minute = (record.ended_at - start_) / std::chrono::minutes(1);
  if ((minute != floor_minute_ || call.total() > floor_) && layer.pending.size() < kPendingMax) {
    layer.pending.push_back(call);
  }
}

void StragglerLog::OnLayer(const LayerRecord& record) {
  Layer& layer = layers_[record.micro_batch];
  if (record.is_ok && layer.num_calls > 1) {
    const MonotonicTime from = std::max(layer.last_but_one, record.awaited_at);
    const auto delayed =
        std::chrono::duration_cast<std::chrono::nanoseconds>(layer.last.arrived_at() - from);
    if (delayed > std::chrono::nanoseconds(0)) {
      Cell& cell = cells_[layer.last.first_link];
      // One writer: plain additions, in pieces that a reader may see apart.
      cell.worker.store(layer.last.first_worker.value(), std::memory_order_relaxed);
      cell.waited_ns.store(cell.waited_ns.load(std::memory_order_relaxed) + delayed.count(),
                           std::memory_order_relaxed);
      cell.calls.store(cell.calls.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
    for (Call& call : layer.pending) {
      if (call.last.link == layer.last.link && call.last.sent_at == layer.last.sent_at &&
          call.last.arrived_at() == layer.last.arrived_at()) {
        call.is_last = true;
        call.delayed = std::max(microseconds(0), std::chrono::duration_cast<microseconds>(delayed));
      }
    }
  }
  for (const Call& call : layer.pending) {
    Keep(call, record.ended_at);
  }
  layer.pending.clear();
  layer.num_calls = 0;
}

StragglerLog::Minute& StragglerLog::MinuteOf(MonotonicTime time) {
  const int64_t number = (time - start_) / std::chrono::minutes(1);
  Minute& minute = minutes_[static_cast<size_t>(number % kMinutes)];
  if (minute.number != number) {
    minute.number = number;
    minute.calls.clear();
  }
  return minute;
}

void StragglerLog::Keep(const Call& call, MonotonicTime now) {
  const auto is_longer = [](const Call& a, const Call& b) { return a.total() > b.total(); };
  MutexLock lock(mu_);
  Minute& minute = MinuteOf(now);
  minute.calls.push_back(call);
  std::push_heap(minute.calls.begin(), minute.calls.end(), is_longer);
  if (minute.calls.size() > kCallsMax) {
    std::pop_heap(minute.calls.begin(), minute.calls.end(), is_longer);
    minute.calls.pop_back();
  }
  floor_minute_ = minute.number;
  floor_ = minute.calls.size() == kCallsMax ? minute.calls.front().total() : microseconds(-1);
}

std::vector<StragglerLog::Waits> StragglerLog::Workers() const {
  std::vector<Waits> workers;
  for (size_t link = 0; link < kMaxLinks; ++link) {
    if (const uint64_t calls = cells_[link].calls.load(std::memory_order_relaxed); calls > 0) {
      workers.push_back(
          {WorkerId(cells_[link].worker.load(std::memory_order_relaxed)), calls,
           std::chrono::nanoseconds(cells_[link].waited_ns.load(std::memory_order_relaxed))});
    }
  }
  std::sort(workers.begin(), workers.end(),
            [](const Waits& a, const Waits& b) { return a.worker < b.worker; });
  return workers;
}

std::string StragglerLog::Json() const {
  const MonotonicTime now = clock_.Now();
  std::vector<Call> calls;
  {
    MutexLock lock(mu_);
    const int64_t current = (now - start_) / std::chrono::minutes(1);
    for (const Minute& minute : minutes_) {
      if (minute.number >= 0 && minute.number > current - kMinutes) {
        calls.insert(calls.end(), minute.calls.begin(), minute.calls.end());
      }
    }
  }
  std::stable_sort(calls.begin(), calls.end(),
                   [](const Call& a, const Call& b) { return a.total() > b.total(); });
  calls.resize(std::min<size_t>(calls.size(), kCallsMax));
  std::string text;
  JsonWriter out(text);
  out.BeginObject().Key("window_seconds").Int(std::chrono::seconds(kWindow).count());
  out.Key("calls").BeginArray();
  for (const Call& call : calls) {
    const AttemptRecord& last = call.last;
    out.BeginObject();
    out.Key("age_seconds").Double(std::chrono::duration<double>(now - last.ended_at).count());
    out.Key("layer").Int(last.layer);
    out.Key("phase").String(last.is_prefill ? "prefill" : "decode");
    out.Key("worker").Int(last.worker.value());
    out.Key("first_worker").Int(last.first_worker.value());
    out.Key("rows").Int(last.rows);
    out.Key("image_rows").Int(last.image_rows);
    out.Key("attempts").Int(last.number + 1);
    out.Key("total_us").Int(call.total().count());
    out.Key("queue_us").Int(last.queue.count());
    out.Key("service_us").Int(last.service.count());
    out.Key("network_us").Int(last.network.count());
    out.Key("is_last").Bool(call.is_last);
    out.Key("delayed_us").Int(call.delayed.count());
    out.EndObject();
  }
  out.EndArray().Key("workers").BeginArray();
  for (const Waits& waits : Workers()) {
    out.BeginObject();
    out.Key("worker").Int(waits.worker.value());
    out.Key("straggler_calls").Int(static_cast<int64_t>(waits.calls));
    out.Key("straggler_seconds").Double(std::chrono::duration<double>(waits.waited).count());
    out.EndObject();
  }
  out.EndArray().EndObject();
  return text;
}

}  // namespace conclave::frontend
