// Goal: the queue gives decode first, keeps its promises to lower classes and to every frontend,
// merges calls of a layer, and computes nothing that nobody waits for.
// Method: calls that exist only as headers, a clock that stands still, and a look at the order in
// which batches come out.
#include "conclave/expert_worker/call_queue.h"

#include <memory>
#include <random>
#include <string>
#include <thread>

#include "conclave/base/status.h"
#include "conclave/testing/fake_clock.h"
#include "fake_call.h"
#include "gtest/gtest.h"

namespace conclave::expert_worker {
namespace {

using std::chrono::microseconds;
using testing::FakeClock;
using transport::PeerId;
using transport::Phase;
using transport::ServedCall;

class CallQueueTest : public ::testing::Test {
 protected:
  struct Shape {
    uint64_t peer = 1;
    int32_t layer = 0;
    Phase phase = Phase::kDecode;
    uint16_t rows = 1;
    uint8_t attempt = 0;
    uint32_t deadline_us = 0;
  };

  FakeCall* Make(const Shape& shape) {
    calls_.push_back(std::make_unique<FakeCall>());
    FakeCall& call = *calls_.back();
    call.peer = PeerId(shape.peer);
    call.call.layer = LayerId(shape.layer);
    call.call.phase = shape.phase;
    call.call.num_rows = shape.rows;
    call.call.attempt = shape.attempt;
    call.call.deadline_us = shape.deadline_us;
    call.received_at = clock_.Now();
    call.SetRowBytes(row_bytes_);
    return &call;
  }
  FakeCall* Submit(CallQueue& queue, const Shape& shape) {
    FakeCall* call = Make(shape);
    EXPECT_TRUE(queue.Submit(call).ok());
    return call;
  }
  // Everything that is in the queue, batch by batch.
  std::vector<std::vector<ServedCall*>> PopAll(CallQueue& queue) {
    std::vector<std::vector<ServedCall*>> batches;
    std::vector<ServedCall*> batch;
    while (queue.TryPop(0, &batch)) {
      batches.push_back(batch);
    }
    return batches;
  }

  FakeClock clock_;
  size_t row_bytes_ = 64;
  std::vector<std::unique_ptr<FakeCall>> calls_;
};

TEST_F(CallQueueTest, DecodeBeforeRetriesBeforePrefill) {
  CallQueue queue({}, clock_);
  ServedCall* prefill = Submit(queue, {.layer = 1, .phase = Phase::kPrefill, .rows = 8});
  ServedCall* again = Submit(queue, {.layer = 2, .attempt = 1});
  ServedCall* decode = Submit(queue, {.layer = 3});
  std::vector<ServedCall*> batch;
  ASSERT_TRUE(queue.TryPop(0, &batch));
  EXPECT_EQ(batch, std::vector<ServedCall*>{decode});
  // Both waited for the decode call and are owed a share, but nothing above the retry waits now.
  const auto rest = PopAll(queue);
  ASSERT_EQ(rest.size(), 2u);
  EXPECT_NE(rest[0][0], rest[1][0]);
  EXPECT_TRUE(rest[0][0] == again || rest[0][0] == prefill);
  EXPECT_TRUE(queue.figures().is_idle);
}

TEST_F(CallQueueTest, CallsOfALayerAreOneBatchWhateverTheirClass) {
  CallQueue queue({.batch_rows_max = 64}, clock_);
  ServedCall* first = Submit(queue, {.peer = 1, .layer = 5, .rows = 4});
  Submit(queue, {.peer = 1, .layer = 6});
  ServedCall* second = Submit(queue, {.peer = 2, .layer = 5, .rows = 4});
  ServedCall* third = Submit(queue, {.peer = 3, .layer = 5, .phase = Phase::kPrefill, .rows = 56});
  ServedCall* too_many = Submit(queue, {.peer = 4, .layer = 5, .phase = Phase::kPrefill});
  const auto batches = PopAll(queue);
  ASSERT_EQ(batches.size(), 3u);
  EXPECT_EQ(batches[0], (std::vector<ServedCall*>{first, second, third}));
  EXPECT_TRUE(batches[1][0] == too_many || batches[2][0] == too_many);
  EXPECT_EQ(queue.figures().counts.batches, 3u);
  EXPECT_EQ(queue.figures().counts.batch_calls, 5u);
}

TEST_F(CallQueueTest, ADecodeBatchIsCutToAQuarterOfItsDeadline) {
  CallQueue queue({.batch_rows_max = 256}, clock_);
  Submit(queue, {.peer = 1, .layer = 5, .rows = 4, .deadline_us = 8000});
  Submit(queue, {.peer = 2, .layer = 5, .rows = 12, .deadline_us = 8000});
  Submit(queue, {.peer = 3, .layer = 5, .phase = Phase::kPrefill, .rows = 100});
  std::vector<ServedCall*> batch;
  // 2 ms at 100 µs per row: 20 rows.
  ASSERT_TRUE(queue.TryPop(100, &batch));
  EXPECT_EQ(batch.size(), 2u);
  ASSERT_TRUE(queue.TryPop(100, &batch));
  EXPECT_EQ(batch.size(), 1u);
}

TEST_F(CallQueueTest, ACallLargerThanABatchGoesAlone) {
  CallQueue queue({.batch_rows_max = 64}, clock_);
  Submit(queue, {.layer = 1, .phase = Phase::kPrefill, .rows = 200});
  Submit(queue, {.layer = 1, .phase = Phase::kPrefill, .rows = 1});
  const auto batches = PopAll(queue);
  ASSERT_EQ(batches.size(), 2u);
  EXPECT_EQ(batches[0].size(), 1u);
}

// Decode calls without end, one row each on layers of their own, and prefill calls that wait.
TEST_F(CallQueueTest, PrefillKeepsAFifthOfTheCostUnderEndlessDecode) {
  const CallQueueOptions options;
  CallQueue queue(options, clock_);
  for (int i = 0; i < 4; ++i) {
    Submit(queue, {.peer = 1, .layer = 100 + i, .rows = 8});
  }
  double decode_cost = 0;
  double prefill_cost = 0;
  for (int i = 0; i < 5000; ++i) {
    Submit(queue, {.peer = 1, .layer = 100 + i % 7, .rows = 8});
    while (queue.figures().waiting_calls[2] < 2) {
      Submit(queue, {.peer = 2, .layer = i % 50, .phase = Phase::kPrefill, .rows = 256});
    }
    std::vector<ServedCall*> batch;
    ASSERT_TRUE(queue.TryPop(0, &batch));
    double& cost = batch[0]->call.phase == Phase::kDecode ? decode_cost : prefill_cost;
    for (const ServedCall* call : batch) {
      cost += call->call.num_rows;
    }
    cost += options.batch_cost_rows;
    // The bound on one frontend's decode calls: what was not served yet is served now.
    while (queue.figures().waiting_calls[0] > 8 && queue.TryPop(0, &batch)) {
      double& more = batch[0]->call.phase == Phase::kDecode ? decode_cost : prefill_cost;
      for (const ServedCall* call : batch) {
        more += call->call.num_rows;
      }
      more += options.batch_cost_rows;
    }
  }
  const double share = prefill_cost / (prefill_cost + decode_cost);
  EXPECT_GE(share, 0.195);
  EXPECT_LE(share, 0.25);
  PopAll(queue);
}

TEST_F(CallQueueTest, NoClassStarves) {
  CallQueue queue({}, clock_);
  std::vector<int> waited(kNumCallClasses, 0);
  std::vector<int> longest(kNumCallClasses, 0);
  const auto refill = [&] {
    const auto figures = queue.figures();
    for (size_t of = 0; of < kNumCallClasses; ++of) {
      for (size_t n = figures.waiting_calls[of]; n < 2; ++n) {
        Submit(queue, {.peer = of + 1,
                       .layer = static_cast<int32_t>(10 * of + n),
                       .phase = of == 2 ? Phase::kPrefill : Phase::kDecode,
                       .rows = static_cast<uint16_t>(of == 2 ? 64 : 4),
                       .attempt = static_cast<uint8_t>(of == 1 ? 1 : 0)});
      }
    }
  };
  for (int i = 0; i < 2000; ++i) {
    refill();
    std::vector<ServedCall*> batch;
    ASSERT_TRUE(queue.TryPop(0, &batch));
    const auto served = static_cast<size_t>(ClassOf(batch[0]->call));
    for (size_t of = 0; of < kNumCallClasses; ++of) {
      waited[of] = of == served ? 0 : waited[of] + 1;
      longest[of] = std::max(longest[of], waited[of]);
    }
  }
  // A prefill batch costs 80 rows, a decode one 20: at a fifth one in about 16 is a prefill.
  EXPECT_LE(longest[0], 4);
  EXPECT_LE(longest[1], 20);
  EXPECT_LE(longest[2], 40);
  PopAll(queue);
}

// One frontend sends calls of 64 rows, another calls of 2 rows; both always have some waiting.
TEST_F(CallQueueTest, FrontendsShareRowsNotCalls) {
  CallQueue queue({}, clock_);
  std::map<uint64_t, uint64_t> rows;
  std::map<uint64_t, int> waiting;
  int32_t layer = 0;
  for (int i = 0; i < 4000; ++i) {
    for (; waiting[1] < 4; ++waiting[1]) {
      Submit(queue, {.peer = 1, .layer = layer++, .rows = 64});
    }
    for (; waiting[2] < 4; ++waiting[2]) {
      Submit(queue, {.peer = 2, .layer = layer++, .rows = 2});
    }
    std::vector<ServedCall*> batch;
    ASSERT_TRUE(queue.TryPop(0, &batch));
    ASSERT_EQ(batch.size(), 1u);
    rows[batch[0]->peer.value()] += batch[0]->call.num_rows;
    --waiting[batch[0]->peer.value()];
  }
  const double share = static_cast<double>(rows[2]) / static_cast<double>(rows[1] + rows[2]);
  EXPECT_NEAR(share, 0.5, 0.05);
  PopAll(queue);
}

TEST_F(CallQueueTest, LateCallsAreRefusedWithoutCompute) {
  CallQueue queue({}, clock_);
  queue.SetEpoch(Epoch(7));
  FakeCall* late = Submit(queue, {.layer = 1, .deadline_us = 1000});
  FakeCall* other = Submit(queue, {.layer = 2, .deadline_us = 5000});
  clock_.Advance(microseconds(1001));
  const auto batches = PopAll(queue);
  ASSERT_EQ(batches.size(), 1u);
  EXPECT_EQ(batches[0][0], other);
  ASSERT_TRUE(late->is_finished());
  EXPECT_EQ(ReasonOf(late->status()), "deadline");
  EXPECT_EQ(late->epoch(), Epoch(7));
  EXPECT_EQ(queue.figures().counts.late, 1u);
}

TEST_F(CallQueueTest, CancelledCallsAreDropped) {
  CallQueue queue({}, clock_);
  FakeCall* at_once = Submit(queue, {.peer = 1, .layer = 1});
  FakeCall* at_its_turn = Submit(queue, {.peer = 1, .layer = 2});
  FakeCall* kept = Submit(queue, {.peer = 1, .layer = 3});
  at_once->Cancel();
  queue.OnCancelled(PeerId(1));
  EXPECT_TRUE(at_once->is_finished());
  EXPECT_EQ(at_once->status().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(kept->is_finished());
  at_its_turn->Cancel();
  const auto batches = PopAll(queue);
  ASSERT_EQ(batches.size(), 1u);
  EXPECT_EQ(batches[0][0], kept);
  EXPECT_EQ(at_its_turn->status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(queue.figures().counts.cancelled, 2u);
}

TEST_F(CallQueueTest, APeerThatIsGoneLeavesNothing) {
  CallQueue queue({}, clock_);
  std::vector<FakeCall*> gone;
  for (int32_t i = 0; i < 5; ++i) {
    gone.push_back(Submit(queue, {.peer = 1, .layer = i, .attempt = static_cast<uint8_t>(i % 2)}));
  }
  FakeCall* kept = Submit(queue, {.peer = 2, .layer = 1});
  queue.OnPeerGone(PeerId(1));
  for (const FakeCall* call : gone) {
    EXPECT_TRUE(call->is_finished());
  }
  const auto batches = PopAll(queue);
  ASSERT_EQ(batches.size(), 1u);
  EXPECT_EQ(batches[0], std::vector<ServedCall*>{kept});
}

TEST_F(CallQueueTest, APeerMayHaveSixtyFourCallsOrEightMebibytesWaiting) {
  CallQueue queue({}, clock_);
  for (int32_t i = 0; i < 64; ++i) {
    Submit(queue, {.peer = 1, .layer = i});
  }
  const absl::Status refused = queue.Submit(Make({.peer = 1, .layer = 99}));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ReasonOf(refused), "busy");
  EXPECT_TRUE(queue.Submit(Make({.peer = 2, .layer = 99})).ok());
  std::vector<ServedCall*> batch;
  ASSERT_TRUE(queue.TryPop(0, &batch));
  EXPECT_TRUE(queue.Submit(Make({.peer = 1, .layer = 99})).ok());
  PopAll(queue);

  row_bytes_ = 1 << 14;  // 256 rows in and out: 8 MiB
  EXPECT_TRUE(queue.Submit(Make({.peer = 1, .layer = 1, .rows = 255})).ok());
  EXPECT_FALSE(queue.Submit(Make({.peer = 1, .layer = 1, .rows = 2})).ok());
  EXPECT_TRUE(queue.Submit(Make({.peer = 1, .layer = 1, .rows = 1})).ok());
  // One that alone is too large is let in alone.
  EXPECT_TRUE(queue.Submit(Make({.peer = 3, .layer = 1, .rows = 1000})).ok());
  PopAll(queue);
}

TEST_F(CallQueueTest, TheOldestCallIsTheOneThatWaitsOrIsUnderWay) {
  CallQueue queue({}, clock_);
  EXPECT_EQ(queue.figures().oldest_call_age, microseconds(0));
  Submit(queue, {.layer = 1, .rows = 3});
  clock_.Advance(microseconds(70));
  Submit(queue, {.layer = 2, .rows = 4});
  EXPECT_EQ(queue.figures().waiting_rows, 7u);
  clock_.Advance(microseconds(30));
  EXPECT_EQ(queue.figures().oldest_call_age, microseconds(100));
  std::vector<ServedCall*> batch;
  ASSERT_TRUE(queue.TryPop(0, &batch));
  EXPECT_EQ(queue.figures().oldest_call_age, microseconds(100));
  ASSERT_TRUE(queue.TryPop(0, &batch));
  EXPECT_EQ(queue.figures().oldest_call_age, microseconds(30));
  EXPECT_FALSE(queue.figures().is_idle);
  EXPECT_FALSE(queue.TryPop(0, &batch));
  EXPECT_TRUE(queue.figures().is_idle);
}

TEST_F(CallQueueTest, AClosedQueueGivesOutWhatWaitsAndEnds) {
  CallQueue queue({}, clock_);
  Submit(queue, {.layer = 1});
  queue.Close();
  const absl::Status refused = queue.Submit(Make({.layer = 2}));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(refused), "draining");
  std::vector<ServedCall*> batch;
  EXPECT_TRUE(queue.Pop(0, &batch));
  EXPECT_EQ(batch.size(), 1u);
  EXPECT_FALSE(queue.Pop(0, &batch));
}

TEST_F(CallQueueTest, AThreadThatWaitsIsWoken) {
  CallQueue queue({}, clock_);
  std::vector<size_t> sizes;
  std::thread computes([&] {
    std::vector<ServedCall*> batch;
    while (queue.Pop(0, &batch)) {
      sizes.push_back(batch.size());
      for (ServedCall* call : batch) {
        call->Finish(absl::OkStatus(), Epoch(1), {});
      }
    }
  });
  for (int32_t i = 0; i < 20; ++i) {
    Submit(queue, {.layer = i});
  }
  queue.Close();
  computes.join();
  EXPECT_EQ(sizes.size(), 20u);
}

// Random traffic: every call that was taken in is given out or finished, once.
TEST_F(CallQueueTest, NothingIsLostAndNothingComesTwice) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(::testing::Message() << "seed " << seed);
    std::mt19937_64 random(seed);
    calls_.clear();
    CallQueue queue({.peer_calls_max = 6, .batch_rows_max = 40, .batch_calls_max = 5}, clock_);
    std::map<ServedCall*, int> given;
    std::vector<FakeCall*> accepted;
    for (int i = 0; i < 400; ++i) {
      const uint64_t what = random() % 10;
      if (what < 6) {
        FakeCall* call = Make({.peer = 1 + random() % 4,
                               .layer = static_cast<int32_t>(random() % 3),
                               .phase = random() % 2 == 0 ? Phase::kDecode : Phase::kPrefill,
                               .rows = static_cast<uint16_t>(1 + random() % 60),
                               .attempt = static_cast<uint8_t>(random() % 4 == 0 ? 1 : 0),
                               .deadline_us = random() % 3 == 0 ? 50u : 0u});
        if (queue.Submit(call).ok()) {
          accepted.push_back(call);
        }
      } else if (what < 9) {
        std::vector<ServedCall*> batch;
        if (queue.TryPop(0, &batch)) {
          uint64_t rows = 0;
          for (ServedCall* call : batch) {
            ++given[call];
            rows += call->call.num_rows;
            EXPECT_EQ(call->call.layer, batch[0]->call.layer);
          }
          EXPECT_LE(rows, std::max<uint64_t>(40, batch[0]->call.num_rows));
          EXPECT_LE(batch.size(), 5u);
        }
      } else if (!accepted.empty()) {
        FakeCall* call = accepted[random() % accepted.size()];
        call->Cancel();
        random() % 2 == 0 ? queue.OnCancelled(call->peer) : queue.OnPeerGone(call->peer);
      }
      clock_.Advance(microseconds(random() % 20));
    }
    for (const auto& batch : PopAll(queue)) {
      for (ServedCall* call : batch) {
        ++given[call];
      }
    }
    for (FakeCall* call : accepted) {
      EXPECT_EQ(given[call] + (call->is_finished() ? 1 : 0), 1);
    }
    EXPECT_EQ(queue.figures().waiting_rows, 0u);
  }
}

}  // namespace
}  // namespace conclave::expert_worker
