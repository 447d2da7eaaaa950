// Goal: a value is counted below the bound that it does not exceed, the last bucket is beyond all,
// and nothing is lost between threads. Method: values at, below and above bounds.
#include "conclave/live/counting_histogram.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <thread>

namespace conclave::live {
namespace {

using ::testing::ElementsAre;

constexpr double kBounds[] = {0.5, 1, 2};

TEST(CountingHistogramTest, BoundsAreInclusive) {
  CountingHistogram histogram(kBounds);
  for (const double value : {-1.0, 0.0, 0.5, 0.50001, 1.0, 2.0, 2.1, 1e9}) {
    histogram.Observe(value);
  }
  EXPECT_THAT(histogram.Counts(), ElementsAre(3, 2, 1, 2));
}

TEST(CountingHistogramTest, WhatIsNoNumberIsCountedSomewhere) {
  CountingHistogram histogram(kBounds);
  histogram.Observe(std::numeric_limits<double>::quiet_NaN());
  histogram.Observe(std::numeric_limits<double>::infinity());
  const Buckets counts = histogram.Counts();
  EXPECT_EQ(counts[0] + counts[1] + counts[2] + counts[3], 2u);
}

TEST(CountingHistogramTest, WithoutBoundsThereIsOneBucket) {
  CountingHistogram histogram({});
  EXPECT_THAT(histogram.Counts(), ElementsAre(0));
  histogram.Observe(3);
  EXPECT_THAT(histogram.Counts(), ElementsAre(1));
}

TEST(CountingHistogramTest, ThreadsLoseNothing) {
  CountingHistogram histogram(kBounds);
  const auto observe = [&histogram] {
    for (int i = 0; i < 10'000; ++i) {
      histogram.Observe(i % 4);
    }
  };
  std::thread other(observe);
  observe();
  other.join();
  EXPECT_THAT(histogram.Counts(), ElementsAre(5000, 5000, 5000, 5000));
}

}  // namespace
}  // namespace conclave::live
