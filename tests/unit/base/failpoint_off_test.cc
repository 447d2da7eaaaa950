// Goal: a build without failpoints has nothing of them. Method: the macro as such a build sees it,
// turned into text.
#undef CONCLAVE_FAILPOINTS

#include <string>

#include "conclave/base/failpoint.h"
#include "gtest/gtest.h"

#define TEXT_OF(...) #__VA_ARGS__
#define EXPANDED(...) TEXT_OF(__VA_ARGS__)

namespace conclave {
namespace {

TEST(FailpointOffTest, NeitherNameNorContextIsLeft) {
  EXPECT_EQ(std::string(EXPANDED(CONCLAVE_FAILPOINT("test.name", {.layer = 1, .phase = "decode"}))),
            "(::conclave::FailpointHit{})");
  const FailpointHit hit = CONCLAVE_FAILPOINT("test.name", {.layer = 1, .phase = "decode"});
  EXPECT_FALSE(hit.is_hit());
  EXPECT_EQ(std::string(EXPANDED(CONCLAVE_FAILPOINT_LINK(link))), "static_assert(true)");
}

}  // namespace
}  // namespace conclave
