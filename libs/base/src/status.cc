#include "conclave/base/status.h"

#include <cstdio>
#include <cstdlib>
#include <optional>

#include "absl/strings/cord.h"
#include "conclave/base/check.h"

namespace conclave {
namespace {

constexpr char kReasonUrl[] = "conclave/reason";
constexpr char kParamUrl[] = "conclave/param";

std::string PayloadOf(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  return payload.has_value() ? std::string(*payload) : std::string();
}

}  // namespace

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, condition);
  std::abort();
}

absl::Status Error(absl::StatusCode code, std::string_view reason, std::string_view message) {
  absl::Status status(code, std::string(message));
  if (!reason.empty()) {
    status.SetPayload(kReasonUrl, absl::Cord(std::string(reason)));
  }
  return status;
}

absl::Status InvalidArgument(std::string_view reason, std::string_view message) {
  return Error(absl::StatusCode::kInvalidArgument, reason, message);
}

absl::Status NotFound(std::string_view reason, std::string_view message) {
  return Error(absl::StatusCode::kNotFound, reason, message);
}

absl::Status WithParam(absl::Status status, std::string_view param) {
  if (!status.ok()) {
    status.SetPayload(kParamUrl, absl::Cord(std::string(param)));
  }
  return status;
}

absl::Status Annotate(absl::Status status, std::string_view prefix) {
  if (status.ok()) {
    return status;
  }
  absl::Status out(status.code(), std::string(prefix) + ": " + MessageOf(status));
  status.ForEachPayload([&out](auto url, const absl::Cord& value) { out.SetPayload(url, value); });
  return out;
}

std::string ReasonOf(const absl::Status& status) { return PayloadOf(status, kReasonUrl); }
std::string ParamOf(const absl::Status& status) { return PayloadOf(status, kParamUrl); }
std::string MessageOf(const absl::Status& status) { return std::string(status.message()); }

}  // namespace conclave
