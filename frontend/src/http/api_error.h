// Errors as clients see them: a status, a stable code and one sentence. No path, address, pointer
// or library text.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "conclave/base/json_writer.h"

namespace conclave::frontend {

struct HttpError {
  int status = 500;
  std::string code;
  std::string message;
  std::string param;  // empty: none
};

// From the request's own parsing: the message is ours and is passed on.
HttpError ErrorFromRequest(const absl::Status& status);

// From the backend: what is not the client's doing gets a fixed message, since the real one may
// name workers, files or devices; so does any message without a reason of ours or that looks like
// one of those.
HttpError ErrorFromBackend(const absl::Status& status);

// "invalid_request_error" and so on, by HTTP status.
std::string_view ErrorType(int status);

// {"message":...,"type":...,"param":...,"code":...}
void WriteErrorObject(const HttpError& error, JsonWriter& json);

// {"error":{...},"request_id":"..."}
std::string ErrorBody(const HttpError& error, std::string_view request_id);

}  // namespace conclave::frontend
