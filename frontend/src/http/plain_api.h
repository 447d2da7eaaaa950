// The routes that answer at once: models, tokenizer, health, version, metrics.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "http/routes.h"
#include "http/server_state.h"

namespace conclave::frontend {

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> fields;  // further header fields
};

// With Retry-After where clients may try again by themselves.
HttpReply ErrorReply(const HttpError& error, std::string_view request_id);

// Answers any route but kChat. `backend` is null only for routes that need none.
HttpReply AnswerPlain(const Route& route, std::string_view rest, std::string_view body,
                      ServerState& state, std::string_view request_id);

}  // namespace conclave::frontend
