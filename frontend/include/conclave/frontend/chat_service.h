// ChatBackend over an Engine: prompt template, tokens, pictures, streaming text.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "conclave/checkpoint/model_desc.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/engine.h"
#include "conclave/image/image.h"
#include "conclave/model/vision_tower.h"
#include "conclave/text/tokenizer.h"

namespace conclave::frontend {

struct ChatServiceOptions {
  ModelCard model;
  image::DecodeLimits image_limits;
  // Features of recent pictures kept for the next turn.
  int64_t image_cache_bytes = int64_t{256} << 20;
  // Requests that wait for their pictures; more are refused.
  int32_t max_preparing = 256;
  // Whether the experts are served; null: they are here. Any thread.
  std::function<absl::Status()> readiness;
  // Memory of pictures until they are features: those that wait, as they came, and the decoding of
  // the dearest of them, since one is decoded at a time. A request beyond it is refused with
  // "image_memory_busy" (kUnavailable), unless no other has pictures in preparation.
  int64_t image_memory_bytes = int64_t{512} << 20;
};

// What the service tells metrics; may be called on any of its threads, must not block.
class ChatObserver {
 public:
  virtual ~ChatObserver() = default;
  virtual void OnImage(image::ImageFormat format, std::chrono::nanoseconds decode,
                       std::chrono::nanoseconds encode, bool was_cached) = 0;
  // One that cannot be decoded; `format` is what its first bytes say.
  virtual void OnImageRefused(image::ImageFormat format) = 0;
  virtual void OnRequestEnd(FinishReason reason, const Usage& usage, const Timings& timings) = 0;
};

// Owns two threads: one prepares requests with pictures (decode, resize, encode: off the step
// loop), one those without, which so never wait behind an encoder. Thread-safe.
class ChatService : public ChatBackend {
 public:
  // All references outlive the service; `tower` is null for a model without vision, `observer` may
  // be null.
  ChatService(ChatServiceOptions options, const checkpoint::ModelDesc& desc,
              const text::Tokenizer& tokenizer, model::VisionTower* tower, Engine& engine,
              ChatObserver* observer);
  ~ChatService() override;

  absl::StatusOr<ChatId> Submit(ChatRequest request, std::shared_ptr<ChatSink> sink) override;
  void Cancel(ChatId id) override;
  const ModelCard& model() const override;
  absl::Status Readiness() const override;
  std::vector<int32_t> Tokenize(const std::string& text) const override;
  std::string Detokenize(const std::vector<int32_t>& tokens) const override;

  // Refuses new requests from now on and waits until none is open or `timeout` passed; returns
  // whether none is.
  bool Drain(std::chrono::milliseconds timeout);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace conclave::frontend
