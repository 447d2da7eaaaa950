// Goal: reason and param travel with a status wherever it is passed.
// Method: make, annotate, return through the macros, look.
#include "conclave/base/status.h"

#include <gtest/gtest.h>

#include <memory>

namespace conclave {
namespace {

TEST(StatusTest, ErrorCarriesCodeReasonAndMessage) {
  const absl::Status status =
      Error(absl::StatusCode::kUnavailable, "worker_gone", "worker 3: no answer");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(ReasonOf(status), "worker_gone");
  EXPECT_EQ(MessageOf(status), "worker 3: no answer");
  EXPECT_EQ(ParamOf(status), "");
}

TEST(StatusTest, ForeignStatusHasNoReason) {
  EXPECT_EQ(ReasonOf(absl::InternalError("x")), "");
  EXPECT_EQ(ReasonOf(absl::OkStatus()), "");
}

TEST(StatusTest, AnnotateKeepsCodeReasonAndParam) {
  const absl::Status status = Annotate(
      WithParam(NotFound("tensor_missing", "lm_head.weight"), "messages[0]"), "model.safetensors");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MessageOf(status), "model.safetensors: lm_head.weight");
  EXPECT_EQ(ReasonOf(status), "tensor_missing");
  EXPECT_EQ(ParamOf(status), "messages[0]");
}

TEST(StatusTest, OkStaysOk) {
  EXPECT_TRUE(Annotate(absl::OkStatus(), "x").ok());
  EXPECT_TRUE(WithParam(absl::OkStatus(), "x").ok());
}

TEST(StatusTest, LastParamWins) {
  EXPECT_EQ(ParamOf(WithParam(WithParam(InvalidArgument("r", "m"), "a"), "b")), "b");
}

absl::StatusOr<std::unique_ptr<int>> Make(bool is_good) {
  if (!is_good) {
    return InvalidArgument("not_good", "no");
  }
  return std::make_unique<int>(7);
}

absl::StatusOr<int> Use(bool is_good) {
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<int> value, Make(is_good));
  CONCLAVE_ASSIGN_OR_RETURN(const std::unique_ptr<int> second, Make(true));
  return *value + *second;
}

absl::Status Check(const absl::Status& status, bool& was_reached) {
  CONCLAVE_RETURN_IF_ERROR(status);
  was_reached = true;
  return absl::OkStatus();
}

TEST(StatusTest, AssignMovesTheValueOutOrReturnsTheError) {
  ASSERT_TRUE(Use(true).ok());
  EXPECT_EQ(*Use(true), 14);
  EXPECT_EQ(ReasonOf(Use(false).status()), "not_good");
}

TEST(StatusTest, ReturnIfErrorGoesOnOnlyWhenOk) {
  bool was_reached = false;
  EXPECT_EQ(ReasonOf(Check(InvalidArgument("stop", "x"), was_reached)), "stop");
  EXPECT_FALSE(was_reached);
  EXPECT_TRUE(Check(absl::OkStatus(), was_reached).ok());
  EXPECT_TRUE(was_reached);
}

}  // namespace
}  // namespace conclave
