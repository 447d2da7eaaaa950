// Errors of the HTTP API as gRPC has them.
#pragma once

#include <grpcpp/grpcpp.h>

#include "http/api_error.h"

namespace conclave::frontend {

// The code of an HTTP status (docs/errors.md has the table).
grpc::StatusCode CodeOfHttp(int http_status);

// "UNAVAILABLE" and so on: a label of metrics.
const char* NameOf(grpc::StatusCode code);

// "code: message", and in the trailing metadata `conclave-param` (the field that is wrong) and
// grpc-retry-pushback-ms where HTTP has Retry-After. `context` is of the call that ends with it.
grpc::Status ToGrpcError(const HttpError& error, grpc::CallbackServerContext& context);

}  // namespace conclave::frontend
