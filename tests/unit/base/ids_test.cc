// Goal: ids of different kinds cannot be mixed up, ids of one kind compare and hash as their
// numbers. Method: type traits for what must not compile, values for the rest.
#include "conclave/base/ids.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

namespace conclave {
namespace {

static_assert(!std::is_convertible_v<int32_t, LayerId>);
static_assert(!std::is_convertible_v<LayerId, int32_t>);
static_assert(!std::is_constructible_v<LayerId, ExpertId>);
static_assert(!std::is_assignable_v<LayerId&, ExpertId>);
static_assert(std::is_trivially_copyable_v<Epoch>);
static_assert(sizeof(ExpertId) == sizeof(int32_t));

TEST(IdTest, DefaultIsZero) { EXPECT_EQ(WorkerId().value(), 0); }

TEST(IdTest, OrdersAsItsNumber) {
  EXPECT_LT(LayerId(1), LayerId(2));
  EXPECT_GT(Epoch(uint64_t{1} << 63), Epoch(1));
  EXPECT_EQ(ExpertId(-1), ExpertId(-1));
  EXPECT_NE(ExpertId(1), ExpertId(2));
}

TEST(IdTest, IsAKeyOfHashSets) {
  std::unordered_set<ExpertId> experts = {ExpertId(1), ExpertId(2), ExpertId(1)};
  EXPECT_EQ(experts.size(), 2U);
  EXPECT_TRUE(experts.contains(ExpertId(2)));
  EXPECT_FALSE(experts.contains(ExpertId(3)));
}

}  // namespace
}  // namespace conclave
