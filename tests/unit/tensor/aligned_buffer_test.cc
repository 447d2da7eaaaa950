// Goal: memory is aligned, zero and owned once.
// Method: sizes around the border between heap and mapping (2 MiB).
#include "conclave/tensor/aligned_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <utility>

namespace conclave {
namespace {

class AlignedBufferTest : public testing::TestWithParam<size_t> {};

TEST_P(AlignedBufferTest, IsAlignedZeroAndWritableToItsEnd) {
  const size_t size = GetParam();
  AlignedBuffer buffer(size);
  ASSERT_EQ(buffer.size_bytes(), size);
  auto* bytes = buffer.As<uint8_t>();
  EXPECT_EQ(reinterpret_cast<uintptr_t>(bytes) % 64, 0U);
  EXPECT_TRUE(std::all_of(bytes, bytes + size, [](uint8_t b) { return b == 0; }));
  bytes[0] = 1;
  bytes[size - 1] = 2;
  EXPECT_EQ(std::as_const(buffer).As<uint8_t>()[size - 1], 2);
}

INSTANTIATE_TEST_SUITE_P(Sizes, AlignedBufferTest,
                         testing::Values(1, 63, 64, 65, (size_t{2} << 20) - 1, size_t{2} << 20,
                                         (size_t{2} << 20) + 1));

TEST(AlignedBufferMoveTest, MovesOwnership) {
  for (const size_t size : {size_t{100}, size_t{3} << 20}) {
    AlignedBuffer first(size);
    first.As<uint8_t>()[7] = 42;
    const uint8_t* address = first.As<uint8_t>();
    AlignedBuffer second(std::move(first));
    EXPECT_EQ(second.As<uint8_t>(), address);
    AlignedBuffer third(10);
    third = std::move(second);
    EXPECT_EQ(third.As<uint8_t>(), address);
    EXPECT_EQ(third.As<uint8_t>()[7], 42);
    EXPECT_EQ(third.size_bytes(), size);
  }
}

TEST(AlignedBufferMoveTest, EmptyOneHasNoMemory) {
  EXPECT_EQ(AlignedBuffer().size_bytes(), 0U);
  EXPECT_EQ(AlignedBuffer(0).As<char>(), nullptr);
}

}  // namespace
}  // namespace conclave
