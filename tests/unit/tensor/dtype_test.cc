// Goal: conversions between f32, bf16 and f16 are the IEEE ones, with the flushing that the
// kernels' bit contract asks for (and only that). Method: all 65,536 half and bfloat16 patterns;
// roundings against references that search the two neighbours in exact arithmetic (double holds
// every product here).
#include "conclave/tensor/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace conclave {
namespace {

uint32_t BitsOf(float value) { return std::bit_cast<uint32_t>(value); }
float FromBits(uint32_t bits) { return std::bit_cast<float>(bits); }

// The value of a half by the definition: sign, exponent, fraction.
double HalfByDefinition(uint16_t half) {
  const int sign = (half & 0x8000) != 0 ? -1 : 1;
  const int exponent = half >> 10 & 31;
  const int fraction = half & 1023;
  if (exponent == 31) {
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  }
  return exponent == 0 ? sign * std::ldexp(fraction, -24)
                       : sign * std::ldexp(1024 + fraction, exponent - 25);
}

// The half nearest to `value`, ties to the even pattern, by looking at neighbours. Patterns of one
// sign are in order.
uint16_t NearestHalf(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  // 65520 is half way between the largest half and what would follow it; from there on it is
  // infinity.
  if (magnitude >= 65520.0) {
    return sign | 0x7c00;
  }
  uint16_t low = 0;
  uint16_t high = 0x7bff;
  while (low < high) {  // Largest pattern that is not above.
    const uint16_t middle = static_cast<uint16_t>((low + high + 1) / 2);
    if (HalfByDefinition(middle) <= magnitude) {
      low = middle;
    } else {
      high = static_cast<uint16_t>(middle - 1);
    }
  }
  if (low == 0x7bff) {
    return sign | low;
  }
  const double below = magnitude - HalfByDefinition(low);
  const double above = HalfByDefinition(static_cast<uint16_t>(low + 1)) - magnitude;
  const bool rounds_up = above < below || (above == below && low % 2 == 1);
  return static_cast<uint16_t>(sign | (low + (rounds_up ? 1 : 0)));
}

// The bfloat16 nearest to a normal `value`, ties to even. Overflow goes to infinity as if exponents
// went on.
uint16_t NearestBf16(float value) {
  const uint32_t bits = BitsOf(value);
  const uint16_t low = static_cast<uint16_t>(bits >> 16);  // Toward zero.
  const double magnitude = std::fabs(static_cast<double>(value));
  const double at_low = std::fabs(static_cast<double>(FromBits(uint32_t{low} << 16)));
  // One step of bf16 at this exponent.
  const double step = std::ldexp(1.0, static_cast<int>(bits >> 23 & 255) - 127 - 7);
  const double below = magnitude - at_low;
  const bool rounds_up = below > step / 2 || (below == step / 2 && low % 2 == 1);
  return static_cast<uint16_t>(low + (rounds_up ? 1 : 0));
}

TEST(HalfTest, EveryPatternHasTheValueOfItsDefinition) {
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t half = static_cast<uint16_t>(pattern);
    const double expected = HalfByDefinition(half);
    const float value = HalfToFloat(half);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << pattern;
    } else {
      ASSERT_EQ(static_cast<double>(value), expected) << pattern;
      ASSERT_EQ(std::signbit(value), (half & 0x8000) != 0) << pattern;
    }
  }
}

TEST(HalfTest, EveryPatternSurvivesTheWayThereAndBack) {
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t half = static_cast<uint16_t>(pattern);
    const uint16_t back = FloatToHalf(HalfToFloat(half));
    if (std::isnan(HalfToFloat(half))) {
      ASSERT_TRUE(std::isnan(HalfToFloat(back))) << pattern;
      ASSERT_EQ(back & 0x8000, half & 0x8000) << pattern;
    } else {
      ASSERT_EQ(back, half) << pattern;
    }
  }
}

// Between any two neighbours: the middle, and the f32 numbers on both sides of it.
TEST(HalfTest, RoundsToNearestEvenAroundEveryMiddle) {
  for (uint32_t pattern = 0; pattern < 0x7bff; ++pattern) {
    const double middle = (HalfByDefinition(static_cast<uint16_t>(pattern)) +
                           HalfByDefinition(static_cast<uint16_t>(pattern + 1))) /
                          2;
    const float center = static_cast<float>(middle);
    ASSERT_EQ(static_cast<double>(center), middle);
    for (const float value : {std::nextafter(center, 0.0f), center,
                              std::nextafter(center, std::numeric_limits<float>::infinity())}) {
      ASSERT_EQ(FloatToHalf(value), NearestHalf(value)) << pattern << " " << value;
      ASSERT_EQ(FloatToHalf(-value), NearestHalf(-value)) << pattern << " " << -value;
    }
  }
}

TEST(HalfTest, OverflowsToInfinityExactlyFromTheMiddle) {
  EXPECT_EQ(FloatToHalf(65504.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(-std::numeric_limits<float>::infinity()), 0xfc00);
}

TEST(Bf16Test, EveryPatternIsItsUpperHalf) {
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    ASSERT_EQ(BitsOf(ToFloat(Bf16{static_cast<uint16_t>(pattern)})), pattern << 16);
  }
}

TEST(Bf16Test, EveryPatternSurvivesTheWayThereAndBackButDenormalsAndNans) {
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) {
    const uint16_t bits = static_cast<uint16_t>(pattern);
    const uint16_t back = ToBf16(ToFloat(Bf16{bits})).bits;
    const int exponent = bits >> 7 & 255;
    const int fraction = bits & 127;
    if (exponent == 0) {
      ASSERT_EQ(back, bits & 0x8000) << pattern;  // Flushed, with its sign.
    } else if (exponent == 255 && fraction != 0) {
      ASSERT_EQ(back, bits | 0x40) << pattern;  // Quiet.
    } else {
      ASSERT_EQ(back, bits) << pattern;
    }
  }
}

TEST(Bf16Test, RoundsToNearestEvenAroundEveryMiddle) {
  for (uint32_t pattern = 0x0080; pattern < 0x7f80; ++pattern) {
    for (const uint32_t low : {0x0000U, 0x0001U, 0x7fffU, 0x8000U, 0x8001U, 0xffffU}) {
      const uint32_t bits = pattern << 16 | low;
      ASSERT_EQ(ToBf16(FromBits(bits)).bits, NearestBf16(FromBits(bits))) << bits;
      ASSERT_EQ(ToBf16(FromBits(bits | 0x80000000U)).bits, NearestBf16(FromBits(bits)) | 0x8000)
          << bits;
    }
  }
}

TEST(Bf16Test, AgreesWithTheReferenceOnRandomNumbers) {
  constexpr uint32_t kSeed = 20260131;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int i = 0; i < 200'000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const float value = FromBits(bits);
    if (!std::isnormal(value)) {
      continue;
    }
    ASSERT_EQ(ToBf16(value).bits, NearestBf16(value)) << bits;
  }
}

TEST(Bf16Test, DenormalFloatsBecomeZeroWithTheirSign) {
  EXPECT_EQ(ToBf16(FromBits(0x007fffff)).bits, 0x0000);
  EXPECT_EQ(ToBf16(FromBits(0x80000001)).bits, 0x8000);
  EXPECT_EQ(ToBf16(FromBits(0x00800000)).bits, 0x0080);
}

TEST(Bf16Test, NanStaysNanWhenItsFractionIsAllInTheLowerHalf) {
  const uint16_t bits = ToBf16(FromBits(0x7f800001)).bits;
  EXPECT_TRUE(std::isnan(ToFloat(Bf16{bits})));
  EXPECT_EQ(ToBf16(std::numeric_limits<float>::infinity()).bits, 0x7f80);
}

TEST(DTypeTest, NamesAndSizes) {
  EXPECT_EQ(NameOf(DType::kBf16), "bf16");
  EXPECT_EQ(SizeOf(DType::kBf16), 2U);
  EXPECT_EQ(NameOf(DType::kF32), "f32");
  EXPECT_EQ(SizeOf(DType::kF32), 4U);
  EXPECT_EQ(SizeOf(DType::kI64), 8U);
  EXPECT_EQ(SizeOf(DType::kBool), 1U);
}

}  // namespace
}  // namespace conclave
