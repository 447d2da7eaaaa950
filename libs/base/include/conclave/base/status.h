// Errors are absl::Status. Next to the code and the message an error of ours carries two facts that
// callers and users rely on, kept as payloads so that they survive being passed up:
//
//   reason  a stable snake_case word, such as "tensor_missing" (HTTP `code`, the <what> of a
//   command line error)
//   param   the field of a request that is wrong, such as "messages[1].content[0].image_url.url"
//
// The message names what was wrong, where, what was expected and what was found, in one line:
// "model.safetensors: tensor lm_head.weight: wrong shape; expected [640, 128], found [128, 640]".
#pragma once

#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave {

// An error with a reason. `code` says what the caller may do (see CONTRIBUTING.md, "Errors").
absl::Status Error(absl::StatusCode code, std::string_view reason, std::string_view message);

// Shorthands for the two most frequent codes.
absl::Status InvalidArgument(std::string_view reason, std::string_view message);
absl::Status NotFound(std::string_view reason, std::string_view message);

// The same status with `param` attached; an OK status stays OK.
absl::Status WithParam(absl::Status status, std::string_view param);

// The same status with "<prefix>: " before its message; reason and param stay. An OK status stays
// OK.
absl::Status Annotate(absl::Status status, std::string_view prefix);

// Empty when the status carries none.
std::string ReasonOf(const absl::Status& status);
std::string ParamOf(const absl::Status& status);

// `message()` as a std::string: abseil's own string_view type does not convert by itself.
std::string MessageOf(const absl::Status& status);

}  // namespace conclave

#define CONCLAVE_STATUS_CONCAT_INNER(a, b) a##b
#define CONCLAVE_STATUS_CONCAT(a, b) CONCLAVE_STATUS_CONCAT_INNER(a, b)

// Returns the status of `expr` from the enclosing function unless it is OK.
#define CONCLAVE_RETURN_IF_ERROR(expr)                                  \
  do {                                                                  \
    if (absl::Status conclave_status = (expr); !conclave_status.ok()) { \
      return conclave_status;                                           \
    }                                                                   \
  } while (false)

// Assigns the value of a StatusOr to `lhs` (which may declare it) or returns its status.
#define CONCLAVE_ASSIGN_OR_RETURN(lhs, expr) \
  CONCLAVE_ASSIGN_OR_RETURN_IMPL(CONCLAVE_STATUS_CONCAT(conclave_or_, __LINE__), lhs, expr)
#define CONCLAVE_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) {                                     \
    return std::move(tmp).status();                    \
  }                                                    \
  lhs = *std::move(tmp)
