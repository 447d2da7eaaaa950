// What a chat request's own span says of it, in the words of vLLM's gen_ai attributes, and the
// spans of its preparation.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "conclave/base/clock.h"
#include "conclave/base/mutex.h"
#include "conclave/frontend/chat.h"
#include "conclave/observability/trace.h"

namespace conclave::frontend {

// Of one request, traced or not; of one that is not, every call returns at once. Any thread.
class ChatTrace {
 public:
  // Takes `request.trace`, and tells what was asked for.
  ChatTrace(ChatRequest& request, const ModelCard& card);

  // For its sequences; null: not traced.
  const std::shared_ptr<observability::RequestTrace>& request() const { return request_; }

  // One picture: decoded, then encoded, from `start` on.
  struct Image {
    std::chrono::nanoseconds decode{0};
    std::chrono::nanoseconds encode{0};
    int32_t rows = 0;
    bool was_cached = false;
  };
  void OnImage(MonotonicTime start, const Image& image);
  // It waited from `submitted` to `begun`, was made ready by `end`, or could not be.
  void OnPrepared(MonotonicTime submitted, MonotonicTime begun, MonotonicTime end,
                  const absl::Status& status);
  void OnChoiceEnd(FinishReason reason, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void OnDone(const Usage& usage, const Timings& timings, std::chrono::nanoseconds total);

 private:
  const std::shared_ptr<observability::RequestTrace> request_;
  observability::SpanId prepare_id_{};
  Mutex mu_;
  std::vector<std::string> reasons_ ABSL_GUARDED_BY(mu_);
};

// The word of the API's traces and metrics for it.
const char* TraceNameOf(FinishReason reason);

}  // namespace conclave::frontend
