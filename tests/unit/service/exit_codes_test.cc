// Goal: an error ends in the documented exit code and one line.
// Method: statuses with reasons of each kind.
#include "conclave/service/exit_codes.h"

#include <gtest/gtest.h>

#include "conclave/base/status.h"

namespace conclave::service {
namespace {

TEST(ExitCodesTest, ReasonDecidesWhereItAloneTells) {
  EXPECT_EQ(ExitCodeOf(InvalidArgument("usage", "x"), ExitCode::kModel), ExitCode::kUsage);
  EXPECT_EQ(ExitCodeOf(InvalidArgument("config_syntax", "x"), ExitCode::kModel), ExitCode::kConfig);
  EXPECT_EQ(ExitCodeOf(InvalidArgument("bind", "x"), ExitCode::kModel), ExitCode::kNetwork);
}

TEST(ExitCodesTest, OtherwiseThePhaseDecides) {
  EXPECT_EQ(ExitCodeOf(InvalidArgument("tensor_missing", "x"), ExitCode::kModel), ExitCode::kModel);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("x"), ExitCode::kState), ExitCode::kState);
  EXPECT_EQ(ExitCodeOf(absl::OkStatus(), ExitCode::kState), ExitCode::kDone);
}

TEST(ExitCodesTest, NumbersAreTheDocumentedOnes) {
  EXPECT_EQ(static_cast<int>(ExitCode::kUsage), 2);
  EXPECT_EQ(static_cast<int>(ExitCode::kConfig), 3);
  EXPECT_EQ(static_cast<int>(ExitCode::kModel), 4);
  EXPECT_EQ(static_cast<int>(ExitCode::kNetwork), 5);
  EXPECT_EQ(static_cast<int>(ExitCode::kState), 6);
  EXPECT_EQ(static_cast<int>(ExitCode::kInternal), 70);
}

TEST(ExitCodesTest, LineIsOneLine) {
  EXPECT_EQ(ErrorLine(NotFound("tensor_missing", "lm_head\nweight\x1b[31m")),
            "error: tensor_missing: lm_headweight");
  EXPECT_EQ(ErrorLine(absl::InternalError("x")), "error: internal: x");
}

TEST(ExitCodesTest, FailPrintsTheLineAndGivesTheCode) {
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(Fail(InvalidArgument("usage", "--x: no"), ExitCode::kInternal), 2);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(), "error: usage: --x: no\n");
}

}  // namespace
}  // namespace conclave::service
