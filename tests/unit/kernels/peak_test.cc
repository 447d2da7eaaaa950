// Goal: the machine's bounds are measured, keep their order, and are none where a path has no such
// instructions.
// Method: real measurements, as short as they can be; only what holds on a disturbed machine is
// asked of them.
#include "conclave/kernels/peak.h"

#include <gtest/gtest.h>

namespace conclave::kernels {
namespace {

using std::chrono::microseconds;

TEST(PeakTest, TheScalarPathHasNoPeaks) {
  ThreadPool pool(1);
  const ArithmeticPeaks peaks = MeasurePeaks(Isa::kScalar, pool, microseconds(1));
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kQ8}) {
    EXPECT_FALSE(peaks.Of(dtype).has_value());
  }
}

TEST(PeakTest, EveryVectorPathHasAPeakOfEveryMode) {
  ThreadPool pool(2);
  for (const Isa isa : SupportedIsas()) {
    if (isa == Isa::kScalar) {
      continue;
    }
    SCOPED_TRACE(NameOf(isa));
    const ArithmeticPeaks peaks = MeasurePeaks(isa, pool, microseconds(2000));
    EXPECT_EQ(peaks.bf16_dot.has_value(), isa == Isa::kAvx512Bf16);
    for (const DType dtype : {DType::kF32, DType::kBf16, DType::kQ8}) {
      ASSERT_TRUE(peaks.Of(dtype).has_value());
      // No vector unit is slower, even when others take nearly all of it, and none is this fast.
      EXPECT_GT(*peaks.Of(dtype), 1e8);
      EXPECT_LT(*peaks.Of(dtype), 1e15);
    }
  }
}

TEST(PeakTest, TheBoundOfBf16IsTheBetterOfBothWays) {
  const ArithmeticPeaks fma_wins{.f32_fma = 4.0, .bf16_dot = 2.0, .int8_dot = 9.0};
  const ArithmeticPeaks dot_wins{.f32_fma = 1.0, .bf16_dot = 2.0, .int8_dot = 9.0};
  const ArithmeticPeaks no_dot{.f32_fma = 1.0, .bf16_dot = std::nullopt, .int8_dot = 9.0};
  EXPECT_EQ(fma_wins.Of(DType::kBf16), 4.0);
  EXPECT_EQ(dot_wins.Of(DType::kBf16), 2.0);
  EXPECT_EQ(no_dot.Of(DType::kBf16), 1.0);
  EXPECT_EQ(dot_wins.Of(DType::kF32), 1.0);
  EXPECT_EQ(dot_wins.Of(DType::kQ8), 9.0);
}

TEST(ReadProbeTest, EveryWayOfReadingGivesARate) {
  ThreadPool pool(2);
  const ReadProbe probe((int64_t{16} << 20) + 1, pool);
  EXPECT_EQ(probe.size_bytes(), int64_t{16} << 20);
  for (const ReadVariant& variant : ReadVariants()) {
    const double rate = probe.Measure(variant, pool);
    EXPECT_GT(rate, 1e6) << variant.num_streams << variant.has_prefetch;
    EXPECT_LT(rate, 1e14) << variant.num_streams << variant.has_prefetch;
  }
  EXPECT_GT(probe.MeasureBest(pool), 1e6);
}

TEST(ReadProbeTest, NothingToReadIsLegal) {
  ThreadPool pool(1);
  EXPECT_EQ(ReadProbe(1000, pool).size_bytes(), 0);
  EXPECT_EQ(ReadProbe(0, pool).MeasureBest(pool), 0);
  EXPECT_EQ(ReadProbe(-1, pool).size_bytes(), 0);
}

TEST(ReadProbeTest, ItsSizeExceedsTheCachesAndSparesTheMemory) {
  EXPECT_GE(ReadProbe::BytesFor(int64_t{1} << 50), int64_t{1} << 30);
  EXPECT_EQ(ReadProbe::BytesFor(int64_t{400} << 20), int64_t{100} << 20);
  EXPECT_EQ(ReadProbe::BytesFor(0), 0);
}

}  // namespace
}  // namespace conclave::kernels
