// Goal: the router and the worker compute the same key from the same words, on any machine.
// Method: values computed with another implementation of HMAC-SHA256.
#include "conclave/transport/pair_key.h"

#include "gtest/gtest.h"

namespace conclave::transport {
namespace {

TEST(PairKeyTest, IsTheStartOfTheHmac) {
  EXPECT_EQ(PairKey(0, 0), 0x76dd3938e15578aau);
  EXPECT_EQ(PairKey(0x0123456789abcdef, 0x00010002), 0xae211553a6b51b1eu);
  EXPECT_EQ(PairKey(UINT64_MAX, UINT32_MAX), 0x8073e7127fd33445u);
}

}  // namespace
}  // namespace conclave::transport
