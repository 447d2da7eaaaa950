// Goal: the threads of a worker do what its state machine says: loads and retires happen, calls are
// answered in batches, a lost
// stream is opened again, a stop answers everything.
// Method: a runtime between a stand-in of the router and one of the data plane, and calls without a
// link.
#include "worker_runtime.h"

#include <cstring>

#include "conclave/base/status.h"
#include "fake_call.h"
#include "tiny_experts.h"

namespace conclave::expert_worker {
namespace {

using std::chrono::milliseconds;

// Keeps what is sent and lets a test speak for the router.
class FakeLink final : public RouterLink {
 public:
  void Open(const RegistrationFacts& facts, StreamEvents events) override {
    MutexLock lock(mu_);
    facts_ = facts;
    events_ = std::move(events);
    ++num_opened_;
    changed_.NotifyAll();
  }
  void Close() override {}
  void Send(const RouterReport& report) override {
    MutexLock lock(mu_);
    reports_.push_back(report);
    changed_.NotifyAll();
  }

  StreamEvents AwaitOpen(int count) {
    MutexLock lock(mu_);
    while (num_opened_ < count) {
      changed_.Wait(mu_);
    }
    return events_;
  }
  RegistrationFacts facts() {
    MutexLock lock(mu_);
    return facts_;
  }
  // The next report of the kind.
  template <typename T>
  T Await() {
    MutexLock lock(mu_);
    while (true) {
      for (; next_ < reports_.size(); ++next_) {
        if (const T* found = std::get_if<T>(&reports_[next_])) {
          ++next_;
          return *found;
        }
      }
      changed_.Wait(mu_);
    }
  }

 private:
  Mutex mu_;
  CondVar changed_;
  RegistrationFacts facts_ ABSL_GUARDED_BY(mu_);
  StreamEvents events_ ABSL_GUARDED_BY(mu_);
  int num_opened_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<RouterReport> reports_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
};

class FakeData final : public DataPlane {
 public:
  void SetRegistration(WorkerId worker, uint64_t /*key*/, Epoch /*epoch*/) override {
    worker_.store(worker.value());
  }
  void SetEpoch(Epoch epoch) override { epoch_.store(epoch.value()); }
  void SetDraining(bool is_draining) override { is_draining_.store(is_draining); }

  std::atomic<int32_t> worker_{-1};
  std::atomic<uint64_t> epoch_{0};
  std::atomic<bool> is_draining_{false};
};

class WorkerRuntimeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    checkpoint_ = OpenTiny();
    ASSERT_NE(checkpoint_, nullptr);
    WorkerCoreOptions options;
    options.dtype = DType::kF32;
    options.compute = kernels::Context(kernels::Isa::kScalar, pool_);
    options.max_rows = 64;
    options.max_pairs = 128;
    options.max_merged_calls = 16;
    options.max_merged_rows = 256;
    core_ = WorkerCore::Create(checkpoint_->desc(), options);
    queue_ = std::make_unique<CallQueue>(CallQueueOptions(), Clock::Real());
    RuntimeOptions runtime;
    runtime.control.drain_timeout = milliseconds(10'000);
    runtime_ =
        std::make_unique<WorkerRuntime>(*checkpoint_, *core_, *queue_, link_, data_, runtime);
  }
  void TearDown() override { runtime_.reset(); }

  void Join() {
    runtime_->Start();
    events_ = link_.AwaitOpen(1);
    RegisteredCommand registered;
    registered.worker = WorkerId(2);
    // Long enough for a loaded machine: no test here is about the lease.
    registered.dead_after = milliseconds(60'000);
    registered.heartbeat_interval = milliseconds(5);
    Tell(registered);
  }
  void Tell(decltype(RouterCommand::command) command) {
    EXPECT_TRUE(events_.on_command({{1, "aa"}, std::move(command)}));
  }
  void LoadAll() {
    Tell(PrepareCommand{1, Units(AllExperts()), {}});
    EXPECT_EQ(link_.Await<action::SendPrepareResult>().ready.size(), 8u);
  }

  // A call of `owned` for the queue.
  static std::unique_ptr<FakeCall> ServedOf(OwnedCall& owned, uint64_t peer) {
    auto call = std::make_unique<FakeCall>();
    call->call = owned.view;
    call->reply = owned.reply;
    call->peer = transport::PeerId(peer);
    call->received_at = Clock::Real().Now();
    return call;
  }

  ThreadPool pool_{1};
  std::unique_ptr<checkpoint::Checkpoint> checkpoint_;
  std::unique_ptr<WorkerCore> core_;
  std::unique_ptr<CallQueue> queue_;
  FakeLink link_;
  FakeData data_;
  std::unique_ptr<WorkerRuntime> runtime_;
  StreamEvents events_;
};

TEST_F(WorkerRuntimeTest, CallsOfManyFrontendsAreAnsweredWithTheBitsOfCallsAlone) {
  Join();
  LoadAll();
  const auto alone = LoadWorker(*checkpoint_, AllExperts(), DType::kF32,
                                kernels::Context(kernels::Isa::kScalar, pool_));
  std::vector<std::unique_ptr<OwnedCall>> owned;
  std::vector<std::unique_ptr<FakeCall>> calls;
  std::vector<std::unique_ptr<OwnedCall>> wanted;
  for (uint64_t i = 0; i < 60; ++i) {
    const Tokens tokens = RandomTokens(i, 1 + i % 7, transport::WireDtype::kF32);
    const int32_t layer = i % 2 == 0 ? 0 : 2;
    owned.push_back(MakeCall(tokens, AllOf(tokens), AllExperts(), layer));
    wanted.push_back(MakeCall(tokens, AllOf(tokens), AllExperts(), layer));
    ASSERT_TRUE(alone->Execute(wanted.back()->view, wanted.back()->reply).ok());
    calls.push_back(ServedOf(*owned.back(), i % 5));
  }
  for (const auto& call : calls) {
    ASSERT_TRUE(queue_->Submit(call.get()).ok());
  }
  for (size_t i = 0; i < calls.size(); ++i) {
    calls[i]->Await();
    ASSERT_TRUE(calls[i]->status().ok()) << calls[i]->status();
    EXPECT_EQ(std::memcmp(owned[i]->reply.rows.data(), wanted[i]->reply.rows.data(),
                          wanted[i]->reply.rows.size()),
              0);
  }
  EXPECT_EQ(runtime_->compute_figures().calls, 60u);
  EXPECT_GT(runtime_->compute_figures().us_per_row, 0);
}

TEST_F(WorkerRuntimeTest, HeartbeatsTellOfTheOldestCallAndOfTheWork) {
  Join();
  const HeartbeatReport first = link_.Await<HeartbeatReport>();
  EXPECT_EQ(first.seq, 1u);
  EXPECT_TRUE(first.is_canary_ok);
  EXPECT_EQ(first.queued_rows, 0u);
  EXPECT_EQ(link_.Await<HeartbeatReport>().seq, 2u);
}

TEST_F(WorkerRuntimeTest, WhatIsNotHeldIsRefusedWithItsHolders) {
  Join();
  Tell(PlacementCommand{
      Epoch(9), Epoch(0), {{{LayerId(0), ExpertId(1)}, {WorkerId(2), WorkerId(4)}}}});
  Tell(PrepareCommand{1, {{LayerId(2), ExpertId(0)}}, {}});
  link_.Await<action::SendPrepareResult>();  // behind the placement
  Tokens tokens = RandomTokens(1, 2, transport::WireDtype::kF32);
  tokens.choices.assign(2, {{1, 1.0f}});
  const auto owned = MakeCall(tokens, AllOf(tokens), AllExperts(), 0);
  const auto call = ServedOf(*owned, 1);
  ASSERT_TRUE(queue_->Submit(call.get()).ok());
  call->Await();
  EXPECT_EQ(ReasonOf(call->status()), "not_held");
  EXPECT_EQ(call->epoch(), Epoch(9));
  EXPECT_EQ(call->holders(), std::vector<WorkerId>{WorkerId(4)});
  EXPECT_EQ(data_.epoch_.load(), 9u);
}

TEST_F(WorkerRuntimeTest, ALostStreamIsOpenedAgainWithWhatIsHeld) {
  Join();
  LoadAll();
  events_.on_lost(absl::UnavailableError("gone"));
  const StreamEvents stale = events_;
  events_ = link_.AwaitOpen(2);
  EXPECT_EQ(link_.facts().held.size(), 8u);
  EXPECT_EQ(link_.facts().last_router.term, 1u);
  // What still comes of the old stream is of the past.
  stale.on_command({{1, "aa"}, RetireCommand{3, Units(AllExperts())}});
  RegisteredCommand registered;
  registered.dead_after = milliseconds(60'000);
  Tell(registered);
  Tell(PrepareCommand{4, Units(AllExperts()), {}});
  EXPECT_EQ(link_.Await<action::SendPrepareResult>().ready.size(), 8u);
  EXPECT_EQ(core_->Held().size(), 8u);
}

TEST_F(WorkerRuntimeTest, ADrainEndsWithTheRoutersWordAndEveryCallIsAnswered) {
  Join();
  LoadAll();
  EXPECT_TRUE(runtime_->WaitReady());
  const Tokens tokens = RandomTokens(1, 3, transport::WireDtype::kF32);
  const auto owned = MakeCall(tokens, AllOf(tokens), AllExperts(), 0);
  runtime_->Drain();
  link_.Await<action::SendDrainWish>();
  const auto call = ServedOf(*owned, 1);
  ASSERT_TRUE(queue_->Submit(call.get()).ok());
  Tell(DrainCommand{true, true});
  EXPECT_TRUE(runtime_->WaitStopped().ok());
  EXPECT_TRUE(call->is_finished());
  EXPECT_TRUE(call->status().ok());
  EXPECT_TRUE(data_.is_draining_.load());
  EXPECT_EQ(ReasonOf(queue_->Submit(call.get())), "draining");
}

}  // namespace
}  // namespace conclave::expert_worker
