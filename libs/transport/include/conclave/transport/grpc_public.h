// Limits of a gRPC server whose clients are not of the cluster.
#pragma once

#include <grpcpp/grpcpp.h>

namespace conclave::transport {

// What SetServerLimits (grpc_support.h) sets, for clients that may be slow and far away: a silent
// one is asked for a sign of life every 10 s and given 20 s, and one that pings too often is cut.
// Answers have no bound here; compressed messages are refused (UNIMPLEMENTED), since nothing bounds
// what they become.
void SetPublicServerLimits(grpc::ServerBuilder& builder, int max_message_bytes);

}  // namespace conclave::transport
