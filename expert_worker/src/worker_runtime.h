// The threads of a worker, around its state machine, its core and its queue.
//
//   control  runs WorkerControlCore, sends heartbeats; does nothing that takes long, and asks for a
//            real-time priority, so that a busy machine does not look like a dead worker
//   compute  takes batches from the queue and computes them, with the pool of the core
//   loader   loads, retires and tries experts
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/checkpoint/checkpoint.h"
#include "conclave/expert_worker/call_queue.h"
#include "conclave/expert_worker/worker_control.h"
#include "conclave/expert_worker/worker_core.h"
#include "router_link.h"

namespace conclave::expert_worker {

struct RuntimeOptions {
  WorkerControlOptions control;
  // Between two rounds of canaries over all held experts.
  std::chrono::milliseconds canary_interval{60'000};
};

// What the compute thread has done.
struct ComputeFigures {
  uint64_t calls = 0;          // answered with rows
  uint64_t calls_refused = 0;  // answered with an error
  uint64_t rows = 0;
  double busy_seconds = 0;
  double us_per_row = 0;  // smoothed
};

class WorkerRuntime {
 public:
  struct Status {
    WorkerState state = WorkerState::kConnecting;
    bool is_ready = false;
    bool is_stopped = false;
    Epoch epoch;
    size_t num_loading = 0;
    uint64_t canary_failures = 0;
  };

  // All outlive the runtime. `clock` is the machine's: threads wait by it.
  WorkerRuntime(const checkpoint::Checkpoint& checkpoint, WorkerCore& core, CallQueue& queue,
                RouterLink& router, DataPlane& data, const RuntimeOptions& options);
  // Stops at once; calls that wait are answered.
  ~WorkerRuntime();

  void Start();

  // Any thread, as the rest; begins the drain and does not wait for it.
  void Drain();
  // Whether it became ready; false when it stopped before.
  bool WaitReady();
  // Until it has stopped by itself (drained, or refused by the router) and answered its calls.
  absl::Status WaitStopped();

  // Runs `task`, which must not block, on the control thread, soon.
  void PostToControl(std::function<void()> task);

  Status status() const;
  ComputeFigures compute_figures() const;

 private:
  using Event = std::function<void(MonotonicTime, WorkerActions*)>;
  struct LoaderTask {
    bool is_load = false;
    action::LoadExpert load;
    action::RetireExperts retire;
  };
  struct Loop;  // the control thread's own state

  void ControlThread();
  void ComputeThread();
  void LoaderThread();

  bool Post(Event event, bool may_refuse);
  void Do(Loop& loop, const WorkerAction& action);
  void OpenStream(Loop& loop);
  void Publish(const Loop& loop);
  HeartbeatReport Report(Loop& loop, const action::SendHeartbeat& beat);
  void GiveToLoader(LoaderTask task);
  void RunTask(const LoaderTask& task);
  void RunCanaries(MonotonicTime* next);
  bool HasLoaderTask();

  void Compute(std::vector<transport::ServedCall*>& batch, std::vector<MergedCall>& merged);
  std::vector<WorkerId> HoldersOf(const transport::CallView& call) const;

  const checkpoint::Checkpoint& checkpoint_;
  WorkerCore& core_;
  CallQueue& queue_;
  RouterLink& router_;
  DataPlane& data_;
  const RuntimeOptions options_;
  const Clock& clock_ = Clock::Real();
  const std::unique_ptr<Loop> loop_;  // the control thread's

  // Events for the control thread.
  mutable Mutex mail_mu_;
  CondVar mail_changed_;
  std::deque<Event> mail_ ABSL_GUARDED_BY(mail_mu_);
  bool is_ending_ ABSL_GUARDED_BY(mail_mu_) = false;

  // What the others may know of the control thread.
  mutable Mutex status_mu_;
  CondVar status_changed_;
  Status status_ ABSL_GUARDED_BY(status_mu_);
  absl::Status stop_status_ ABSL_GUARDED_BY(status_mu_);
  bool is_compute_done_ ABSL_GUARDED_BY(status_mu_) = false;
  std::shared_ptr<const Holders> holders_ ABSL_GUARDED_BY(status_mu_);
  WorkerId self_ ABSL_GUARDED_BY(status_mu_){-1};

  Mutex loader_mu_;
  CondVar loader_changed_;
  std::deque<LoaderTask> loader_tasks_ ABSL_GUARDED_BY(loader_mu_);
  bool is_loader_ending_ ABSL_GUARDED_BY(loader_mu_) = false;

  std::atomic<uint64_t> num_calls_{0};
  std::atomic<uint64_t> num_refused_{0};
  std::atomic<uint64_t> num_rows_{0};
  std::atomic<int64_t> busy_ns_{0};
  std::atomic<int64_t> busy_since_ns_{0};  // 0: idle
  std::atomic<double> us_per_row_{0};

  // Last: they end before what they touch.
  std::thread control_;
  std::thread compute_;
  std::thread loader_;
};

}  // namespace conclave::expert_worker
