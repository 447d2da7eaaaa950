// What every reader of a chat request promises, whatever form it came in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "conclave/base/check.h"
#include "conclave/base/status.h"
#include "conclave/frontend/chat.h"
#include "conclave/frontend/http_server.h"

namespace conclave::frontend {

inline const ModelCard& Card() {
  static const ModelCard card = [] {
    ModelCard made;
    made.id = "demo";
    made.max_model_len = 2048;
    made.vocab_size = 1000;
    made.has_vision = true;
    return made;
  }();
  return card;
}

inline HttpLimits SmallLimits() {
  HttpLimits limits;
  limits.messages_max = 6;
  limits.content_parts_max = 8;
  limits.image_bytes_max = 256;
  limits.logit_bias_max = 5;
  return limits;
}

inline bool IsWithinBounds(float value, float low, float high) {
  return value >= low && value <= high;
}

inline void CheckSampling(const SamplingParams& sampling, const HttpLimits& limits) {
  CONCLAVE_CHECK(IsWithinBounds(sampling.temperature, 0, 2));
  CONCLAVE_CHECK(IsWithinBounds(sampling.top_p, 0, 1) && sampling.top_p > 0);
  CONCLAVE_CHECK(sampling.top_k >= -1);
  CONCLAVE_CHECK(IsWithinBounds(sampling.min_p, 0, 1));
  CONCLAVE_CHECK(IsWithinBounds(sampling.repetition_penalty, 0, 100) &&
                 sampling.repetition_penalty > 0);
  CONCLAVE_CHECK(IsWithinBounds(sampling.presence_penalty, -2, 2));
  CONCLAVE_CHECK(IsWithinBounds(sampling.frequency_penalty, -2, 2));
  CONCLAVE_CHECK(sampling.num_top_logprobs >= -1 && sampling.num_top_logprobs <= 20);
  CONCLAVE_CHECK(static_cast<int32_t>(sampling.logit_bias.size()) <= limits.logit_bias_max);
  for (const auto& [token, bias] : sampling.logit_bias) {
    CONCLAVE_CHECK(token >= 0 && token < Card().vocab_size && IsWithinBounds(bias, -100, 100));
  }
}

inline void CheckMessages(const ChatRequest& request, const HttpLimits& limits) {
  CONCLAVE_CHECK(!request.messages.empty());
  CONCLAVE_CHECK(static_cast<int32_t>(request.messages.size()) <= limits.messages_max);
  CONCLAVE_CHECK(request.messages.back().role == Message::Role::kUser);
  int32_t num_images = 0;
  for (const Message& message : request.messages) {
    CONCLAVE_CHECK(static_cast<int32_t>(message.parts.size()) <= limits.content_parts_max);
    for (const ContentPart& part : message.parts) {
      if (part.kind == ContentPart::Kind::kImage) {
        ++num_images;
        CONCLAVE_CHECK(!part.bytes.empty() && !part.param.empty());
        CONCLAVE_CHECK(static_cast<int64_t>(part.bytes.size()) <= limits.image_bytes_max);
      }
    }
  }
  CONCLAVE_CHECK(num_images <= limits.images_max);
}

inline void CheckRefusal(const absl::Status& status) {
  CONCLAVE_CHECK(!ReasonOf(status).empty());
  const std::string message = MessageOf(status);
  CONCLAVE_CHECK(!message.empty());
  CONCLAVE_CHECK(std::none_of(message.begin(), message.end(), [](char c) {
    return static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
  }));
}

inline void CheckAccepted(const ChatRequest& request, const HttpLimits& limits) {
  CheckSampling(request.sampling, limits);
  CheckMessages(request, limits);
  CONCLAVE_CHECK(request.max_tokens >= 0 && request.max_tokens <= Card().max_model_len);
  CONCLAVE_CHECK(request.num_choices >= 1 && request.num_choices <= limits.choices_max);
  CONCLAVE_CHECK(static_cast<int32_t>(request.stops.size()) <= limits.stops_max);
  for (const std::string& stop : request.stops) {
    CONCLAVE_CHECK(!stop.empty() && static_cast<int32_t>(stop.size()) <= limits.stop_bytes_max);
  }
}

}  // namespace conclave::frontend
