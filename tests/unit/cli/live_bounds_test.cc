// Goal: the bounds that the picture names are those that frontends count by. Method: a value at
// every bound, found in its bucket.
#include <gtest/gtest.h>

#include "conclave/frontend/dispatch_counts.h"
#include "live_counters.h"
#include "live_routes.h"

namespace conclave::cli {
namespace {

// Each value was counted at its own bound, and nowhere else.
void ExpectOneEach(const live::Buckets& counts, size_t num_bounds) {
  ASSERT_EQ(counts.size(), num_bounds + 1);
  for (size_t i = 0; i < num_bounds; ++i) {
    EXPECT_EQ(counts[i], 1u) << i;
  }
  EXPECT_EQ(counts.back(), 0u);
}

TEST(LiveBoundsTest, EqualWhatFrontendsCount) {
  const live::Bounds bounds = LiveBounds();
  LiveCounters counters;
  for (const double bound : bounds.itl) {
    counters.OnTokenGap(std::chrono::nanoseconds(static_cast<int64_t>(bound * 1e9)));
  }
  for (const double bound : bounds.ttft) {
    frontend::Usage usage;
    usage.completion_tokens = 1;
    frontend::Timings timings;
    timings.first_token_ms = bound * 999.999;
    counters.OnRequestEnd(frontend::FinishReason::kStop, usage, timings);
  }
  live::FrontendFigures figures;
  counters.Put(figures);
  ExpectOneEach(figures.serving.itl, bounds.itl.size());
  ExpectOneEach(figures.serving.ttft, bounds.ttft.size());

  const frontend::BucketCounts calls;
  EXPECT_EQ(bounds.call_seconds.size() + 1, calls.counts.size());
  EXPECT_EQ(bounds.recovery, bounds.call_seconds);
  for (size_t i = 0; i < bounds.call_seconds.size(); ++i) {
    EXPECT_DOUBLE_EQ(bounds.call_seconds[i],
                     static_cast<double>(frontend::kDispatchBounds[i].count()) / 1e6);
  }
}

TEST(LiveCountersTest, RequestsEndInTheOrderOfTheContract) {
  LiveCounters counters;
  using frontend::FinishReason;
  int times = 1;
  for (const FinishReason reason : {FinishReason::kStop, FinishReason::kLength,
                                    FinishReason::kCancelled, FinishReason::kError}) {
    for (int i = 0; i < times; ++i) {
      counters.OnRequestEnd(reason, {}, {});
    }
    ++times;
  }
  live::FrontendFigures figures;
  counters.Put(figures);
  EXPECT_EQ(figures.serving.finished, (std::array<uint64_t, 4>{1, 2, 3, 4}));
  for (const uint64_t count : figures.serving.ttft) {
    EXPECT_EQ(count, 0u) << "a request without a token has no time to it";
  }
}

}  // namespace
}  // namespace conclave::cli
