#include "http/api_error.h"

#include <cstddef>

#include "conclave/base/status.h"
#include "http/utf8.h"

namespace conclave::frontend {
namespace {

bool HasSuffix(std::string_view text, std::string_view suffix) {
  return text.size() >= suffix.size() && text.substr(text.size() - suffix.size()) == suffix;
}

bool IsHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

bool IsWord(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

// A pointer, an absolute path, an address with a port, or something that is no text.
bool LooksInternal(std::string_view message) {
  if (message.size() > 512 || FindInvalidUtf8(message) != std::string_view::npos) {
    return true;
  }
  for (size_t i = 0; i + 1 < message.size(); ++i) {
    const char before = i == 0 ? ' ' : message[i - 1];
    if (message[i] == '0' && message[i + 1] == 'x' && i + 8 <= message.size()) {
      size_t end = i + 2;
      while (end < message.size() && IsHex(message[end])) {
        ++end;
      }
      if (end - i >= 8) {
        return true;
      }
    }
    // "image/png" and "and/or" have a word before the slash, "/etc/passwd" has none.
    if (message[i] == '/' && IsWord(message[i + 1]) && !IsWord(before)) {
      return true;
    }
    if (static_cast<unsigned char>(message[i]) < 0x20) {
      return true;
    }
  }
  return message.find("::") != std::string_view::npos;
}

int HttpStatus(const absl::Status& status) {
  const std::string reason = ReasonOf(status);
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return 400;
    case absl::StatusCode::kUnimplemented:
      return reason.rfind("image_", 0) == 0 || HasSuffix(reason, "_unsupported") ? 415 : 400;
    case absl::StatusCode::kNotFound:
      return 404;
    case absl::StatusCode::kPermissionDenied:
      return 403;
    case absl::StatusCode::kUnauthenticated:
      return 401;
    case absl::StatusCode::kResourceExhausted:
      return 429;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kAborted:
    case absl::StatusCode::kCancelled:
      return 503;
    case absl::StatusCode::kDeadlineExceeded:
      return 504;
    default:
      return 500;
  }
}

struct Fallback {
  std::string_view code;
  std::string_view message;
};

Fallback FallbackFor(int status) {
  switch (status) {
    case 400:
      return {"invalid_request", "the request cannot be served as it is"};
    case 401:
      return {"unauthenticated", "the request carries no valid credentials"};
    case 403:
      return {"permission_denied", "not allowed"};
    case 404:
      return {"not_found", "not found"};
    case 415:
      return {"media_unsupported", "the kind of content is not supported"};
    case 429:
      return {"rate_limited", "too many requests of this client; try again later"};
    case 503:
      return {"unavailable", "the server is overloaded or not ready; try again later"};
    case 504:
      return {"deadline_exceeded", "the request took longer than its deadline"};
    default:
      return {"internal_error", "internal error; the request id helps to find it"};
  }
}

HttpError Told(const absl::Status& status, int http_status) {
  const Fallback fallback = FallbackFor(http_status);
  HttpError error{http_status, ReasonOf(status), MessageOf(status), ParamOf(status)};
  if (error.code.empty()) {
    error.code = fallback.code;
  }
  return error;
}

}  // namespace

HttpError ErrorFromRequest(const absl::Status& status) { return Told(status, HttpStatus(status)); }

HttpError ErrorFromBackend(const absl::Status& status) {
  const int http_status = HttpStatus(status);
  HttpError error = Told(status, http_status);
  const Fallback fallback = FallbackFor(http_status);
  if (http_status >= 500 || ReasonOf(status).empty() || LooksInternal(error.message)) {
    error.message = fallback.message;
  }
  if (http_status == 500) {
    error.code = fallback.code;
    error.param.clear();
  }
  return error;
}

std::string_view ErrorType(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 408:
    case 504:
      return "timeout";
    case 429:
      return "rate_limit_error";
    case 503:
      return "unavailable_error";
    default:
      return status < 500 ? "invalid_request_error" : "server_error";
  }
}

void WriteErrorObject(const HttpError& error, JsonWriter& json) {
  json.BeginObject();
  json.Key("message").String(error.message);
  json.Key("type").String(ErrorType(error.status));
  json.Key("param");
  if (error.param.empty()) {
    json.Null();
  } else {
    json.String(error.param);
  }
  json.Key("code").String(error.code);
  json.EndObject();
}

std::string ErrorBody(const HttpError& error, std::string_view request_id) {
  std::string out;
  JsonWriter json(out);
  json.BeginObject().Key("error");
  WriteErrorObject(error, json);
  json.Key("request_id").String(request_id).EndObject();
  return out;
}

}  // namespace conclave::frontend
