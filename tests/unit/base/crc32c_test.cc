// Goal: the CRC is CRC-32C, and the instruction and the tables agree on every length and alignment.
// Method: published vectors (RFC 3720 B.4 and the check value of the catalogue of CRCs), then
// seeded random bytes.
#include "conclave/base/crc32c.h"

#include <cstring>
#include <random>
#include <string_view>
#include <vector>

#include "gtest/gtest.h"

namespace conclave {
namespace {

std::span<const std::byte> Bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::vector<std::byte> RandomBytes(uint64_t seed, size_t size) {
  std::mt19937_64 rng(seed);
  std::vector<std::byte> bytes(size);
  for (std::byte& b : bytes) {
    b = static_cast<std::byte>(rng());
  }
  return bytes;
}

using CrcFn = uint32_t (*)(std::span<const std::byte>, uint32_t);

class CrcVectorTest : public ::testing::TestWithParam<CrcFn> {};

TEST_P(CrcVectorTest, PublishedVectors) {
  const CrcFn crc = GetParam();
  EXPECT_EQ(crc(Bytes("123456789"), 0), 0xe3069283u);
  EXPECT_EQ(crc({}, 0), 0u);
  std::vector<std::byte> bytes(32, std::byte{0});
  EXPECT_EQ(crc(bytes, 0), 0x8a9136aau);
  std::fill(bytes.begin(), bytes.end(), std::byte{0xff});
  EXPECT_EQ(crc(bytes, 0), 0x62a8ab43u);
  for (size_t i = 0; i < 32; ++i) {
    bytes[i] = static_cast<std::byte>(i);
  }
  EXPECT_EQ(crc(bytes, 0), 0x46dd794eu);
}

TEST_P(CrcVectorTest, ContinuesAnEarlierCrc) {
  const CrcFn crc = GetParam();
  const std::vector<std::byte> bytes = RandomBytes(7, 100);
  const uint32_t whole = crc(bytes, 0);
  for (size_t cut = 0; cut <= bytes.size(); ++cut) {
    const auto span = std::span<const std::byte>(bytes);
    EXPECT_EQ(crc(span.subspan(cut), crc(span.first(cut), 0)), whole) << "cut at " << cut;
  }
}

INSTANTIATE_TEST_SUITE_P(Both, CrcVectorTest, ::testing::Values(&Crc32c, &Crc32cPortable),
                         [](const auto& test) { return test.index == 0 ? "Chosen" : "Portable"; });

TEST(CrcTest, InstructionEqualsTablesForEveryLengthAndOffset) {
  constexpr uint64_t kSeed = 11;
  SCOPED_TRACE(::testing::Message() << "seed " << kSeed);
  const std::vector<std::byte> bytes = RandomBytes(kSeed, 300);
  for (size_t offset = 0; offset < 9; ++offset) {
    for (size_t size = 0; size + offset <= bytes.size(); ++size) {
      const auto part = std::span<const std::byte>(bytes).subspan(offset, size);
      ASSERT_EQ(Crc32c(part), Crc32cPortable(part)) << "offset " << offset << " size " << size;
    }
  }
}

}  // namespace
}  // namespace conclave
