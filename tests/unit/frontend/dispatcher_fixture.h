// Channels with a script on a fake clock and a dispatcher over them; what comes out of a layer is
// compared with arithmetic.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>
#include <vector>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/base/thread_pool.h"
#include "conclave/frontend/dispatcher.h"
#include "conclave/testing/fake_clock.h"

namespace conclave::frontend {

using std::chrono::microseconds;
using std::chrono::milliseconds;

inline constexpr int32_t kWidth = 8;
inline constexpr int32_t kExperts = 4;
inline constexpr int32_t kLayer = 3;
inline constexpr uint16_t kMaxRowsPerCall = 16;

// A worker by arithmetic: expert e multiplies its row by e + 1.
class ScriptedChannel final : public transport::ExpertChannel {
 public:
  explicit ScriptedChannel(testing::FakeClock& clock) : clock_(clock) {
    limits_.num_slots = 4;
    limits_.max_rows = kMaxRowsPerCall;
    limits_.max_pairs = 2 * kMaxRowsPerCall;
    limits_.row_width = kWidth;
    limits_.dtype = transport::WireDtype::kF32;
    slots_.resize(limits_.num_slots);
    for (Slot& slot : slots_) {
      slot.weights.resize(limits_.max_pairs);
      slot.pair_rows.resize(limits_.max_pairs);
      slot.experts.resize(limits_.max_pairs);
      slot.in.resize(kMaxRowsPerCall * kWidth);
      slot.out.resize(kMaxRowsPerCall * kWidth);
      slot.pair_weight = slot.weights;
      slot.pair_row = slot.pair_rows;
      slot.pair_expert = slot.experts;
      slot.rows = std::as_writable_bytes(std::span(slot.in));
      slot.reply_rows = std::as_writable_bytes(std::span(slot.out));
    }
  }

  // What becomes of calls from now on.
  microseconds latency{500};
  bool is_hung = false;  // as after SIGSTOP: takes calls, answers none
  absl::Status refusal;  // answers with this
  std::optional<MonotonicTime> dies_at;
  std::vector<int32_t> not_held;  // experts that it refuses

  // What its answers say of the time that they took.
  uint32_t service_us_per_row = 0;
  uint32_t queue_us = 0;
  const char* carried_by = "inproc";
  microseconds dispatch_takes{0};  // of the caller's time

  int num_calls = 0;
  int num_rows = 0;     // of all calls
  int num_experts = 0;  // likewise: how often weights are read
  int num_cancelled = 0;
  int num_held_slots() const {
    return static_cast<int>(
        std::count_if(slots_.begin(), slots_.end(), [](const Slot& s) { return s.is_held; }));
  }

  const transport::ChannelLimits& limits() const override { return limits_; }
  transport::CallSlot* Acquire() override {
    for (Slot& slot : slots_) {
      if (!slot.is_held) {
        slot.is_held = true;
        slot.call = {};
        return &slot;
      }
    }
    return nullptr;
  }
  absl::Status Dispatch(transport::CallSlot* slot) override {
    CONCLAVE_RETURN_IF_ERROR(LinkStatus());
    ++num_calls;
    num_rows += slot->call.num_rows;
    num_experts += NumExperts(slot->call.pair_expert);
    static_cast<Slot*>(slot)->answer_at = clock_.Now() + latency;
    clock_.Advance(dispatch_takes);
    return absl::OkStatus();
  }
  std::optional<absl::Status> Poll(transport::CallSlot* call_slot) override {
    auto& slot = *static_cast<Slot*>(call_slot);
    if (const absl::Status link = LinkStatus(); !link.ok()) {
      return link;
    }
    if (is_hung || clock_.Now() < slot.answer_at) {
      return std::nullopt;
    }
    if (!refusal.ok()) {
      return refusal;
    }
    for (const uint16_t expert : slot.call.pair_expert) {
      if (std::find(not_held.begin(), not_held.end(), expert) != not_held.end()) {
        return NotFound("not_held", "call: an expert is not held");
      }
    }
    std::fill(slot.out.begin(), slot.out.end(), 0.0f);
    for (size_t p = 0; p < slot.call.pair_expert.size(); ++p) {
      for (int32_t c = 0; c < kWidth; ++c) {
        const auto at = static_cast<size_t>(slot.call.pair_row[p] * kWidth + c);
        slot.out[at] += slot.call.pair_weight[p] *
                        static_cast<float>(slot.call.pair_expert[p] + 1) * slot.in[at];
      }
    }
    slot.reply.service_us = service_us_per_row * slot.call.num_rows;
    slot.reply.queue_us = queue_us;
    return absl::OkStatus();
  }
  absl::Status Await(transport::CallSlot* /*slot*/) override {
    return absl::UnimplementedError("the dispatcher polls");
  }
  const char* carrier() const override { return carried_by; }
  absl::Status LinkStatus() const override {
    if (dies_at && clock_.Now() >= *dies_at) {
      return Error(absl::StatusCode::kUnavailable, "link_lost", "reset by peer");
    }
    return absl::OkStatus();
  }
  void Cancel(transport::CallSlot* slot) override {
    ++num_cancelled;
    if (!is_hung) {
      late_at_.push_back(static_cast<Slot*>(slot)->answer_at);
    }
  }
  // Answers to cancelled calls come at their time.
  transport::LinkCounters counters() const override {
    transport::LinkCounters counters;
    counters.late_replies = static_cast<uint64_t>(std::count_if(
        late_at_.begin(), late_at_.end(), [this](MonotonicTime at) { return at <= clock_.Now(); }));
    return counters;
  }
  void Release(transport::CallSlot* slot) override { static_cast<Slot*>(slot)->is_held = false; }

  static int NumExperts(std::span<const uint16_t> experts) {
    int count = 0;
    for (size_t i = 0; i < experts.size(); ++i) {
      count += i == 0 || experts[i] != experts[i - 1] ? 1 : 0;
    }
    return count;
  }

  // The next moment at which something of this channel changes.
  MonotonicTime NextEvent() const {
    MonotonicTime next = MonotonicTime::max();
    if (dies_at && *dies_at > clock_.Now()) {
      next = *dies_at;
    }
    for (const Slot& slot : slots_) {
      if (slot.is_held && !is_hung && slot.answer_at > clock_.Now()) {
        next = std::min(next, slot.answer_at);
      }
    }
    return next;
  }

 private:
  struct Slot : transport::CallSlot {
    bool is_held = false;
    MonotonicTime answer_at;
    std::vector<float> weights, in, out;
    std::vector<uint16_t> pair_rows, experts;
  };
  testing::FakeClock& clock_;
  transport::ChannelLimits limits_;
  std::deque<Slot> slots_;
  std::vector<MonotonicTime> late_at_;
};

class ScriptedLinks final : public LinkSource {
 public:
  explicit ScriptedLinks(testing::FakeClock& clock) : clock_(clock) {}

  ScriptedChannel& Add(int32_t worker, uint64_t incarnation = 1) {
    channels_.push_back(std::make_unique<ScriptedChannel>(clock_));
    pending_.added.push_back({WorkerId(worker), incarnation, channels_.back().get(), false});
    return *channels_.back();
  }
  void Place(std::shared_ptr<const placement::Placement> placement) {
    pending_.placement = std::move(placement);
  }
  // Happens while the dispatcher waits.
  void At(MonotonicTime when, std::function<void()> what) { events_[when] = std::move(what); }

  void Enter() override {}
  void Leave() override {}
  bool has_update() const override {
    return pending_.placement != nullptr || !pending_.added.empty() || !pending_.removed.empty();
  }
  void Take(Update& update) override {
    update = pending_;
    pending_.Clear();
  }
  void Release(transport::ExpertChannel* channel) override {
    const auto* scripted = static_cast<ScriptedChannel*>(channel);
    EXPECT_EQ(scripted->num_held_slots(), 0) << "a link was released with a call on it";
    ++num_released;
  }
  void Report(WorkerId worker, uint64_t /*incarnation*/, PeerSighting sighting) override {
    reports.emplace_back(worker.value(), sighting);
  }
  bool WaitUntil(MonotonicTime until) override {
    MonotonicTime next = until;
    for (const auto& channel : channels_) {
      next = std::min(next, channel->NextEvent());
    }
    if (!events_.empty()) {
      next = std::min(next, events_.begin()->first);
    }
    if (next > clock_.Now()) {
      clock_.Advance(next - clock_.Now());
    }
    if (!events_.empty() && events_.begin()->first <= clock_.Now()) {
      const auto what = events_.begin()->second;
      events_.erase(events_.begin());
      what();
    }
    return next < until;
  }

  std::vector<std::pair<int32_t, PeerSighting>> reports;
  int num_released = 0;

 private:
  testing::FakeClock& clock_;
  std::vector<std::unique_ptr<ScriptedChannel>> channels_;
  Update pending_;
  std::map<MonotonicTime, std::function<void()>> events_;
};

// Computes as the workers do; the dispatcher polls it as an inline link.
class ScriptedRescue final : public ExpertRescue {
 public:
  explicit ScriptedRescue(testing::FakeClock& clock) : channel_(clock) {
    channel_.latency = microseconds(0);
  }
  transport::ExpertChannel& channel() override { return channel_; }
  bool Holds(placement::ExpertUnit unit) const override { return held.contains(unit); }
  absl::Status Load(placement::ExpertUnit unit) override {
    ++num_loads;
    if (!failure.ok()) {
      return failure;
    }
    held.insert(unit);
    return absl::OkStatus();
  }
  void Retire(std::span<const placement::ExpertUnit> units) override {
    for (const placement::ExpertUnit unit : units) {
      EXPECT_EQ(held.erase(unit), 1u);
    }
  }

  std::set<placement::ExpertUnit> held;
  absl::Status failure;
  int num_loads = 0;
  int num_calls() const { return channel_.num_calls; }

 private:
  ScriptedChannel channel_;
};

// Rows whose experts go round, and their sums.
class LayerRows {
 public:
  LayerRows(int num_rows, bool is_prefill)
      : num_rows_(num_rows), n_(static_cast<size_t>(num_rows * kWidth)), out_(n_.size(), -1.0f) {
    for (int32_t r = 0; r < num_rows; ++r) {
      std::fill_n(n_.begin() + r * kWidth, kWidth, static_cast<float>(r + 1));
      experts_.push_back(r % kExperts);
      experts_.push_back((r + 1) % kExperts);
      weights_.push_back(0.5f);
      weights_.push_back(0.25f);
      step_.push_back({r, nullptr, r % 3 == 0, is_prefill});
    }
    choice_ = {{experts_.data(), num_rows_, 2}, {weights_.data(), num_rows_, 2}};
  }

  void Start(Dispatcher& dispatcher, int32_t micro_batch) {
    dispatcher.Start(micro_batch, kLayer, {n_.data(), num_rows_, kWidth}, step_, choice_,
                     {out_.data(), num_rows_, kWidth});
  }
  // Checks the sums when it succeeds.
  absl::Status Finish(Dispatcher& dispatcher, int32_t micro_batch) {
    const absl::Status status = dispatcher.Finish(micro_batch);
    for (int32_t r = 0; status.ok() && r < num_rows_; ++r) {
      const float expected =
          static_cast<float>(r + 1) * (0.5f * static_cast<float>(r % kExperts + 1) +
                                       0.25f * static_cast<float>((r + 1) % kExperts + 1));
      for (int32_t c = 0; c < kWidth; ++c) {
        EXPECT_EQ(out_[static_cast<size_t>(r * kWidth + c)], expected) << "row " << r;
      }
    }
    return status;
  }

 private:
  const int64_t num_rows_;
  std::vector<float> n_, out_, weights_;
  std::vector<int32_t> experts_;
  std::vector<model::StepRow> step_;
  model::GateChoice choice_;
};

class DispatcherFailoverTest : public ::testing::Test {
 protected:
  DispatcherFailoverTest() : links_(clock_) {
    options_.compute = kernels::Context(kernels::Isa::kScalar, pool_);
    options_.wire = transport::WireDtype::kF32;
    options_.io_dim = kWidth;
    options_.max_rows = 64;
    options_.clock = &clock_;
    options_.expert_us = 200;
    options_.row_us = 50;
    // The tests say themselves when a link counts as warm.
    options_.link.warm_answers = 0;
  }

  // holders[e]: workers of expert e.
  std::shared_ptr<const placement::Placement> PlacementOf(
      const std::vector<std::vector<int32_t>>& holders, uint64_t epoch = 1) {
    std::vector<placement::ExpertUnit> units;
    std::vector<placement::Replica> replicas;
    for (size_t e = 0; e < holders.size(); ++e) {
      const placement::ExpertUnit unit{LayerId(kLayer), ExpertId(static_cast<int32_t>(e))};
      units.push_back(unit);
      for (const int32_t worker : holders[e]) {
        replicas.push_back({unit, WorkerId(worker)});
      }
    }
    auto placement = placement::Placement::Create(Epoch(epoch), units, replicas);
    EXPECT_TRUE(placement.ok()) << placement.status();
    return std::make_shared<const placement::Placement>(*std::move(placement));
  }

  void Start() { dispatcher_ = std::make_unique<Dispatcher>(options_, links_); }

  // One layer over `num_rows` rows whose experts go round; checks the sums when it succeeds.
  absl::Status Run(int num_rows, bool is_prefill = false) {
    LayerRows layer(num_rows, is_prefill);
    const MonotonicTime start = clock_.Now();
    layer.Start(*dispatcher_, 0);
    if (busy_ > microseconds(0)) {
      clock_.Advance(busy_ / 2);
      if (polls_) {
        dispatcher_->Poll();
      }
      clock_.Advance(busy_ - busy_ / 2);
    }
    const absl::Status status = layer.Finish(*dispatcher_, 0);
    took_ = std::chrono::duration_cast<microseconds>(clock_.Now() - start);
    return status;
  }

  testing::FakeClock clock_;
  ThreadPool pool_{1};
  ScriptedLinks links_;
  DispatcherOptions options_;
  std::unique_ptr<Dispatcher> dispatcher_;
  microseconds took_{0};
  microseconds busy_{0};  // what the caller does between Start and Finish
  bool polls_ = true;     // and whether it looks up in the middle
};

inline const std::vector<std::vector<int32_t>> kBoth = {{0, 1}, {0, 1}, {0, 1}, {0, 1}};

}  // namespace conclave::frontend
