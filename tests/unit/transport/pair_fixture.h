// A real server and what tests of channels between processes need around it, on a free port of
// this machine. By itself it speaks grpc; a test of another channel overrides two functions.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "conclave/base/mutex.h"
#include "conclave/base/status.h"
#include "conclave/transport/grpc_channel.h"
#include "conclave/transport/grpc_server.h"
#include "conclave/transport/pair_key.h"
#include "conclave/transport/rows.h"
#include "sample_call.h"

namespace conclave::transport {

// Long enough for a loaded machine; a test that needs it fails anyway.
inline constexpr std::chrono::seconds kPatience{30};

// Answers with the rows of the call in reverse order, on a thread of its own; or keeps the calls.
class EchoSink final : public CallSink {
 public:
  EchoSink() : worker_([this] { Work(); }) {}
  ~EchoSink() override {
    {
      MutexLock lock(mu_);
      is_over_ = true;
      is_holding_ = false;
      changed_.NotifyAll();
    }
    worker_.join();
  }

  absl::Status Submit(ServedCall* call) override {
    MutexLock lock(mu_);
    if (!refusal_.ok()) {
      return refusal_;
    }
    calls_.push_back(call);
    ++num_submitted_;
    changed_.NotifyAll();
    return absl::OkStatus();
  }
  void OnCancelled(PeerId /*peer*/) override {
    MutexLock lock(mu_);
    ++num_cancels_;
    changed_.NotifyAll();
  }
  void OnPeerGone(PeerId /*peer*/) override {
    MutexLock lock(mu_);
    ++num_gone_;
    changed_.NotifyAll();
  }

  // Calls are kept from now on; false: those kept are answered, last one first.
  void Hold(bool is_holding) {
    MutexLock lock(mu_);
    is_holding_ = is_holding;
    changed_.NotifyAll();
  }
  void RefuseWith(absl::Status refusal) {
    MutexLock lock(mu_);
    refusal_ = std::move(refusal);
  }
  void AnswerWith(absl::Status answer, Epoch epoch, std::vector<WorkerId> holders) {
    MutexLock lock(mu_);
    answer_ = {std::move(answer), epoch, std::move(holders), false};
  }
  // Writes NaN over the first element of every answer.
  void Poison() {
    MutexLock lock(mu_);
    answer_.is_poisoned = true;
  }

  bool WaitForCalls(int count) {
    return WaitFor([=](const EchoSink& sink) { return sink.num_submitted_ >= count; });
  }
  bool WaitForCancels(int count) {
    return WaitFor([=](const EchoSink& sink) { return sink.num_cancels_ >= count; });
  }
  bool WaitForGone(int count) {
    return WaitFor([=](const EchoSink& sink) { return sink.num_gone_ >= count; });
  }
  // Whether all calls that are kept know that nobody waits for them.
  bool AreHeldCancelled() {
    MutexLock lock(mu_);
    return std::all_of(calls_.begin(), calls_.end(),
                       [](const ServedCall* call) { return call->is_cancelled(); });
  }
  int num_submitted() {
    MutexLock lock(mu_);
    return num_submitted_;
  }

 private:
  bool WaitFor(const std::function<bool(const EchoSink&)>& is_so) {
    const MonotonicTime until = Clock::Real().Now() + kPatience;
    MutexLock lock(mu_);
    while (!is_so(*this) && Clock::Real().Now() < until) {
      changed_.WaitFor(mu_, std::chrono::milliseconds(100));
    }
    return is_so(*this);
  }

  struct Answer {
    absl::Status status;
    Epoch epoch;
    std::vector<WorkerId> holders;
    bool is_poisoned = false;
  };

  // The next call to answer, and how; null: the end.
  std::pair<ServedCall*, Answer> Take() {
    MutexLock lock(mu_);
    while (calls_.empty() || is_holding_) {
      if (is_over_) {
        return {};
      }
      changed_.WaitFor(mu_, std::chrono::milliseconds(100));
    }
    ServedCall* call = calls_.back();
    calls_.pop_back();
    return {call, answer_};
  }

  void Work() {
    while (true) {
      const auto [call, answer] = Take();
      if (call == nullptr) {
        return;
      }
      Give(*call, answer);
    }
  }

  // Without the lock: Finish may call the sink.
  static void Give(ServedCall& call, const Answer& answer) {
    if (call.is_cancelled()) {
      call.Finish(Error(absl::StatusCode::kCancelled, "cancelled", "test"), answer.epoch, {});
      return;
    }
    const size_t row_bytes = RowBytes(1, call.call.row_width, call.call.dtype);
    for (size_t r = 0; r < call.call.num_rows; ++r) {
      std::memcpy(call.reply.rows.data() + r * row_bytes,
                  call.call.rows.data() + (call.call.num_rows - 1 - r) * row_bytes, row_bytes);
    }
    if (answer.is_poisoned) {
      std::memset(call.reply.rows.data(), 0xff, 4);
    }
    call.reply.service_us = 11;
    call.reply.queue_us = 12;
    call.Finish(answer.status, answer.epoch, answer.holders);
  }

  Mutex mu_;
  CondVar changed_;
  std::vector<ServedCall*> calls_;
  bool is_holding_ = false;
  bool is_over_ = false;
  absl::Status refusal_;
  Answer answer_;
  int num_submitted_ = 0;
  int num_cancels_ = 0;
  int num_gone_ = 0;
  std::thread worker_;
};

inline constexpr uint64_t kWorkerKey = 0x1122334455667788;
inline constexpr uint32_t kFrontend = 0x00010007;

inline ExpertServerOptions TestServerOptions(const FrameLimits& limits = SampleLimits()) {
  ExpertServerOptions options;
  options.cluster_id = "test";
  options.manifest_hash = "a1b2";
  options.isa = "avx2";
  options.kernel_revision = 3;
  options.incarnation = 17;
  options.limits = limits;
  options.mode = limits.dtype == WireDtype::kF32 ? DType::kF32 : DType::kBf16;
  options.num_slots = 8;
  return options;
}

inline PairTerms TestTerms(const ExpertServerOptions& server) {
  PairTerms terms;
  terms.cluster_id = server.cluster_id;
  terms.manifest_hash = server.manifest_hash;
  terms.row_width = server.limits.row_width;
  terms.top_k = server.limits.top_k;
  terms.mode = server.mode;
  terms.isa = server.isa;
  terms.kernel_revision = server.kernel_revision;
  terms.frontend_id = kFrontend;
  terms.frontend_incarnation = 5;
  terms.pair_key = PairKey(kWorkerKey, kFrontend);
  terms.worker_incarnation = server.incarnation;
  terms.num_slots = server.num_slots;
  terms.max_rows = server.limits.max_rows;
  terms.num_layers = server.limits.num_layers;
  terms.num_experts_max = server.limits.num_experts_max;
  terms.num_models = server.limits.num_models;
  return terms;
}

// Writes the sample into the slot's memory and gives it the sample's words.
inline void FillFrom(const SampleCall& sample, CallSlot& slot) {
  const CallView& from = sample.view;
  const size_t pairs = from.pair_row.size();
  std::copy(from.pair_weight.begin(), from.pair_weight.end(), slot.pair_weight.begin());
  std::copy(from.pair_row.begin(), from.pair_row.end(), slot.pair_row.begin());
  std::copy(from.pair_expert.begin(), from.pair_expert.end(), slot.pair_expert.begin());
  std::copy(from.rows.begin(), from.rows.end(), slot.rows.begin());
  slot.call = from;
  slot.call.deadline_us = 0;
  slot.call.pair_weight = slot.pair_weight.first(pairs);
  slot.call.pair_row = slot.pair_row.first(pairs);
  slot.call.pair_expert = slot.pair_expert.first(pairs);
  slot.call.rows = slot.rows.first(from.rows.size());
}

// Whether the reply is what EchoSink makes of the call.
inline bool IsEcho(const CallSlot& slot) {
  const size_t row_bytes = RowBytes(1, slot.call.row_width, slot.call.dtype);
  if (slot.reply.rows.size() != slot.call.rows.size()) {
    return false;
  }
  for (size_t r = 0; r < slot.call.num_rows; ++r) {
    if (std::memcmp(slot.reply.rows.data() + r * row_bytes,
                    slot.call.rows.data() + (slot.call.num_rows - 1 - r) * row_bytes,
                    row_bytes) != 0) {
      return false;
    }
  }
  return true;
}

class PairTest : public ::testing::Test {
 protected:
  void StartServer(ExpertServerOptions options = TestServerOptions()) {
    options_ = std::move(options);
    Extend(options_);
    auto server = ExpertServer::Start(options_, sink_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->SetRegistration(WorkerId(4), kWorkerKey, Epoch(90));
    address_ = "127.0.0.1:" + std::to_string(server_->port());
  }

  // Adds what the server needs beside grpc.
  virtual void Extend(ExpertServerOptions& /*options*/) {}

  virtual absl::StatusOr<std::unique_ptr<ExpertChannel>> Connect(
      const PairTerms& terms, const TlsIdentity& tls = {},
      std::chrono::milliseconds timeout = kPatience) {
    return ConnectGrpcChannel(address_, tls, terms, bell_, Clock::Real(), timeout);
  }

  std::unique_ptr<ExpertChannel> MustConnect() {
    auto channel = Connect(TestTerms(options_));
    EXPECT_TRUE(channel.ok()) << channel.status();
    return channel.ok() ? *std::move(channel) : nullptr;
  }

  // A call of this many rows under way.
  CallSlot* Begin(ExpertChannel& channel, uint64_t seed, uint16_t num_rows) {
    CallSlot* slot = channel.Acquire();
    EXPECT_NE(slot, nullptr);
    FillFrom(MakeSampleCall(seed, options_.limits, num_rows), *slot);
    const absl::Status status = channel.Dispatch(slot);
    EXPECT_TRUE(status.ok()) << status;
    return slot;
  }

  // The end of a call, told by the bell.
  absl::Status WaitForEnd(ExpertChannel& channel, CallSlot* slot) {
    const MonotonicTime until = Clock::Real().Now() + kPatience;
    while (true) {
      if (std::optional<absl::Status> status = channel.Poll(slot); status.has_value()) {
        return *std::move(status);
      }
      if (!bell_.WaitUntil(until)) {
        return absl::DeadlineExceededError("the bell did not ring");
      }
    }
  }

  // Without a sleep: for what no bell tells.
  template <typename Predicate>
  bool Eventually(const Predicate& is_so) {
    const MonotonicTime until = Clock::Real().Now() + kPatience;
    // Asked once per turn: a predicate may change what it asks about, as a connection that it
    // tries does.
    while (!is_so()) {
      if (Clock::Real().Now() >= until) {
        return false;
      }
      std::this_thread::yield();
    }
    return true;
  }

  Doorbell bell_;
  EchoSink sink_;
  ExpertServerOptions options_;
  std::string address_;
  std::unique_ptr<ExpertServer> server_;
};

}  // namespace conclave::transport
