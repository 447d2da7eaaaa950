// The body of POST /v1/chat/completions, checked and turned into what the engine understands. A
// pure function: no clock, no network, no logging.
#pragma once

#include <cstdint>
#include <string_view>

#include "absl/status/statusor.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"
#include "http/field_reader.h"

namespace conclave::frontend {

struct ParsedChat {
  ChatRequest request;  // request_id is the caller's to set
  bool is_stream = false;
  bool include_usage = false;
  bool has_seed = false;  // else the caller draws one
  // Pictures whose media type is not theirs; to be counted.
  int32_t num_mislabelled_images = 0;
};

// OpenAI's fields and vLLM's additions as far as ChatRequest can express them; others are handed to
// `on_unknown` and ignored. Absent and null mean the same. max_completion_tokens wins over
// max_tokens. A dialogue is an optional system message ("developer" is another word for it), then
// user and assistant in turn, a user message last. Without `temperature` decoding is greedy.
//
// Errors carry reason and param: kNotFound (model_not_found), kUnimplemented (a picture format,
// 415), otherwise kInvalidArgument. Cheap checks come first: pictures are decoded from base64 when
// everything else is right.
absl::StatusOr<ParsedChat> ParseChatRequest(std::string_view body, const HttpLimits& limits,
                                            const ModelCard& card,
                                            const UnknownFieldFn& on_unknown = {});

}  // namespace conclave::frontend
