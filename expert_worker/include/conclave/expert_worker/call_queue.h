// Which call a worker computes next: bounded, fair between frontends, with decode before prefill
// (data-plane.md section 13). CallOrder decides and is pure; CallQueue is the same behind a lock,
// for the threads of servers and the one that computes.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/transport/call_server.h"

namespace conclave::expert_worker {

struct CallQueueOptions {
  // Of one peer, waiting. A peer with a call that alone is larger may have that one.
  uint32_t peer_calls_max = 64;
  uint64_t peer_bytes_max = uint64_t{8} << 20;  // rows in and out
  // Of one batch. A call that alone is larger is a batch of its own.
  uint32_t batch_rows_max = 256;
  uint32_t batch_calls_max = 16;
  // Rows that a peer gets per turn of the round robin.
  uint32_t quantum_rows = 32;
  // What a batch costs beside its rows, in rows: experts' weights are read whatever the number of
  // rows. Without it a stream of one-row calls would look cheap next to a prefill call.
  uint32_t batch_cost_rows = 16;
  // Share of the cost that a lower class gets while it waits, for each of the two.
  double lower_share = 0.2;
};

// kDecode: first attempts of decode calls. kAgain: retries and hedges, of any phase. kPrefill:
// first attempts of prefill calls.
enum class CallClass : uint8_t { kDecode, kAgain, kPrefill };
inline constexpr size_t kNumCallClasses = 3;
CallClass ClassOf(const transport::CallView& call);

// Counts since the start.
struct CallQueueCounts {
  uint64_t accepted[kNumCallClasses] = {};
  uint64_t refused = 0;    // "busy"
  uint64_t late = 0;       // dropped: the deadline had passed
  uint64_t cancelled = 0;  // dropped: nobody waits
  uint64_t batches = 0;
  uint64_t batch_calls = 0;  // calls handed out
};

// Between classes: decode, then kAgain, then kPrefill; but each of the lower two gets lower_share
// of the cost while it has calls waiting. Within a class peers take turns, in rows, by deficit
// round robin. Each batch is the calls of one layer: the one whose turn it is, and whatever else
// waits for that layer, in the order of classes and turns, and is charged to its peer, until the
// batch is full. One thread.
class CallOrder {
 public:
  explicit CallOrder(const CallQueueOptions& options) : options_(options) {}

  // kResourceExhausted ("busy") when the peer has as much waiting as it may.
  absl::Status Push(transport::ServedCall* call);

  // The next batch, empty when nothing waits. Calls whose deadline has passed at `now` and
  // cancelled ones that it comes upon are moved to `late` and `cancelled` instead. `us_per_row`:
  // what a row takes now, 0: unknown; a batch led by a decode call with a deadline is cut so that
  // it takes at most a quarter of that. All three are appended to.
  void Pop(MonotonicTime now, double us_per_row, std::vector<transport::ServedCall*>* batch,
           std::vector<transport::ServedCall*>* late,
           std::vector<transport::ServedCall*>* cancelled);

  // Takes out the peer's cancelled calls, or all of them when it is gone.
  void Remove(transport::PeerId peer, bool is_gone, std::vector<transport::ServedCall*>* removed);

  bool empty() const { return num_calls_ == 0; }
  size_t num_calls() const { return num_calls_; }
  uint64_t num_rows() const { return num_rows_; }
  size_t num_calls(CallClass of) const { return classes_[static_cast<size_t>(of)].num_calls; }

  // When the call that waits longest came; `none` when nothing waits.
  MonotonicTime OldestReceipt(MonotonicTime none) const;

 private:
  struct Line {  // one peer's calls of one class
    std::deque<transport::ServedCall*> calls;
    int64_t deficit_rows = 0;
  };
  struct ClassState {
    std::map<transport::PeerId, Line> lines;  // not empty ones
    std::deque<transport::PeerId> turns;      // the peers of `lines`; the first is served
    size_t num_calls = 0;
    double credit_rows = 0;  // cost owed to a lower class
  };
  struct PeerUse {
    uint32_t calls = 0;
    uint64_t bytes = 0;
  };
  class Taker;

  CallClass NextClass() const;
  transport::PeerId NextPeer(ClassState& state) const;
  bool IsAnyAboveWaiting(size_t index) const;
  void Forget(const transport::ServedCall& call);
  static bool EraseEmptyLine(ClassState& state, transport::PeerId peer);
  void Charge(CallClass served, uint64_t rows);

  const CallQueueOptions options_;
  std::array<ClassState, kNumCallClasses> classes_;
  std::map<transport::PeerId, PeerUse> peers_;
  size_t num_calls_ = 0;
  uint64_t num_rows_ = 0;
};

// CallOrder for threads. Submit, OnCancelled, OnPeerGone, Close and the figures: any thread, none
// blocks. Pop and TryPop: the compute thread.
class CallQueue final : public transport::CallSink {
 public:
  // `clock` outlives the queue.
  CallQueue(const CallQueueOptions& options, const Clock& clock);
  // Everything has been finished: Close, then Pop until it says so.
  ~CallQueue() override;

  // kResourceExhausted ("busy"); after Close kUnavailable ("draining").
  absl::Status Submit(transport::ServedCall* call) override;
  void OnCancelled(transport::PeerId peer) override;
  void OnPeerGone(transport::PeerId peer) override;

  // Takes nothing more; what waits is still given out.
  void Close();

  // The next batch, which is under way until the next Pop or TryPop. Calls that are late or
  // cancelled are finished here, late ones with kDeadlineExceeded ("deadline"). Pop waits for one
  // and is false when the queue is closed and empty; TryPop is false when there is none now.
  bool Pop(double us_per_row, std::vector<transport::ServedCall*>* batch);
  bool TryPop(double us_per_row, std::vector<transport::ServedCall*>* batch);

  // Epoch of the NACKs that late calls get.
  void SetEpoch(Epoch epoch);

  struct Figures {
    CallQueueCounts counts;
    size_t waiting_calls[kNumCallClasses] = {};
    uint64_t waiting_rows = 0;
    // Of the call that waits or is under way longest; zero without one.
    std::chrono::microseconds oldest_call_age{0};
    bool is_idle = true;  // nothing waits and nothing is under way
  };
  Figures figures() const;

 private:
  bool TakeBatch(double us_per_row, std::vector<transport::ServedCall*>* batch)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void FinishDropped();

  const Clock& clock_;
  mutable Mutex mu_;
  CondVar changed_;
  CallOrder order_ ABSL_GUARDED_BY(mu_);
  CallQueueCounts counts_ ABSL_GUARDED_BY(mu_);
  bool is_closed_ ABSL_GUARDED_BY(mu_) = false;
  bool has_batch_ ABSL_GUARDED_BY(mu_) = false;
  MonotonicTime batch_receipt_ ABSL_GUARDED_BY(mu_);  // of the batch's oldest call
  Epoch epoch_ ABSL_GUARDED_BY(mu_);
  // The compute thread's; kept for their memory.
  std::vector<transport::ServedCall*> late_;
  std::vector<transport::ServedCall*> cancelled_;
};

}  // namespace conclave::expert_worker
