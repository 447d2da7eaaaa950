#include "grpc/grpc_error.h"

#include <array>
#include <cstddef>

namespace conclave::frontend {

grpc::StatusCode CodeOfHttp(int http_status) {
  switch (http_status) {
    case 401:
      return grpc::StatusCode::UNAUTHENTICATED;
    case 403:
      return grpc::StatusCode::PERMISSION_DENIED;
    case 404:
      return grpc::StatusCode::NOT_FOUND;
    case 408:
    case 504:
      return grpc::StatusCode::DEADLINE_EXCEEDED;
    case 413:
    case 429:
      return grpc::StatusCode::RESOURCE_EXHAUSTED;
    case 503:
      return grpc::StatusCode::UNAVAILABLE;
    default:
      // 415 too: UNIMPLEMENTED would say that there is no such method.
      return http_status < 500 ? grpc::StatusCode::INVALID_ARGUMENT : grpc::StatusCode::INTERNAL;
  }
}

const char* NameOf(grpc::StatusCode code) {
  static constexpr std::array kNames{"OK",
                                     "CANCELLED",
                                     "UNKNOWN",
                                     "INVALID_ARGUMENT",
                                     "DEADLINE_EXCEEDED",
                                     "NOT_FOUND",
                                     "ALREADY_EXISTS",
                                     "PERMISSION_DENIED",
                                     "RESOURCE_EXHAUSTED",
                                     "FAILED_PRECONDITION",
                                     "ABORTED",
                                     "OUT_OF_RANGE",
                                     "UNIMPLEMENTED",
                                     "INTERNAL",
                                     "UNAVAILABLE",
                                     "DATA_LOSS",
                                     "UNAUTHENTICATED"};
  const auto index = static_cast<size_t>(code);
  return index < kNames.size() ? kNames[index] : "UNKNOWN";
}

grpc::Status ToGrpcError(const HttpError& error, grpc::CallbackServerContext& context) {
  if (!error.param.empty()) {
    context.AddTrailingMetadata("conclave-param", error.param);
  }
  if (error.status == 429 || error.status == 503) {
    context.AddTrailingMetadata("grpc-retry-pushback-ms", "1000");
  }
  return {CodeOfHttp(error.status), error.code + ": " + error.message};
}

}  // namespace conclave::frontend
