// Messages of inference.proto and what the engine understands. Pure functions on bytes: no clock,
// no network, no logging.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"
#include "http/chat_stream.h"

namespace conclave::frontend {

struct WireChat {
  ChatRequest request;    // request_id is the caller's to set
  bool has_seed = false;  // else the caller draws one
  // From the arrival of the call; 0: none.
  std::chrono::milliseconds deadline{0};
};

// A serialised ChatRequest, checked by the rules of chat_rules.h. Its fields are counted before any
// message is made, so that a body of millions of empty messages costs no more memory than itself.
//
// Errors carry reason and param ("messages[0].content[1].image"): kNotFound ("model_not_found"),
// otherwise kInvalidArgument, "protobuf_syntax" and "too_many_fields" among them.
absl::StatusOr<WireChat> ReadChat(const grpc::ByteBuffer& bytes, const HttpLimits& limits,
                                  const ModelCard& card);

// One ChatResponse.
struct ChatPiece {
  std::string text;
  std::vector<int32_t> token_ids;
  // Of the last piece.
  FinishReason reason = FinishReason::kStop;
  std::optional<Usage> usage;
};
grpc::ByteBuffer WritePiece(const ChatPiece& piece);

}  // namespace conclave::frontend
