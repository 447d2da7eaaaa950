// chat.completion and chat.completion.chunk as OpenAI writes them, with vLLM's token_ids and
// routed_experts and our own `conclave` object (timings, numeric mode). Pure: events in, bytes out.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "conclave/frontend/chat.h"
#include "http/api_error.h"
#include "http/chat_stream.h"

namespace conclave::frontend {

struct ReplyShape {
  std::string id;       // "chatcmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;
  std::string fingerprint;
  std::string numeric_mode;
  int32_t num_choices = 1;
  bool include_usage = false;  // streams only
  bool has_logprobs = false;
  bool has_token_ids = false;
  int32_t num_moe_layers = 0;
  int32_t moe_top_k = 0;
  int32_t experts_max = 0;
};

// finish_reason of a reply that was not ended early.
std::string_view FinishText(FinishReason reason);

// What ended a reply early: the first failed or cancelled choice, as an error to tell.
std::optional<HttpError> FailureIn(const ChatEvents& events);

// A streamed reply: the data of server-sent events.
class ChatStreamWriter {
 public:
  explicit ChatStreamWriter(ReplyShape shape) : shape_(std::move(shape)) {}

  // The first chunk of every choice: the role and no content.
  void Begin(std::string& out) const;
  // Deltas, ends, and once `events.done`: usage if asked for, and [DONE]. Choices that failed are
  // left out.
  void Add(const ChatEvents& events, std::string& out) const;
  // The error and [DONE].
  static void Fail(const HttpError& error, std::string& out);

 private:
  void Chunk(int32_t choice, const ChatDelta* delta, bool is_first, const ChoiceEnd* end,
             std::string& out) const;
  void UsageChunk(const ChatEvents::Done& done, std::string& out) const;

  ReplyShape shape_;
};

// A whole reply.
class ChatReplyBuilder {
 public:
  explicit ChatReplyBuilder(ReplyShape shape);

  void Add(ChatEvents events);
  bool is_done() const { return done_.has_value(); }
  // Once done.
  std::string Body() const;

 private:
  ReplyShape shape_;
  std::vector<ChatEvents::Choice> choices_;
  std::optional<ChatEvents::Done> done_;
};

}  // namespace conclave::frontend
