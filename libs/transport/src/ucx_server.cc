#include <poll.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <thread>
#include <utility>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/transport/ucx_channel.h"
#include "ucx_session.h"

namespace conclave::transport {
namespace {

// Of endpoints that are given up when the server ends.
constexpr std::chrono::seconds kCloseMax{2};

class UcxServer final : public SideServer {
 public:
  explicit UcxServer(std::unique_ptr<UcxWorker> worker)
      : has_payload_crc_(worker->context().has_payload_crc()),
        address_(worker->address()),
        fd_(worker->fd()),
        core_(std::make_shared<UcxCore>()) {
    worker->SetHandler(&UcxServer::OnMessage, core_.get());
    core_->worker = std::move(worker);
  }
  ~UcxServer() override { Stop(); }

  const char* name() const override { return "ucx"; }
  const std::string& address() const override { return address_; }

  void Start(CallSink& sink, std::shared_ptr<SessionCounters> counters,
             const Clock& clock) override {
    CONCLAVE_CHECK(core_->sink == nullptr);
    core_->sink = &sink;
    core_->counters = std::move(counters);
    core_->clock = &clock;
    thread_ = std::thread([this] { Run(); });
  }

  absl::StatusOr<std::shared_ptr<SideSession>> Open(
      uint64_t id, const SessionTerms& terms, const std::string& peer_address,
      std::function<void(const absl::Status&)> on_end) override {
    auto session =
        std::make_shared<UcxSession>(id, terms, has_payload_crc_, core_, std::move(on_end));
    MutexLock lock(core_->mu);
    if (core_->worker == nullptr) {
      return Error(absl::StatusCode::kUnavailable, "draining", "worker: ends");
    }
    CONCLAVE_RETURN_IF_ERROR(session->Connect(peer_address));
    core_->sessions[id] = session;
    core_->worker->Signal();
    return session;
  }

  void Stop() override;

 private:
  static ucs_status_t OnMessage(void* argument, const void* head_bytes, size_t num_head_bytes,
                                void* message, size_t bytes,
                                const ucp_am_recv_param_t* param) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    auto& core = *static_cast<UcxCore*>(argument);
    UcxHead head;
    const auto it = ReadHead(head_bytes, num_head_bytes, head) ? core.sessions.find(head.session)
                                                               : core.sessions.end();
    if (it == core.sessions.end()) {
      // Of nobody who has shaken hands, or of somebody who is gone.
      core.counters->malformed.fetch_add(1, std::memory_order_relaxed);
      return UCS_OK;
    }
    return it->second->OnMessage(head, message, bytes,
                                 (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0);
  }

  void Run();
  // One turn; whether anything came.
  bool Turn();
  // Waits for UCX to have something to do; whether it waited at all.
  bool Sleep();

  const bool has_payload_crc_;
  const std::string address_;
  const int fd_;
  const std::shared_ptr<UcxCore> core_;

  // Of the thread.
  std::vector<UcxCore::Arrival> arrivals_;
  bool has_frames_ = false;  // had, in the last turn
  std::vector<UcxCore::Failure> failures_;
  std::vector<std::shared_ptr<UcxSession>> gone_;
  std::vector<std::shared_ptr<UcxSession>> ending_;  // UCX has not let go of them yet

  std::atomic<bool> is_stopping_{false};
  std::thread thread_;  // last: it uses all of the above
};

bool UcxServer::Turn() {
  bool has_come = false;
  // Those who wait to send an answer go first.
  while (core_->num_waiting.load(std::memory_order_relaxed) > 0) {
    std::this_thread::yield();
  }
  {
    MutexLock lock(core_->mu);
    // Bounded, so that frames are looked at while more of them come.
    for (int i = 0; i < 16 && core_->worker->Progress(); ++i) {
      has_come = true;
    }
    std::swap(arrivals_, core_->arrivals);
    std::swap(failures_, core_->failures);
    std::swap(gone_, core_->closing);
    for (const std::shared_ptr<UcxSession>& session : gone_) {
      core_->sessions.erase(session->id());
      session->StartClose();
      ending_.push_back(session);
    }
    std::erase_if(ending_, [](const auto& session) { return session->IsClosed(); });
  }
  for (const UcxCore::Arrival& arrival : arrivals_) {
    arrival.session->Process(arrival);
  }
  for (const UcxCore::Failure& failure : failures_) {
    failure.session->End(failure.why);
  }
  for (const std::shared_ptr<UcxSession>& session : gone_) {
    session->TellGone();
  }
  has_frames_ = !arrivals_.empty();
  has_come = has_come || !arrivals_.empty() || !failures_.empty() || !gone_.empty();
  arrivals_.clear();
  failures_.clear();
  gone_.clear();
  return has_come;
}

bool UcxServer::Sleep() {
  int timeout_ms = 100;
  {
    MutexLock lock(core_->mu);
    // Sends that wait for room in the peer's memory wake nobody.
    const bool has_operations =
        std::any_of(core_->sessions.begin(), core_->sessions.end(),
                    [](const auto& entry) { return entry.second->has_operations(); });
    timeout_ms = has_operations || !ending_.empty() ? 1 : timeout_ms;
    if (!core_->arrivals.empty() || !core_->failures.empty() || !core_->closing.empty() ||
        !core_->worker->Arm()) {
      return false;
    }
  }
  pollfd entry{fd_, POLLIN, 0};
  // Without waiting first, to know whether it waits.
  const int ready = ::poll(&entry, 1, 0);
  CONCLAVE_CHECK(ready >= 0 || errno == EINTR);
  if (ready > 0) {
    return false;
  }
  CONCLAVE_CHECK(::poll(&entry, 1, timeout_ms) >= 0 || errno == EINTR);
  return true;
}

void UcxServer::Run() {
  ::pthread_setname_np(::pthread_self(), "ucx");
  MonotonicTime spin_until = Clock::Real().Now() + Doorbell::kSpin;
  constexpr int kSleeplessMax = 64;
  int num_sleepless = 0;  // in a row
  while (!is_stopping_.load(std::memory_order_acquire)) {
    if (Turn()) {
      num_sleepless = has_frames_ ? 0 : num_sleepless;
      spin_until = Clock::Real().Now() + Doorbell::kSpin;
    } else if (Clock::Real().Now() < spin_until) {
      // The peer, or the thread that computes, may need this core.
      std::this_thread::yield();
    } else if (Sleep()) {
      num_sleepless = 0;
    } else if (++num_sleepless >= kSleeplessMax) {
      // UCX may have something of its own to do for as long as the peer is idle, and then neither
      // arms nor blocks: without this the thread would spin until the next call.
      std::this_thread::sleep_for(std::chrono::microseconds(500));
    }
  }
  std::vector<std::shared_ptr<UcxSession>> all;
  {
    MutexLock lock(core_->mu);
    for (const auto& [id, session] : core_->sessions) {
      all.push_back(session);
    }
  }
  for (const std::shared_ptr<UcxSession>& session : all) {
    session->End(Error(absl::StatusCode::kUnavailable, "draining",
                       "worker: ends; expected no further frames"));
  }
  const MonotonicTime until = Clock::Real().Now() + kCloseMax;
  do {
    Turn();
  } while (!ending_.empty() && Clock::Real().Now() < until);
}

void UcxServer::Stop() {
  if (!thread_.joinable()) {
    return;
  }
  is_stopping_.store(true, std::memory_order_release);
  {
    MutexLock lock(core_->mu);
    core_->worker->Signal();
  }
  thread_.join();
  std::unique_ptr<UcxWorker> worker;
  MutexLock lock(core_->mu);
  worker = std::move(core_->worker);
  core_->sessions.clear();
  // With it end the requests of endpoints that UCX was too slow to close, before their memory.
  worker.reset();
  ending_.clear();
}

}  // namespace

absl::StatusOr<std::shared_ptr<SideServer>> MakeUcxServer(const UcxReach& reach) {
  CONCLAVE_ASSIGN_OR_RETURN(std::shared_ptr<UcxContext> context, UcxContext::Get(reach));
  CONCLAVE_ASSIGN_OR_RETURN(std::unique_ptr<UcxWorker> worker,
                            UcxWorker::Create(std::move(context)));
  return std::make_shared<UcxServer>(std::move(worker));
}

}  // namespace conclave::transport
