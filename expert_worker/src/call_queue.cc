#include "conclave/expert_worker/call_queue.h"

#include <algorithm>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"

namespace conclave::expert_worker {

using transport::PeerId;
using transport::ServedCall;

namespace {

uint64_t BytesOf(const ServedCall& call) { return call.call.rows.size() + call.reply.rows.size(); }

bool IsLate(const ServedCall& call, MonotonicTime now) {
  return call.call.deadline_us > 0 &&
         now - call.received_at > std::chrono::microseconds(call.call.deadline_us);
}

}  // namespace

CallClass ClassOf(const transport::CallView& call) {
  if (call.attempt > 0) {
    return CallClass::kAgain;
  }
  return call.phase == transport::Phase::kDecode ? CallClass::kDecode : CallClass::kPrefill;
}

absl::Status CallOrder::Push(ServedCall* call) {
  PeerUse& use = peers_[call->peer];
  const uint64_t bytes = BytesOf(*call);
  if (use.calls > 0 &&
      (use.calls >= options_.peer_calls_max || use.bytes + bytes > options_.peer_bytes_max)) {
    return Error(absl::StatusCode::kResourceExhausted, "busy",
                 "worker: expected at most " + std::to_string(options_.peer_calls_max) +
                     " calls or " + std::to_string(options_.peer_bytes_max) +
                     " bytes of one frontend to wait, found more");
  }
  ++use.calls;
  use.bytes += bytes;
  ClassState& state = classes_[static_cast<size_t>(ClassOf(call->call))];
  const auto [line, is_new] = state.lines.try_emplace(call->peer);
  if (is_new) {
    state.turns.push_back(call->peer);
  }
  line->second.calls.push_back(call);
  ++state.num_calls;
  ++num_calls_;
  num_rows_ += call->call.num_rows;
  return absl::OkStatus();
}

void CallOrder::Forget(const ServedCall& call) {
  --classes_[static_cast<size_t>(ClassOf(call.call))].num_calls;
  --num_calls_;
  num_rows_ -= call.call.num_rows;
  const auto use = peers_.find(call.peer);
  --use->second.calls;
  use->second.bytes -= BytesOf(call);
  if (use->second.calls == 0) {
    peers_.erase(use);
  }
}

// Whether the peer's line was empty, and so is gone.
bool CallOrder::EraseEmptyLine(ClassState& state, PeerId peer) {
  const auto line = state.lines.find(peer);
  if (!line->second.calls.empty()) {
    return false;
  }
  state.lines.erase(line);
  state.turns.erase(std::find(state.turns.begin(), state.turns.end(), peer));
  return true;
}

bool CallOrder::IsAnyAboveWaiting(size_t index) const {
  return std::any_of(classes_.begin(), classes_.begin() + static_cast<std::ptrdiff_t>(index),
                     [](const ClassState& state) { return state.num_calls > 0; });
}

// The highest class that waits, unless a lower one is owed something: then that, the lowest first,
// which would wait longest otherwise.
CallClass CallOrder::NextClass() const {
  for (size_t i = kNumCallClasses - 1; i > 0; --i) {
    if (classes_[i].num_calls > 0 && (classes_[i].credit_rows > 0 || !IsAnyAboveWaiting(i))) {
      return static_cast<CallClass>(i);
    }
  }
  return CallClass::kDecode;
}

PeerId CallOrder::NextPeer(ClassState& state) const {
  while (true) {
    const PeerId peer = state.turns.front();
    Line& line = state.lines.at(peer);
    const int64_t rows = line.calls.front()->call.num_rows;
    if (state.turns.size() == 1) {
      line.deficit_rows = rows;  // nobody to share with: no debts either
    }
    if (line.deficit_rows >= rows) {
      return peer;
    }
    line.deficit_rows += options_.quantum_rows;
    state.turns.pop_front();
    state.turns.push_back(peer);
  }
}

// A lower class that waits earns lower_share of the cost of every batch, its own included, and pays
// for its own when a higher class waited meanwhile. In the long run of a busy worker it so gets
// lower_share; what it takes of an idle one is free.
void CallOrder::Charge(CallClass served, uint64_t rows) {
  const double cost = static_cast<double>(rows) + options_.batch_cost_rows;
  const double bound = 4.0 * (options_.batch_rows_max + options_.batch_cost_rows);
  for (size_t i = 1; i < kNumCallClasses; ++i) {
    ClassState& state = classes_[i];
    if (static_cast<CallClass>(i) == served) {
      state.credit_rows -= IsAnyAboveWaiting(i) ? cost * (1 - options_.lower_share) : 0;
    } else if (state.num_calls > 0) {
      state.credit_rows += cost * options_.lower_share;
    }
    state.credit_rows = std::clamp(state.credit_rows, -bound, bound);
  }
}

// Takes calls out of their lines.
class CallOrder::Taker {
 public:
  Taker(CallOrder& order, MonotonicTime now, std::vector<ServedCall*>* batch,
        std::vector<ServedCall*>* late, std::vector<ServedCall*>* cancelled)
      : order_(order), now_(now), batch_(batch), late_(late), cancelled_(cancelled) {}

  uint64_t rows() const { return rows_; }
  size_t calls() const { return calls_; }

  // Drops what need not be computed from the whole of a peer's line of a class.
  void Sweep(ClassState& state, PeerId peer) {
    Line& line = state.lines.at(peer);
    for (size_t i = 0; i < line.calls.size();) {
      ServedCall* call = line.calls[i];
      const bool is_cancelled = call->is_cancelled();
      if (!is_cancelled && !IsLate(*call, now_)) {
        ++i;
        continue;
      }
      (is_cancelled ? cancelled_ : late_)->push_back(call);
      line.calls.erase(line.calls.begin() + static_cast<std::ptrdiff_t>(i));
      order_.Forget(*call);
    }
    order_.EraseEmptyLine(state, peer);
  }

  void Take(ClassState& state, PeerId peer, size_t index) {
    Line& line = state.lines.at(peer);
    ServedCall* call = line.calls[index];
    line.calls.erase(line.calls.begin() + static_cast<std::ptrdiff_t>(index));
    line.deficit_rows -= call->call.num_rows;
    batch_->push_back(call);
    rows_ += call->call.num_rows;
    ++calls_;
    order_.Forget(*call);
    order_.EraseEmptyLine(state, peer);
  }

  // Everything of the class that is for `layer`, until the batch is full.
  void Merge(ClassState& state, LayerId layer, uint64_t rows_max) {
    const std::deque<PeerId> turns = state.turns;  // Take changes it
    for (const PeerId peer : turns) {
      Sweep(state, peer);
      size_t index = 0;
      while (calls_ < order_.options_.batch_calls_max && state.lines.contains(peer) &&
             index < state.lines.at(peer).calls.size()) {
        const transport::CallView& call = state.lines.at(peer).calls[index]->call;
        if (call.layer == layer && rows_ + call.num_rows <= rows_max) {
          Take(state, peer, index);
        } else {
          ++index;
        }
      }
    }
  }

 private:
  CallOrder& order_;
  const MonotonicTime now_;
  std::vector<ServedCall*>* batch_;
  std::vector<ServedCall*>* late_;
  std::vector<ServedCall*>* cancelled_;
  uint64_t rows_ = 0;
  size_t calls_ = 0;
};

void CallOrder::Pop(MonotonicTime now, double us_per_row, std::vector<ServedCall*>* batch,
                    std::vector<ServedCall*>* late, std::vector<ServedCall*>* cancelled) {
  Taker taker(*this, now, batch, late, cancelled);
  while (num_calls_ > 0) {
    const CallClass served = NextClass();
    ClassState& state = classes_[static_cast<size_t>(served)];
    const PeerId peer = NextPeer(state);
    taker.Sweep(state, peer);
    const auto line = state.lines.find(peer);
    if (line == state.lines.end()) {
      continue;
    }
    const transport::CallView& head = line->second.calls.front()->call;
    const LayerId layer = head.layer;
    uint64_t rows_max = options_.batch_rows_max;
    if (us_per_row > 0 && head.deadline_us > 0 && served == CallClass::kDecode) {
      rows_max = std::min(rows_max, static_cast<uint64_t>(head.deadline_us / 4.0 / us_per_row));
    }
    taker.Take(state, peer, 0);
    for (ClassState& other : classes_) {
      taker.Merge(other, layer, rows_max);
    }
    Charge(served, taker.rows());
    return;
  }
}

void CallOrder::Remove(PeerId peer, bool is_gone, std::vector<ServedCall*>* removed) {
  for (ClassState& state : classes_) {
    const auto line = state.lines.find(peer);
    if (line == state.lines.end()) {
      continue;
    }
    std::deque<ServedCall*>& calls = line->second.calls;
    const auto kept = std::stable_partition(calls.begin(), calls.end(), [&](ServedCall* call) {
      return !is_gone && !call->is_cancelled();
    });
    for (auto it = kept; it != calls.end(); ++it) {
      Forget(**it);
      removed->push_back(*it);
    }
    calls.erase(kept, calls.end());
    EraseEmptyLine(state, peer);
  }
}

MonotonicTime CallOrder::OldestReceipt(MonotonicTime none) const {
  MonotonicTime oldest = MonotonicTime::max();
  for (const ClassState& state : classes_) {
    for (const auto& [peer, line] : state.lines) {
      for (const ServedCall* call : line.calls) {
        oldest = std::min(oldest, call->received_at);
      }
    }
  }
  return oldest == MonotonicTime::max() ? none : oldest;
}

CallQueue::CallQueue(const CallQueueOptions& options, const Clock& clock)
    : clock_(clock), order_(options) {}

CallQueue::~CallQueue() {
  MutexLock lock(mu_);
  CONCLAVE_CHECK(order_.empty());
}

absl::Status CallQueue::Submit(ServedCall* call) {
  MutexLock lock(mu_);
  if (is_closed_) {
    return Error(absl::StatusCode::kUnavailable, "draining", "worker: it is about to end");
  }
  const CallClass of = ClassOf(call->call);
  absl::Status status = order_.Push(call);
  if (!status.ok()) {
    ++counts_.refused;
    return status;
  }
  ++counts_.accepted[static_cast<size_t>(of)];
  changed_.NotifyOne();
  return absl::OkStatus();
}

void CallQueue::OnCancelled(PeerId peer) {
  std::vector<ServedCall*> removed;
  Epoch epoch;
  {
    MutexLock lock(mu_);
    order_.Remove(peer, /*is_gone=*/false, &removed);
    counts_.cancelled += removed.size();
    epoch = epoch_;
  }
  for (ServedCall* call : removed) {
    call->Finish(absl::CancelledError(), epoch, {});
  }
}

void CallQueue::OnPeerGone(PeerId peer) {
  std::vector<ServedCall*> removed;
  Epoch epoch;
  {
    MutexLock lock(mu_);
    order_.Remove(peer, /*is_gone=*/true, &removed);
    counts_.cancelled += removed.size();
    epoch = epoch_;
  }
  for (ServedCall* call : removed) {
    call->Finish(absl::CancelledError(), epoch, {});
  }
}

void CallQueue::Close() {
  MutexLock lock(mu_);
  is_closed_ = true;
  changed_.NotifyAll();
}

bool CallQueue::TakeBatch(double us_per_row, std::vector<ServedCall*>* batch) {
  order_.Pop(clock_.Now(), us_per_row, batch, &late_, &cancelled_);
  counts_.late += late_.size();
  counts_.cancelled += cancelled_.size();
  has_batch_ = !batch->empty();
  if (!has_batch_) {
    return false;
  }
  ++counts_.batches;
  counts_.batch_calls += batch->size();
  batch_receipt_ = batch->front()->received_at;
  for (const ServedCall* call : *batch) {
    batch_receipt_ = std::min(batch_receipt_, call->received_at);
  }
  return true;
}

// Outside of the lock: Finish sends.
void CallQueue::FinishDropped() {
  if (late_.empty() && cancelled_.empty()) {
    return;
  }
  Epoch epoch;
  {
    MutexLock lock(mu_);
    epoch = epoch_;
  }
  const absl::Status late = Error(absl::StatusCode::kDeadlineExceeded, "deadline",
                                  "worker: the call's deadline passed before its turn");
  for (ServedCall* call : late_) {
    call->Finish(late, epoch, {});
  }
  for (ServedCall* call : cancelled_) {
    call->Finish(absl::CancelledError(), epoch, {});
  }
  late_.clear();
  cancelled_.clear();
}

bool CallQueue::TryPop(double us_per_row, std::vector<ServedCall*>* batch) {
  batch->clear();
  bool is_taken = false;
  {
    MutexLock lock(mu_);
    is_taken = TakeBatch(us_per_row, batch);
  }
  FinishDropped();
  return is_taken;
}

bool CallQueue::Pop(double us_per_row, std::vector<ServedCall*>* batch) {
  while (!TryPop(us_per_row, batch)) {
    MutexLock lock(mu_);
    while (order_.empty() && !is_closed_) {
      changed_.Wait(mu_);
    }
    if (order_.empty()) {
      return false;
    }
  }
  return true;
}

void CallQueue::SetEpoch(Epoch epoch) {
  MutexLock lock(mu_);
  epoch_ = epoch;
}

CallQueue::Figures CallQueue::figures() const {
  MutexLock lock(mu_);
  Figures figures;
  figures.counts = counts_;
  for (size_t i = 0; i < kNumCallClasses; ++i) {
    figures.waiting_calls[i] = order_.num_calls(static_cast<CallClass>(i));
  }
  figures.waiting_rows = order_.num_rows();
  figures.is_idle = order_.empty() && !has_batch_;
  const MonotonicTime now = clock_.Now();
  MonotonicTime oldest = order_.OldestReceipt(now);
  if (has_batch_) {
    oldest = std::min(oldest, batch_receipt_);
  }
  figures.oldest_call_age = std::chrono::duration_cast<std::chrono::microseconds>(now - oldest);
  return figures;
}

}  // namespace conclave::expert_worker
