// A chat request as the engine understands it, and the interface that the HTTP layer and `conclave
// ask` drive. The API layer parses and checks the wire form; a ChatBackend tokenises, encodes
// images, schedules and streams.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::observability {
class RequestTrace;
}  // namespace conclave::observability

namespace conclave::frontend {

// Part of a message: text, or an encoded picture (JPEG, PNG bytes).
struct ContentPart {
  enum class Kind { kText, kImage };
  Kind kind = Kind::kText;
  std::string bytes;
  // Where it stood in the request, for error messages: "messages[0].content[1].image_url.url".
  std::string param;
};

struct Message {
  enum class Role { kSystem, kUser, kAssistant };
  Role role = Role::kUser;
  std::vector<ContentPart> parts;
};

struct SamplingParams {
  float temperature = 0.0f;  // 0: greedy
  float top_p = 1.0f;        // (0, 1]
  int32_t top_k = 0;         // 0 or -1: off
  float min_p = 0.0f;        // [0, 1]
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  uint64_t seed = 0;  // sampling is a function of (logits, params, seed, step)
  std::vector<std::pair<int32_t, float>> logit_bias;
  int32_t num_top_logprobs = -1;  // -1: none; 0..20: of the chosen token and that many best ones
};

enum class ImageMode { kModelDefault, kPad, kCrop, kStretch };

struct ChatRequest {
  std::string request_id;
  std::vector<Message> messages;
  SamplingParams sampling;
  int32_t max_tokens = 0;  // 0: what the context leaves
  int32_t num_choices = 1;
  std::vector<std::string> stops;
  bool ignore_eos = false;
  bool return_token_ids = false;
  bool return_routed_experts = false;
  bool return_gate_probabilities = false;
  ImageMode image_mode = ImageMode::kModelDefault;
  // Null: not traced.
  std::shared_ptr<observability::RequestTrace> trace;
};

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
  std::string bytes;
  struct Alternative {
    int32_t token;
    float logprob;
    std::string bytes;
  };
  std::vector<Alternative> top;
};

struct ChatDelta {
  int32_t choice = 0;
  std::string text;                    // valid UTF-8; may be empty while text is held back
  std::vector<int32_t> token_ids;      // the tokens behind it, when asked for
  std::vector<TokenLogprob> logprobs;  // when asked for
};

enum class FinishReason { kStop, kLength, kCancelled, kError };

struct Usage {
  int32_t prompt_tokens = 0;  // spliced: image rows count
  int32_t image_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t completion_tokens = 0;
};

// Milliseconds since the request was submitted.
struct Timings {
  double image_ms = 0;  // decode, resize and encode
  double queue_ms = 0;
  double prefill_ms = 0;
  double decode_ms = 0;
  double first_token_ms = 0;
};

struct ChoiceEnd {
  int32_t choice = 0;
  FinishReason reason = FinishReason::kStop;
  // For kError: what to tell the client, with reason and param.
  absl::Status status;
  // ChatRequest::return_routed_experts: [positions][MoE layers][top_k], -1 where a kept KV block
  // was used.
  std::vector<int16_t> routed_experts;
  // ChatRequest::return_gate_probabilities, as SequenceStats has them.
  std::vector<float> gate_probabilities;
  std::vector<std::pair<int32_t, int32_t>> image_spans;
};

// Receives a request's output. Calls come from the backend's threads, one at a time per request,
// and must not block. For every choice: deltas, then one OnChoiceEnd; after the last choice one
// OnDone. An error before the first delta arrives as OnChoiceEnd(kError) of choice 0 followed by
// OnDone.
class ChatSink {
 public:
  virtual ~ChatSink() = default;
  virtual void OnDelta(ChatDelta delta) = 0;
  virtual void OnChoiceEnd(ChoiceEnd end) = 0;
  virtual void OnDone(const Usage& usage, const Timings& timings) = 0;
};

using ChatId = uint64_t;

struct ModelCard {
  std::string id;             // --served-model-name
  int32_t max_model_len = 0;  // tokens
  int32_t vocab_size = 0;     // ids below exist
  bool has_vision = false;
  int64_t created = 0;       // Unix seconds
  std::string fingerprint;   // manifest hash + numeric mode + ISA path; not topology
  std::string numeric_mode;  // "f32", "bf16" or "q8"
  // The inner axes of ChoiceEnd::routed_experts. 0: not known; the reply then holds a flat array.
  int32_t num_moe_layers = 0;
  int32_t moe_top_k = 0;
  int32_t experts_max = 0;  // of the largest layer: the inner axis of gate_probabilities
};

// Thread-safe.
class ChatBackend {
 public:
  virtual ~ChatBackend() = default;

  // Cheap checks only (queue bounds, drain); the rest is reported through the sink.
  // kResourceExhausted: a limit of the caller's own (429); kUnavailable: overloaded, loading or
  // draining (503).
  virtual absl::StatusOr<ChatId> Submit(ChatRequest request, std::shared_ptr<ChatSink> sink) = 0;

  // Frees the request's sequences within one step. The sink still gets OnChoiceEnd(kCancelled) and
  // OnDone. Unknown ids are ignored.
  virtual void Cancel(ChatId id) = 0;

  virtual const ModelCard& model() const = 0;

  // OK when every expert of the model is served and requests are taken; otherwise why not.
  virtual absl::Status Readiness() const = 0;

  virtual std::vector<int32_t> Tokenize(const std::string& text) const = 0;
  virtual std::string Detokenize(const std::vector<int32_t>& tokens) const = 0;
};

}  // namespace conclave::frontend
