#include "worker_runtime.h"

#include <pthread.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>

#include "conclave/base/check.h"
#include "conclave/base/failpoint.h"
#include "conclave/base/status.h"
#include "conclave/observability/log.h"

namespace conclave::expert_worker {

using observability::LogError;
using observability::LogInfo;
using observability::LogWarning;
using placement::ExpertUnit;
using std::chrono::duration_cast;
using std::chrono::microseconds;
using std::chrono::nanoseconds;
using transport::ServedCall;

namespace {

// Events that wait for the control thread; a router that sends more in one go is cut off.
constexpr size_t kMailMax = 1024;
// Timers whose lateness is remembered.
constexpr size_t kNumTicks = 256;
// Weight of the newest batch in the smoothed time per row.
constexpr double kSmoothing = 0.1;

int64_t Nanoseconds(MonotonicTime time) {
  return duration_cast<nanoseconds>(time.time_since_epoch()).count();
}

uint32_t MicrosecondsBetween(MonotonicTime from, MonotonicTime to) {
  const auto us = duration_cast<microseconds>(to - from).count();
  return static_cast<uint32_t>(std::clamp<int64_t>(us, 0, UINT32_MAX));
}

// For the calling thread, and not for those that it starts. Without the right to it, it stays as it
// is.
void AskForPriority() {
  sched_param priority{};
  priority.sched_priority = 10;
  if (::sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &priority) == 0) {
    return;
  }
  priority.sched_priority = 0;
  if (::sched_setscheduler(0, SCHED_OTHER | SCHED_RESET_ON_FORK, &priority) == 0) {
    (void)::setpriority(PRIO_PROCESS, static_cast<id_t>(::gettid()), -15);
  }
}

}  // namespace

struct WorkerRuntime::Loop {
  explicit Loop(const WorkerControlOptions& options) : control(options) {}

  WorkerControlCore control;
  uint64_t stream = 0;  // of the last Connect: events of others are of the past
  std::vector<nanoseconds> lateness;
  size_t next_lateness = 0;
  MonotonicTime reported_at;
  double reported_busy = 0;
  uint64_t canary_failures = 0;

  void AddLateness(nanoseconds late) {
    if (lateness.size() < kNumTicks) {
      lateness.push_back(late);
    } else {
      lateness[next_lateness++ % kNumTicks] = late;
    }
  }
  nanoseconds LatenessP99() const {
    if (lateness.empty()) {
      return nanoseconds(0);
    }
    std::vector<nanoseconds> sorted = lateness;
    const auto at = sorted.begin() + static_cast<std::ptrdiff_t>((sorted.size() - 1) * 99 / 100);
    std::nth_element(sorted.begin(), at, sorted.end());
    return *at;
  }
};

WorkerRuntime::WorkerRuntime(const checkpoint::Checkpoint& checkpoint, WorkerCore& core,
                             CallQueue& queue, RouterLink& router, DataPlane& data,
                             const RuntimeOptions& options)
    : checkpoint_(checkpoint),
      core_(core),
      queue_(queue),
      router_(router),
      data_(data),
      options_(options),
      loop_(std::make_unique<Loop>(options.control)) {}

void WorkerRuntime::Start() {
  compute_ = std::thread([this] { ComputeThread(); });
  loader_ = std::thread([this] { LoaderThread(); });
  control_ = std::thread([this] { ControlThread(); });
}

WorkerRuntime::~WorkerRuntime() {
  {
    MutexLock lock(mail_mu_);
    is_ending_ = true;
    mail_changed_.NotifyAll();
  }
  if (control_.joinable()) {
    control_.join();
  }
  queue_.Close();
  if (compute_.joinable()) {
    compute_.join();
  }
  {
    MutexLock lock(loader_mu_);
    is_loader_ending_ = true;
    loader_changed_.NotifyAll();
  }
  if (loader_.joinable()) {
    loader_.join();
  }
}

// ---- control ------------------------------------------------------------------------------------

bool WorkerRuntime::Post(Event event, bool may_refuse) {
  MutexLock lock(mail_mu_);
  if (may_refuse && mail_.size() >= kMailMax) {
    return false;
  }
  mail_.push_back(std::move(event));
  mail_changed_.NotifyOne();
  return true;
}

void WorkerRuntime::Drain() {
  Post([this](MonotonicTime now, WorkerActions* out) { loop_->control.OnDrainWish(now, out); },
       /*may_refuse=*/false);
}

void WorkerRuntime::PostToControl(std::function<void()> task) {
  Post([run = std::move(task)](MonotonicTime /*now*/, WorkerActions* /*out*/) { run(); },
       /*may_refuse=*/false);
}

void WorkerRuntime::ControlThread() {
  ::pthread_setname_np(::pthread_self(), "control");
  AskForPriority();
  Loop& loop = *loop_;
  loop.reported_at = clock_.Now();
  WorkerActions actions;
  loop.control.Start(clock_.Now(), &actions);
  while (true) {
    for (size_t i = 0; i < actions.size(); ++i) {
      Do(loop, actions[i]);
    }
    actions.clear();
    Publish(loop);
    std::deque<Event> events;
    const MonotonicTime due = loop.control.NextTimer();
    {
      MutexLock lock(mail_mu_);
      while (mail_.empty() && !is_ending_ && clock_.Now() < due) {
        if (due == MonotonicTime::max()) {
          mail_changed_.Wait(mail_mu_);
        } else {
          mail_changed_.WaitFor(mail_mu_, due - clock_.Now());
        }
      }
      if (is_ending_) {
        break;
      }
      events.swap(mail_);
    }
    const MonotonicTime now = clock_.Now();
    if (now >= due) {
      loop.AddLateness(now - due);
      loop.control.OnTimer(now, &actions);
    }
    for (const Event& event : events) {
      event(now, &actions);
    }
  }
  router_.Close();
}

void WorkerRuntime::OpenStream(Loop& loop) {
  const uint64_t stream = ++loop.stream;
  // Only the control thread runs what is posted.
  StreamEvents events;
  events.on_command = [this, &loop, stream](const RouterCommand& command) {
    return Post(
        [&loop, stream, command](MonotonicTime now, WorkerActions* out) {
          if (stream == loop.stream) {
            loop.control.OnCommand(now, command, out);
          }
        },
        /*may_refuse=*/true);
  };
  events.on_lost = [this, &loop, stream](const absl::Status& why) {
    Post(
        [&loop, stream, why](MonotonicTime now, WorkerActions* out) {
          if (stream == loop.stream) {
            ++loop.stream;
            LogWarning("router lost", {{"reason", ReasonOf(why)}, {"why", MessageOf(why)}});
            loop.control.OnStreamLost(now, why, out);
          }
        },
        /*may_refuse=*/false);
  };
  router_.Close();
  router_.Open(loop.control.registration(), std::move(events));
}

HeartbeatReport WorkerRuntime::Report(Loop& loop, const action::SendHeartbeat& beat) {
  const CallQueue::Figures figures = queue_.figures();
  const MonotonicTime now = clock_.Now();
  const double busy = compute_figures().busy_seconds;
  const double window = std::chrono::duration<double>(now - loop.reported_at).count();
  HeartbeatReport report;
  report.seq = beat.seq;
  report.oldest_call_age = figures.oldest_call_age;
  report.queued_rows = static_cast<uint32_t>(figures.waiting_rows);
  report.busy_ratio = window > 0 ? std::clamp((busy - loop.reported_busy) / window, 0.0, 1.0) : 0.0;
  report.tick_lateness = duration_cast<microseconds>(loop.LatenessP99());
  report.is_canary_ok = beat.is_canary_ok;
  report.epoch = beat.epoch;
  loop.reported_at = now;
  loop.reported_busy = busy;
  return report;
}

void WorkerRuntime::Publish(const Loop& loop) {
  MutexLock lock(status_mu_);
  status_.state = loop.control.state(clock_.Now());
  status_.epoch = loop.control.epoch();
  status_.num_loading = loop.control.num_loading();
  status_.canary_failures = loop.canary_failures;
}

void WorkerRuntime::Do(Loop& loop, const WorkerAction& action) {
  if (std::holds_alternative<action::Connect>(action)) {
    OpenStream(loop);
  } else if (const auto* disconnect = std::get_if<action::Disconnect>(&action)) {
    LogWarning("router given up",
               {{"reason", ReasonOf(disconnect->why)}, {"why", MessageOf(disconnect->why)}});
    // A Connect right behind has its own number.
    ++loop.stream;
    router_.Close();
  } else if (const auto* beat = std::get_if<action::SendHeartbeat>(&action)) {
    router_.Send(Report(loop, *beat));
  } else if (const auto* loads = std::get_if<action::SendLoads>(&action)) {
    std::vector<UnitRows> cumulative;
    for (const ExpertLoad& load : core_.Loads()) {
      cumulative.push_back(
          {load.unit, {load.rows[0][0], load.rows[0][1], load.rows[1][0], load.rows[1][1]}});
    }
    router_.Send(LoadsReport{loads->seq, loads->window, loop.control.LoadDeltas(cumulative),
                             us_per_row_.load()});
  } else if (const auto* load = std::get_if<action::LoadExpert>(&action)) {
    GiveToLoader({.is_load = true, .load = *load, .retire = {}});
  } else if (const auto* retire = std::get_if<action::RetireExperts>(&action)) {
    GiveToLoader({.is_load = false, .load = {}, .retire = *retire});
  } else if (const auto* prepared = std::get_if<action::SendPrepareResult>(&action)) {
    if (!prepared->error.empty()) {
      LogError("experts could not be loaded", {{"plan", prepared->plan_id},
                                               {"failed", prepared->failed.size()},
                                               {"why", prepared->error}});
    }
    router_.Send(*prepared);
  } else if (const auto* retired = std::get_if<action::SendRetireResult>(&action)) {
    router_.Send(*retired);
  } else if (const auto* lost = std::get_if<action::SendExpertsLost>(&action)) {
    router_.Send(*lost);
  } else if (std::holds_alternative<action::SendDrainWish>(action)) {
    router_.Send(action::SendDrainWish{});
  } else if (const auto* registration = std::get_if<action::SetRegistration>(&action)) {
    LogInfo("registered",
            {{"worker", registration->worker.value()}, {"term", loop.control.router().term}});
    data_.SetRegistration(registration->worker, registration->worker_key, registration->epoch);
    MutexLock lock(status_mu_);
    self_ = registration->worker;
  } else if (const auto* placed = std::get_if<action::SetPlacement>(&action)) {
    data_.SetEpoch(placed->epoch);
    queue_.SetEpoch(placed->epoch);
    MutexLock lock(status_mu_);
    holders_ = placed->holders;
    status_.epoch = placed->epoch;
  } else if (std::holds_alternative<action::AnnounceReady>(action)) {
    MutexLock lock(status_mu_);
    status_.is_ready = true;
    status_changed_.NotifyAll();
  } else if (const auto* stop = std::get_if<action::Stop>(&action)) {
    // The router learns of the end by that of the stream.
    ++loop.stream;
    router_.Close();
    data_.SetDraining(true);
    queue_.Close();
    MutexLock lock(status_mu_);
    status_.is_stopped = true;
    stop_status_ = stop->status;
    status_changed_.NotifyAll();
  }
}

bool WorkerRuntime::WaitReady() {
  MutexLock lock(status_mu_);
  while (!status_.is_ready && !status_.is_stopped) {
    status_changed_.Wait(status_mu_);
  }
  return status_.is_ready;
}

absl::Status WorkerRuntime::WaitStopped() {
  MutexLock lock(status_mu_);
  while (!status_.is_stopped || !is_compute_done_) {
    status_changed_.Wait(status_mu_);
  }
  return stop_status_;
}

WorkerRuntime::Status WorkerRuntime::status() const {
  MutexLock lock(status_mu_);
  return status_;
}

// ---- loader -------------------------------------------------------------------------------------

void WorkerRuntime::GiveToLoader(LoaderTask task) {
  MutexLock lock(loader_mu_);
  loader_tasks_.push_back(std::move(task));
  loader_changed_.NotifyOne();
}

bool WorkerRuntime::HasLoaderTask() {
  MutexLock lock(loader_mu_);
  return !loader_tasks_.empty() || is_loader_ending_;
}

void WorkerRuntime::LoaderThread() {
  ::pthread_setname_np(::pthread_self(), "loader");
  MonotonicTime next_canaries = clock_.Now() + options_.canary_interval;
  while (true) {
    LoaderTask task;
    bool has_task = false;
    {
      MutexLock lock(loader_mu_);
      while (loader_tasks_.empty() && !is_loader_ending_ && clock_.Now() < next_canaries) {
        loader_changed_.WaitFor(loader_mu_, next_canaries - clock_.Now());
      }
      if (is_loader_ending_) {
        return;
      }
      if (!loader_tasks_.empty()) {
        task = std::move(loader_tasks_.front());
        loader_tasks_.pop_front();
        has_task = true;
      }
    }
    if (has_task) {
      RunTask(task);
    } else {
      RunCanaries(&next_canaries);
    }
  }
}

void WorkerRuntime::RunTask(const LoaderTask& task) {
  if (!task.is_load) {
    const int64_t freed = core_.RetireExperts(task.retire.units);
    LogInfo("experts retired", {{"plan", task.retire.plan_id},
                                {"experts", task.retire.units.size()},
                                {"freed_bytes", freed}});
    Post(
        [this, plan_id = task.retire.plan_id, freed](MonotonicTime now, WorkerActions* out) {
          loop_->control.OnRetired(now, plan_id, freed, out);
        },
        /*may_refuse=*/false);
    return;
  }
  const absl::StatusOr<HeldExpert> loaded =
      core_.LoadExpert(checkpoint_, task.load.unit, task.load.expected);
  LogInfo("expert loaded", {{"layer", task.load.unit.layer.value()},
                            {"expert", task.load.unit.expert.value()},
                            {"ok", loaded.ok()}});
  Post(
      [this, unit = task.load.unit, loaded](MonotonicTime now, WorkerActions* out) {
        loop_->control.OnLoaded(now, unit, loaded, out);
      },
      /*may_refuse=*/false);
}

// All held experts once; gives way to the router's commands, and then begins anew.
void WorkerRuntime::RunCanaries(MonotonicTime* next) {
  for (const HeldExpert& held : core_.Held()) {
    if (HasLoaderTask()) {
      return;
    }
    const absl::Status status = core_.RunCanary(held.unit);
    if (!status.ok()) {
      LogError("canary failed", {{"why", MessageOf(status)}});
      Post(
          [this, unit = held.unit](MonotonicTime now, WorkerActions* out) {
            ++loop_->canary_failures;
            loop_->control.OnCanaryFailed(now, unit, out);
          },
          /*may_refuse=*/false);
    }
  }
  *next = clock_.Now() + options_.canary_interval;
}

// ---- compute ------------------------------------------------------------------------------------

void WorkerRuntime::ComputeThread() {
  ::pthread_setname_np(::pthread_self(), "compute-0");
  std::vector<ServedCall*> batch;
  std::vector<MergedCall> merged;
  while (queue_.Pop(us_per_row_.load(), &batch)) {
    busy_since_ns_.store(Nanoseconds(clock_.Now()));
    Compute(batch, merged);
    busy_ns_.fetch_add(Nanoseconds(clock_.Now()) - busy_since_ns_.exchange(0));
  }
  MutexLock lock(status_mu_);
  is_compute_done_ = true;
  status_changed_.NotifyAll();
}

void WorkerRuntime::Compute(std::vector<ServedCall*>& batch, std::vector<MergedCall>& merged) {
  const transport::CallView first = batch[0]->call;
  [[maybe_unused]] const FailpointContext here{.layer = first.layer.value(),
                                               .phase = transport::NameOf(first.phase)};
  CONCLAVE_FAILPOINT_LINK(batch[0]->failpoint_link());
  const MonotonicTime begin = clock_.Now();
  const FailpointHit before = CONCLAVE_FAILPOINT("w.before_compute", (here));
  merged.clear();
  uint64_t num_rows = 0;
  for (ServedCall* call : batch) {
    merged.push_back({&call->call, &call->reply, before.status()});
    num_rows += call->call.num_rows;
  }
  if (before.status().ok()) {
    core_.ExecuteMerged(merged);
  }
  const FailpointHit after = CONCLAVE_FAILPOINT("w.after_compute", (here));
  if (after.action == FailpointAction::kFlip && !batch[0]->reply.rows.empty()) {
    const std::span<std::byte> rows = batch[0]->reply.rows;
    rows[static_cast<size_t>(after.argument) % rows.size()] ^= std::byte{1};
  }
  const MonotonicTime end = clock_.Now();
  const uint32_t service_us = MicrosecondsBetween(begin, end);
  const double per_row = static_cast<double>(service_us) / static_cast<double>(num_rows);
  const double smoothed = us_per_row_.load();
  us_per_row_.store(smoothed == 0 ? per_row : smoothed + kSmoothing * (per_row - smoothed));

  // Before Finish: who has the answer may ask for the figures.
  const Epoch epoch = status().epoch;
  for (size_t i = 0; i < batch.size(); ++i) {
    ServedCall* call = batch[i];
    const absl::Status status = merged[i].status.ok() ? after.status() : merged[i].status;
    call->reply.queue_us = MicrosecondsBetween(call->received_at, begin);
    call->reply.service_us = service_us;
    num_rows_.fetch_add(status.ok() ? call->call.num_rows : 0);
    (status.ok() ? num_calls_ : num_refused_).fetch_add(1);
    const std::vector<WorkerId> holders =
        ReasonOf(status) == "not_held" ? HoldersOf(call->call) : std::vector<WorkerId>();
    call->Finish(status, epoch, holders);
  }
  (void)CONCLAVE_FAILPOINT("w.after_reply", (here));
}

// Of the call's experts that are not here, by the last placement; without this worker.
std::vector<WorkerId> WorkerRuntime::HoldersOf(const transport::CallView& call) const {
  std::shared_ptr<const Holders> holders;
  WorkerId self;
  {
    MutexLock lock(status_mu_);
    holders = holders_;
    self = self_;
  }
  std::vector<WorkerId> found;
  for (size_t p = 0; holders != nullptr && p < call.pair_expert.size(); ++p) {
    if (p > 0 && call.pair_expert[p] == call.pair_expert[p - 1]) {
      continue;
    }
    const ExpertUnit unit{call.layer, ExpertId(call.pair_expert[p])};
    const auto entry = holders->find(unit);
    if (entry == holders->end() || core_.Holds(unit)) {
      continue;
    }
    for (const WorkerId worker : entry->second) {
      if (worker != self && std::find(found.begin(), found.end(), worker) == found.end()) {
        found.push_back(worker);
      }
    }
  }
  return found;
}

ComputeFigures WorkerRuntime::compute_figures() const {
  ComputeFigures figures;
  figures.calls = num_calls_.load();
  figures.calls_refused = num_refused_.load();
  figures.rows = num_rows_.load();
  const int64_t since = busy_since_ns_.load();
  const int64_t now = Nanoseconds(clock_.Now());
  figures.busy_seconds =
      static_cast<double>(busy_ns_.load() + (since > 0 ? std::max<int64_t>(0, now - since) : 0)) *
      1e-9;
  figures.us_per_row = us_per_row_.load();
  return figures;
}

}  // namespace conclave::expert_worker
